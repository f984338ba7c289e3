"""Explain face recognition: class activation maps, sharpened by scaled directed divergence, and measured.

    import sdd_face as sf                   # torch is imported with the first name that needs it
    model = sf.load_recognizer("packaged")  # or a weights file, or OWNER/NAME on the Hugging Face hub
    faces = sf.load_faces("synthetic", people=8, images_per_person=3, seed=1000)  # or a folder: PERSON/IMAGE
    why = sf.explain(model, faces.images[:1])  # .classes, .probabilities, .cams, .sdd, .names
    sf.save_figure(sf.plot_explanation(why, faces.images), "explanation.png")

`dir(sf)` lists what is offered here, and the modules, each written as a notebook of the same name:

  synthetic       drawn people, with a mask for every part of the face
  data            faces as one tensor, near-duplicates as groups, and the split
  model           a recogniser that owns its colour order: load, save, ask
  finetune        teach a network new people, in a run that survives being killed
  cam             class activation maps, exact for every linear head
  sdd             scaled directed divergence, the explanation of a face and its picture
  evaluation      deletion and retention: Tables 1 and 2
  pairs           two faces: what each place adds to their similarity
  methods         every method behind one function, `attribute`
  controls        maps that know nothing of the face: better than what?
  curves          deletion and insertion curves, and their areas
  sanity          another network, another class, another face: does the map change?
  twins           two drawn people differ in one part: does the map find it?
  search          a map that asks the network 60 times
  verdict         all methods and controls in one table
  readings        which open points of the paper move its tables

  networks        IR-ResNet and MobileFaceNet in their published layouts
  inception       the layers of facenet-pytorch's InceptionResnetV1
  heads           from feature maps to logits, in four linear ways
  recognizer      a network, a head, the names of its people, and what it wants its pixels to be
  cutting         any network in two halves, before and after one of its layers
  divisors        heads that divide by a length or a deviation
  wrapping        any network, from the name of a layer on
  layouts         the same layers under other names
  tensor_files    tensors out of files of others, measured first and never run
  records         what our own weights files say of themselves
  checkpoints     weights files of others, recognised by their content
  backward_rules  guided backpropagation and DeepLIFT for PReLU
  batch_norm      batch norm over the batches of several processes

  paint           how a face is painted, layer by layer
  pixels          any picture becomes RGB, upright, or is refused
  images          image files become faces, or are refused with a reason
  inputs          faces in any form become one tensor
  photos          the faces of a photograph, found, numbered and aligned
  facescrub       FaceScrub's lists, row by row
  download        its photographs, fetched and checked
  fetch           one photograph from the web, politely and safely
  landmark_table  landmarks that somebody measured
  landmarks       eyes, nose and corners of the mouth
  alignment       from a photograph to an aligned face
  crops           a folder of photographs becomes a folder of faces
  augmentation    faces changed as AdaFace changes them while it trains

  explanation     what an explanation holds, its picture and its files
  classes         which people an image is explained with
  maps            arithmetic on maps
  masks           which pixels a map chooses, and what covers them
  gradients       methods that send a gradient back
  perturbation    methods that cover parts of a face and ask again
  lime            random squares covered, and a linear model of the answers
  families        how a method is led through many faces
  intervals       how sure a mean over faces is
  tables          numbers of each face become rows with intervals
  published       Tables 1 and 2 in the paper's own rows
  wording         a sentence says how two maps compare
  localisation    does a map point at the pixels that matter?
  regions         eyes, brows, nose and mouth: where they are
  inpainting      one region is changed: does the map find it?
  speed           the arithmetic of a network, counted

  explore         see it, move it, paint on it: the explorer
  serving         the explorer as a web page of this machine
  subject         one face under one network, and what is computed again when something changes
  gallery         pictures in a page that change at once
  desk            sliders and lists that change one choice, and panels that follow it
  painter         a face to paint on
  page            what a page takes in and gives out
  look_panel      why it is this person and not that one
  mask_panel      your mask against SDD, CAM, a disc and chance
  curve_panel     a slider along a deletion curve
  face_panel      a drawn face changed, its relatives, and a twin in one part
  method_panel    methods side by side, with their costs
  jobs            a slow method beside the page, which can be stopped
  quiz            two maps, of a trained network and of a random one

  files           where a run keeps its things; whole files or none
  distributed     one run in several processes
  passes          how faces go through a network: in which numbers, how many at once
  acceleration    what makes training faster on a device that can
  runs            a run by its name: open it, or make it
  parameters      what may be asked of the notebooks
  ranges          which values a parameter may have
  execute         one notebook in a kernel of its own
  keys            what a result depends on, as one hash
  reproduce       all notebooks, each of them once
  pictures        one explanation from files to a picture
  reports         many photographs: their pictures, numbers and maps
  cli             the command `sdd-face`
  console         how it speaks, and what its exit status says
  cli_pictures    `explain` and `explain-pair`
  cli_runs        `reproduce`, `train`, `evaluate`, `notebooks`, `course` and `explore`
  cli_photos      `align` and `facescrub download`
  course          five lessons, for students and for teachers
  plot            the helpers that draw every picture
  progress        how far long work is, where somebody sees it
  alt_text        what a figure shows, in words
"""
__version__ = "0.1.0"

_OFFERED = {  # module -> what it offers here
    "inputs": "read_faces",
    "data": "load_faces read_folder split_faces spread_over_people",
    "model": "load_recognizer save_recognizer best_device predict",
    "networks": "embedding_network",
    "wrapping": "wrap",
    "finetune": "Recipe",
    "runs": "Settings make_run open_run",
    "sdd": "explain",
    "explanation": "plot_explanation",
    "cam": "class_activation_maps",
    "pairs": "explain_pair plot_pairs",
    "methods": "METHODS attribute method_options",
    "maps": "centred_map",
    "controls": "blind_maps",
    "evaluation": "Masking evaluate",
    "curves": "Stepping measure_curves",
    "tables": "Measured markdown",
    "plot": "overlay save_figure show_images",
}
_HOMES = {name: module for module, names in _OFFERED.items() for name in names.split()}
__all__ = list(_HOMES)


def _modules() -> list[str]:
    "List the modules of this package."
    from pkgutil import iter_modules
    return [module.name for module in iter_modules(__path__) if not module.name.startswith("_")]


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_modules()})


def __getattr__(name: str):
    "Import what is offered here, or a module, when it is first used."
    from importlib import import_module
    if name not in _HOMES and (name.startswith("_") or name not in _modules()):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; dir({__name__}) lists what there is")
    try: module = import_module(f"{__name__}.{_HOMES.get(name, name)}")
    except ModuleNotFoundError as error:
        raise AttributeError(f"{__name__}.{name} needs {error.name}, which is not installed") from error
    return globals().setdefault(name, getattr(module, name) if name in _HOMES else module)
