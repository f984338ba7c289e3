"""A face may come as a tensor, an array, a picture or a path; what is none is refused, and nothing is padded."""
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise, untrained
from PIL import Image
from test_wrapping import NAMES, resnet

import sdd_face as sf
from sdd_face.inputs import read_faces
from sdd_face.methods import attribute
from sdd_face.sdd import explain
from sdd_face.wrapping import wrap


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> dict:
    """Give the same two faces in every form."""
    tensor = noise(2)
    arrays = tensor.permute(0, 2, 3, 1).numpy()
    pictures = [Image.fromarray(each) for each in arrays]
    paths = [tmp_path_factory.mktemp("faces") / f"{name}.png" for name in ("a b", "ü")]
    for path, picture in zip(paths, pictures): picture.save(path)
    return {
        "tensor": tensor, "tensors": list(tensor), "array": arrays, "arrays": list(arrays), "pictures": pictures,
        "paths": paths, "texts": [str(path) for path in paths], "mixed": (pictures[0], paths[1]),
        "floats": tensor / 255, "float arrays": arrays / np.float32(255)}


@pytest.mark.parametrize("form", [
    "tensors", "array", "arrays", "pictures", "paths", "texts", "mixed", "floats", "float arrays"])
def test_every_form_gives_the_same_map(forms, form):
    model = untrained(6)
    expected = explain(model, forms["tensor"], top_k=3).sdd.map
    torch.testing.assert_close(explain(model, forms[form], top_k=3).sdd.map, expected, rtol=1e-3, atol=1e-4)
    maps = attribute(model, forms[form], method="cam")
    torch.testing.assert_close(maps, attribute(model, forms["tensor"], method="cam"), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model.embed(forms[form]), model.embed(forms["tensor"]), rtol=1e-3, atol=1e-4)


def test_one_face_alone(forms):
    one = read_faces([forms["tensor"][0]])
    assert one.shape == (1, 3, 112, 112) and torch.equal(one, read_faces(forms["paths"][0]))
    pair = sf.explain_pair(sf.load_recognizer("packaged"), forms["paths"][0], forms["pictures"][1])
    assert pair.cosine.shape == (1,)


def test_files_and_pictures_are_brought_to_the_networks_size(forms):
    model = wrap(resnet(), "layer4", names=NAMES, size=(96, 80))
    for form in ("paths", "pictures"): assert explain(model, forms[form]).sdd.map.shape == (2, 96, 80)
    for form in ("tensor", "arrays"):
        with pytest.raises(ValueError, match=r"expected \(B, 3, 96, 80\)"): explain(model, forms[form])


def test_a_narrow_network_takes_the_whole_face(forms):
    model = sf.load_recognizer("random", ["a", "b", "c"], arch="mobilefacenet_96")
    from_files = explain(model, forms["paths"], top_k=2).cams
    torch.testing.assert_close(from_files, explain(model, forms["tensor"], top_k=2).cams, rtol=1e-3, atol=1e-4)


def test_a_photograph_that_is_turned_is_set_upright(forms, tmp_path: Path):
    picture = forms["pictures"][0]
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees to show
    picture.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(read_faces(tmp_path / "turned.png"), read_faces(picture))
    with Image.open(tmp_path / "turned.png") as turned: assert torch.equal(read_faces(turned), read_faces(picture))


def test_what_is_far_from_square_is_explained_with_a_warning(tmp_path: Path):
    Image.new("RGB", (300, 900), "grey").save(tmp_path / "tall.png")
    for given in (tmp_path / "tall.png", Image.new("RGB", (900, 300))):
        with pytest.warns(UserWarning, match="no aligned face is so far from square"): read_faces(given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_faces(Image.new("RGB", (112, 96)))


@pytest.mark.parametrize("given, message", [
    ([], "the list is empty"), (7, "a int is no face"), ([None], "a NoneType is no face"),
    (np.zeros((112, 112)), r"shape \(112, 112\); expected \(H, W, 3\)"),
    (np.zeros((3, 112, 112), np.uint8), r"expected \(H, W, 3\)"),
    ([noise(1)[0], noise(1)[0].float()], "the faces differ"), (Image.new("RGB", (4, 4)), "a face needs 16 x 16"),
    (Image.new("F", (64, 64)), "which value is white is not known")])
def test_what_is_no_face_is_refused(given, message):
    with pytest.raises(ValueError, match=message): read_faces(given)


def test_a_path_to_nothing_says_so(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no.png: no such file"): read_faces([tmp_path / "no.png"])
    (tmp_path / "note.jpg").write_text("a letter")
    with pytest.raises(ValueError, match="note.jpg: not an image"): read_faces(str(tmp_path / "note.jpg"))
