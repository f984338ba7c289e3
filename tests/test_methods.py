"""Every method through one function: equal to torchcam, complete, repeatable, without a trace; misfits are refused."""
import gc
import resource
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from sdd_face.cam import logit_maps
from sdd_face.masks import fill_for, top_mask
from sdd_face.methods import METHODS, Method, attribute, method_options
from sdd_face.model import FaceRecognizer
from sdd_face.perturbation import Probe, masked_scores
from sdd_face.sdd import explain

NAMES = [f"person {i}" for i in range(9)]
QUICK = {"integrated_gradients": {"steps": 4}, "rise": {"masks": 8}, "lime": {"samples": 16}}
QUICK["occlusion"] = {"window": 56, "stride": 28}
COUNTS = {"channels": 96, "windows": 9, "masks": 8, "samples": 16, "steps": 4}  # of the rules for passes
KINDS = [(head, classifier) for head in ("pool", "own") for classifier in ("linear", "cosine")]
FEATURES = [name for name, method in METHODS.items() if method.family == "features"]
CHEAP = [*FEATURES, "saliency", "guided_backprop", "guided_gradcam", "deeplift"]
CAPTUM = [name for name, method in METHODS.items() if "captum" in method.packages]


def recognizer(arch: str = "ir_tiny", head: str = "pool", classifier: str = "linear") -> FaceRecognizer:
    """Build a recogniser with random weights and statistics."""
    torch.manual_seed(1)
    model = FaceRecognizer(arch, NAMES, head=head, classifier=classifier)
    for name, value in model.state_dict().items():
        if "running_var" in name: value.uniform_(0.5, 1.5)
        elif "running_mean" in name: value.normal_(0, 0.1)
    return model.eval()


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def any_model(request) -> FaceRecognizer:
    return recognizer(head=request.param[0], classifier=request.param[1])


@pytest.fixture(scope="module")
def model() -> FaceRecognizer: return recognizer()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def seen(model: FaceRecognizer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute features and logits."""
    with torch.no_grad():
        features = model.features(model.preprocess(images))
        return features, model.head(features)


def raw(name: str, model: FaceRecognizer, images: Tensor, classes: Tensor, **options) -> Tensor:
    """Compute a map of the features as it is, 7 x 7 and in the model's precision."""
    return METHODS[name].compute(model, *seen(model, images), classes, **options)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    """Compare relative to the largest value."""
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


def test_the_papers_methods_are_all_there():
    wanted = "saliency lime deeplift guided_backprop cam gradcam guided_gradcam rise sdd_original sdd gradcam_pp "
    wanted += "layercam hirescam scorecam finercam integrated_gradients occlusion"
    assert set(METHODS) == set(wanted.split())
    for each in METHODS.values(): assert each.title and each.paper and each.forward and each.backward and each.assumes


@pytest.mark.parametrize("name", METHODS)
def test_a_finite_map_of_each_face_or_a_sentence(any_model, images, name):
    if name in CAPTUM: pytest.importorskip("captum")
    if name == "deeplift" and any_model.record["classifier"] == "cosine":
        with pytest.raises(ValueError, match="does not know what normalize sends back"):
            attribute(any_model, images, method=name)
        return
    maps = attribute(any_model, images, target=torch.tensor([0, 4, 8]), method=name, **QUICK.get(name, {}))
    assert maps.shape == (3, 112, 112) and maps.dtype == torch.float32
    assert maps.isfinite().all() and not maps.requires_grad
    assert maps.flatten(1).std(1).max() > 0, "Guided Grad-CAM alone is 0 where Grad-CAM is nowhere positive"
    others = attribute(any_model, images, target=torch.tensor([1, 5, 8]), method=name, **QUICK.get(name, {}))
    assert not close(others[:2], maps[:2]), "the class does not matter"
    assert close(others[2], maps[2])


@pytest.mark.parametrize("name", METHODS)
def test_several_classes_of_each_face(images, name):
    """As one class after the other, but features and masks are seen once."""
    if name in CAPTUM: pytest.importorskip("captum")
    model, count = recognizer(), []
    forward, classes = model.backbone.features, torch.tensor([[0, 4], [8, 1], [3, 2]])
    options = QUICK.get(name, {})
    one = torch.stack([attribute(model, images, target=each, method=name, **options) for each in classes.T], 1)
    model.backbone.features = lambda x: count.append(len(x)) or forward(x)
    both = attribute(model, images, target=classes, method=name, batch_size=2, **options)
    assert both.shape == (3, 2, 112, 112)
    torch.testing.assert_close(both, one, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
    passes = eval(METHODS[name].forward, COUNTS)
    assert sum(count) == 3 * passes * (2 if METHODS[name].family == "pixels" else 1)


@pytest.mark.parametrize("name", CHEAP + ["occlusion", "rise"])
def test_the_size_is_what_the_network_sees(images, name):
    narrow = recognizer("mobilefacenet_96")
    assert attribute(narrow, images[:1], target=3, method=name, **QUICK.get(name, {})).shape == (1, 112, 96)


@pytest.mark.parametrize("name", METHODS)
def test_one_at_a_time_or_together(model, images, name):
    if name in CAPTUM: pytest.importorskip("captum")
    options = QUICK.get(name, {})
    together = attribute(model, images, method=name, **options)
    tolerance = {"rtol": 1e-3, "atol": 1e-4 * float(together.abs().max())}
    for size in (1, 2):
        alone = attribute(model, images, method=name, batch_size=size, **options)
        torch.testing.assert_close(alone, together, **tolerance)
    torch.testing.assert_close(attribute(model, images[1:2], method=name, **options), together[1:2], **tolerance)


def test_without_a_class_it_is_the_predicted_one(model, images):
    predicted = seen(model, images)[1].argmax(1)
    for name in CHEAP:
        asked = attribute(model, images, target=predicted, method=name)
        assert close(attribute(model, images, method=name), asked, 1e-5)
    one, each = (attribute(model, images, target=target, method="cam") for target in (3, torch.tensor([3, 3, 3])))
    assert close(one, each, 0)
    floats, pixels = (attribute(model, given, target=3, method="saliency") for given in (images / 255, images))
    assert close(floats, pixels, 1e-3)


# What a pooling head makes equal, and what it does not.
def test_four_names_for_one_map(images):
    model, classes = recognizer().double(), torch.tensor([0, 4, 8])
    cam = raw("cam", model, images, classes)
    for name, options in (("gradcam", {}), ("hirescam", {}), ("layercam", {"gradients": "all"})):
        torch.testing.assert_close(49 * raw(name, model, images, classes, **options), cam, rtol=1e-10, atol=1e-12)
    assert not close(49 * raw("layercam", model, images, classes), cam, 0.01)


def test_only_hirescam_is_exact_on_the_own_head(images):
    model, classes = recognizer(head="own").double(), torch.tensor([0, 4, 8])
    cam = raw("cam", model, images, classes)
    torch.testing.assert_close(49 * raw("hirescam", model, images, classes), cam, rtol=1e-9, atol=1e-12)
    assert not close(49 * raw("gradcam", model, images, classes), cam, 0.1)


def test_gradient_maps_of_a_pooled_cosine_sum_to_zero(images):
    maps = raw("gradcam", recognizer(classifier="cosine").double(), images, torch.tensor([0, 4, 8]))
    assert (maps.sum((1, 2)).abs() < 1e-12 * maps.abs().sum((1, 2))).all()


# SDD and its relatives.
def test_sdd_is_the_divergence(any_model, images):
    assert torch.equal(attribute(any_model, images), explain(any_model, images).sdd.divergence)
    asked = attribute(any_model, images, target=3, method="sdd", top_k=4)
    assert torch.equal(asked, explain(any_model, images, target=3, top_k=4).sdd.divergence)


def test_sdd_that_is_resized_last_has_an_order_of_its_own(model, images):
    assert torch.equal(attribute(model, images, order="map"), explain(model, images, order="map").sdd.map)
    assert not torch.equal(top_mask(attribute(model, images, order="map")), top_mask(attribute(model, images)))


def test_original_sdd_by_hand(model, images):
    features, logits = seen(model, images)
    classes = logits.argsort(1, descending=True)[:, :5]
    x, _ = logit_maps(model.head, features, classes)
    others = x[:, 1:].sum(1)
    assert close(raw("sdd_original", model, images, classes[:, 0]), 0.3 * (5 * x[:, 0] - others), 1e-6)
    scaled = raw("sdd_original", model, images, classes[:, 0], scale=2.0, alpha=0.1)
    assert close(scaled, 0.1 * (2 * x[:, 0] - others), 1e-6)
    maps = [attribute(model, images, method="sdd_original", alpha=alpha) for alpha in (0.1, 0.2)]
    tops = [each.flatten(1).argsort(1)[:, -2500:].sort(1)[0] for each in maps]
    assert torch.equal(*tops)


@pytest.mark.parametrize("name", ["sdd", "sdd_original", "finercam"])
def test_other_classes_may_be_given(model, images, name):
    ranked = seen(model, images)[1].argsort(1, descending=True)
    options = {"target": ranked[:, 0], "method": name}
    default = attribute(model, images, **options)
    same = attribute(model, images, **options, against=ranked[:, 1:5], batch_size=2)
    torch.testing.assert_close(same, default, rtol=1e-4, atol=1e-5)
    assert not close(attribute(model, images, **options, against=ranked[:, 5:9]), default, 0.01)


def test_sdd_is_finercam_with_gamma_four_fifths(model, images):
    """On a pooling head with F = |S| = 5: D = 5 (x_t - 0.8 mean of the others)."""
    finer = attribute(model, images, method="finercam", gamma=0.8)
    assert close(finer * 49 * 5 * 0.3, attribute(model, images, method="sdd_original"), 1e-4)


# Contributions.
@pytest.mark.parametrize("head", ["pool", "own"])
@pytest.mark.parametrize("arch", ["ir_tiny", "mobilefacenet"])
@pytest.mark.parametrize("fill", ["black", "grey"])
def test_deeplift_sums_to_the_difference_of_logits(images, arch, head, fill):
    model = recognizer(arch, head).double()
    with torch.no_grad():
        before, after = (model(x)[0, 4] for x in (fill_for(model, images[:1], fill=fill), model.preprocess(images[:1])))
    maps = METHODS["deeplift"].compute(model, images[:1], torch.tensor([4]), fill=fill)
    assert (maps.sum() - (after - before)).abs() < 1e-11 * maps.abs().sum()
    rounded = attribute(model.float(), images[:1], target=4, method="deeplift", fill=fill)
    assert (rounded.sum() - (after - before)).abs() < 1e-5 * maps.abs().sum()


def test_integrated_gradients_approach_the_difference(model, images):
    pytest.importorskip("captum")
    with torch.no_grad():
        difference = model(model.preprocess(images))[:, 4] - model(fill_for(model, images, fill="black"))[:, 4]

    def error(steps: int) -> Tensor:
        maps = attribute(model, images, target=4, method="integrated_gradients", steps=steps)
        return (maps.sum((1, 2)) - difference).abs().mean()

    far, near = error(2), error(64)
    assert near < 0.5 * far and near < 0.05 * difference.abs().mean()


def test_guided_gradcam_is_the_product(model, images):
    fine, coarse, both = (attribute(model, images, target=3, method=name)
                          for name in ("guided_backprop", "gradcam", "guided_gradcam"))
    torch.testing.assert_close(both, fine * coarse.clamp(min=0))


# Against torchcam, which clips and scales.
def scaled(maps: Tensor) -> Tensor:
    """Do to raw maps what torchcam does."""
    maps = maps.clamp(min=0)
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (maps.amax((1, 2), keepdim=True) + 1e-8)


@pytest.mark.parametrize("name, theirs", [("gradcam", "GradCAM"), ("layercam", "LayerCAM"), ("finercam", "FinerCAM")])
def test_equal_to_torchcam(images, name, theirs):
    methods = pytest.importorskip("torchcam.methods")
    model = recognizer().double()
    options = {"num_references": 4} if theirs == "FinerCAM" else {}
    ranked = seen(model, images)[1].argsort(1, descending=True)
    classes = ranked[torch.arange(3), torch.tensor([0, 1, 5])]  # the nearest logits need not be the highest
    with getattr(methods, theirs)(model, "backbone.body", input_shape=(3, 112, 112), **options) as extractor:
        maps, = extractor(classes.tolist(), model(model.preprocess(images)))
    torch.testing.assert_close(scaled(raw(name, model, images, classes)), maps.double(), rtol=1e-5, atol=1e-5)


def test_grad_cam_pp_by_its_definition(images):
    """Alpha from true second and third derivatives of exp(logit), which its paper takes.

    Torchcam 0.5 forgets to divide by them, and adds 1e-8 to numbers as small."""
    model, classes = recognizer(head="own").double(), torch.tensor([4, 4, 4])
    features, logits = seen(model, images)
    weights = torch.zeros(3, 96, dtype=torch.float64)
    gradient = torch.autograd.functional.jacobian(lambda f: model.head(f)[:, 4].sum(), features)
    for k in (0, 50):
        for place in range(49):
            t = torch.zeros(3, dtype=torch.float64, requires_grad=True)
            bump = torch.zeros_like(features[0]).view(96, 49).index_fill(1, torch.tensor(place), 1.0).view(96, 7, 7)
            bump[[i for i in range(96) if i != k]] = 0
            y = (model.head(features + t[:, None, None, None] * bump)[:, 4] - logits[:, 4]).exp()
            first, = torch.autograd.grad(y.sum(), t, create_graph=True)
            second, = torch.autograd.grad(first.sum(), t, create_graph=True)
            third, = torch.autograd.grad(second.sum(), t)
            alpha = second / (2 * second + features[:, k].sum((1, 2)) * third)
            weights[:, k] += (alpha * first.clamp(min=0)).detach()
    ours = 1 / (2 + gradient * features.sum((2, 3), keepdim=True)) * gradient.clamp(min=0)
    torch.testing.assert_close(ours.sum((2, 3))[:, [0, 50]], weights[:, [0, 50]], rtol=1e-9, atol=1e-14)
    expected = torch.einsum("bk,bkyx->byx", ours.sum((2, 3)), features)
    torch.testing.assert_close(raw("gradcam_pp", model, images, classes), expected, rtol=1e-9, atol=1e-12)


# What it costs.
@pytest.mark.parametrize("name", METHODS)
def test_the_registry_counts_passes_right(images, name):
    if name in CAPTUM: pytest.importorskip("captum")
    model, count = recognizer(), []
    forward = model.backbone.features
    model.backbone.features = lambda x: count.append(len(x)) or forward(x)
    attribute(model, images, target=3, method=name, **QUICK.get(name, {}))
    assert sum(count) == 3 * eval(METHODS[name].forward, COUNTS)


# Without a trace.
def state(model: FaceRecognizer) -> tuple:
    """List all that an explanation could change."""
    hooks = 0
    for each in model.modules():
        hooks += sum(len(found) for name, found in vars(each).items() if name.endswith("_hooks") and found is not None)
    modules = [(each.training, sorted(vars(each))) for each in model.modules()]
    parameters = [(each.requires_grad, each.grad is None) for each in model.parameters()]
    return hooks, modules, parameters, [each.clone() for each in model.state_dict().values()]


def same(a: tuple, b: tuple) -> bool: return a[:3] == b[:3] and all(torch.equal(x, y) for x, y in zip(a[3], b[3]))


def test_nobodys_model_is_changed(any_model, images):
    any_model.head.classifier.weight.requires_grad_(False)
    before = state(any_model)
    assert before[0] == 0
    for name in METHODS:
        if name in CAPTUM and not find_spec("captum"): continue
        try: attribute(any_model, images[:1], target=3, method=name, **QUICK.get(name, {}))
        except ValueError as error: assert "sends back" in str(error)
        assert same(state(any_model), before), name
    any_model.head.classifier.weight.requires_grad_(True)


@pytest.mark.parametrize("name", METHODS)
def test_nor_by_an_error_in_the_middle(images, name):
    if name in CAPTUM: pytest.importorskip("captum")
    model, calls = recognizer(), []

    def fail(x: Tensor) -> Tensor:
        calls.append(1)
        raise RuntimeError("out of memory")

    model.backbone.body[3].forward = fail
    before = state(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        attribute(model, images, target=3, method=name, **QUICK.get(name, {}))
    assert calls and same(state(model), before)
    assert torch.is_grad_enabled() and torch.sigmoid(torch.zeros(1)).item() == 0.5


def test_two_hundred_calls_leave_nothing_behind(model, images):
    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(each), Tensor) for each in gc.get_objects())

    few = {"rise": {"masks": 4}, "lime": {"samples": 4}, "integrated_gradients": {"steps": 2}}
    few["occlusion"], names = {"window": 56, "stride": 56}, list(METHODS)
    for name in names: attribute(model, images[:1], target=3, method=name, **few.get(name, {}))
    before, peak = tensors(), 0
    for i in range(200):
        name = names[i % len(names)]
        attribute(model, images[:1], target=i % 9, method=name, **few.get(name, {}))
        if i == 99: peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert tensors() == before and state(model)[0] == 0
    assert grown / (1024 if sys.platform == "linux" else 1024**2) < 20, "megabytes"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_mode_does_not_matter(model, images, mode):
    plain = {name: attribute(model, images[:1], target=3, method=name) for name in CHEAP}
    with mode():
        copies = images[:1].clone()  # under inference_mode not an ordinary tensor
        for name in CHEAP: assert torch.equal(attribute(model, copies, target=3, method=name), plain[name])
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)


# Refused.
@pytest.mark.parametrize("wrong, message", [
    ({"method": "magic"}, "unknown method 'magic'; expected one of saliency, lime, deeplift"),
    ({"target": 9}, "target is 9; the model knows 0 to 8"),
    ({"target": -1}, "target is -1; the model knows 0 to 8"),
    ({"target": torch.tensor([0, 1, 40])}, "target is 40; the model knows 0 to 8"),
    ({"target": torch.tensor([0, 1])}, r"target is \(2,\) of torch.int64; expected one integer, \(3,\)"),
    ({"target": 1.5}, r"target is \(\) of torch.float32; expected one integer"),
    ({"target": torch.zeros(3, 0, dtype=torch.int64)}, r"target is \(3, 0\) of torch.int64; .* or \(3, S\)"),
    ({"top_k": 10}, "top_k is 10; expected 1 to 9, the people that the model knows"),
    ({"top_k": 1}, "top_k is 1; expected 2 or more"),
    ({"steps": 3}, "sdd has no option 'steps'; it takes batch_size, against, top_k"),
    ({"method": "saliency", "top_k": 3}, "saliency has no option 'top_k'; it takes batch_size$"),
    ({"against": torch.zeros(2, 4, dtype=torch.int64)}, r"against is \(2, 4\)"),
    ({"against": torch.zeros(3, dtype=torch.int64)}, r"against is \(3,\)"),
    ({"against": torch.zeros(3, 4)}, "of torch.float32"),
    ({"against": torch.ones(3, 1, dtype=torch.bool)}, "of torch.bool"),
    ({"against": torch.full((3, 4), 9)}, "against is 9; the model knows 0 to 8"),
    ({"target": 2, "against": torch.full((3, 2), 2)}, "against holds the explained class itself"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"method": "layercam", "gradients": "x"}, "gradients is 'x'"),
    ({"method": "sdd_original", "alpha": -1}, "alpha is -1"),
    ({"method": "sdd_original", "scale": "x"}, "scale is 'x'"),
    ({"method": "deeplift", "fill": "x"}, "fill is 'x'"),
    ({"method": "integrated_gradients", "steps": 0}, "steps is 0")])
def test_what_cannot_be_done_is_refused(model, images, wrong, message):
    if wrong.get("method") in CAPTUM: pytest.importorskip("captum")
    with pytest.raises(ValueError, match=message): attribute(model, images, **wrong)


@pytest.mark.parametrize("name", ["sdd", "saliency", "rise"])
@pytest.mark.parametrize("wrong, message", [
    (torch.zeros(0, 3, 112, 112, dtype=torch.uint8), "the batch is empty"),
    (torch.zeros(3, 112, 112, dtype=torch.uint8), r"expected \(B, 3, 112, 112\)"),
    (torch.full((1, 3, 112, 112), torch.nan), "NaN or infinity"),
    (torch.full((1, 3, 112, 112), 3.0), "reach from 3 to 3")])
def test_images_that_are_none_are_refused(model, name, wrong, message):
    for classes in (None, 0):
        with pytest.raises(ValueError, match=message): attribute(model, wrong, target=classes, method=name)


def test_models_that_cannot_be_explained_are_refused(images):
    with pytest.raises(ValueError, match="training mode"): attribute(recognizer().train(), images)
    half_asleep = recognizer()
    half_asleep.backbone.body[0].train()
    with pytest.raises(ValueError, match="training mode"): attribute(half_asleep, images, method="saliency")
    with pytest.raises(ValueError, match="knows no people"): attribute(FaceRecognizer("ir_tiny", []).eval(), images)
    with pytest.raises(ValueError, match="model is a Linear; expected a FaceRecognizer"):
        attribute(nn.Linear(2, 2), images)
    one = FaceRecognizer("ir_tiny", ["alone"]).eval()
    with pytest.raises(ValueError, match="top_k is 5; expected 1 to 1, the people that the model knows"):
        attribute(one, images)
    assert attribute(one, images, method="gradcam").isfinite().all()


@pytest.mark.parametrize("name", ["guided_backprop", "guided_gradcam", "deeplift"])
def test_squeeze_and_excitation_is_refused(images, name):
    squeezed = FaceRecognizer("ir_se_50", NAMES).eval()
    with pytest.raises(ValueError, match="does not know what sigmoid sends back"):
        attribute(squeezed, images[:1], method=name)


@pytest.mark.parametrize("name", ["cam", "sdd", "sdd_original"])
def test_a_head_without_a_map_is_refused(images, name):
    model = recognizer()
    layers = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 20), nn.ReLU(), nn.Linear(20, 9)
    model.head = nn.Sequential(*layers).eval()
    message = f"{name} assumes a head that is linear in the features; this Sequential is not"
    with pytest.raises(ValueError, match=message): attribute(model, images, method=name)
    assert attribute(model, images, target=3, method="gradcam").isfinite().all()


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_module_is_refused(images):
    """Its activations are out of sight, and would send back the plain gradient."""
    model = recognizer()
    model.backbone.input_layer = torch.jit.trace(model.backbone.input_layer, torch.randn(1, 3, 112, 112))
    with pytest.raises(ValueError, match="scripted module"): attribute(model, images[:1], method="guided_backprop")


@pytest.mark.parametrize("name", CAPTUM)
def test_a_missing_package_names_the_extra(model, images, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    message = rf"{name} needs captum, which is not installed; pip install 'sdd_face\[methods\]'"
    with pytest.raises(ModuleNotFoundError, match=message): attribute(model, images, method=name)
    assert attribute(model, images, method="deeplift").isfinite().all(), "ours needs no package"


def test_options_are_listed():
    assert method_options("saliency") == {}
    assert method_options("finercam") == {"against": None, "top_k": 5, "gamma": 0.6}
    assert method_options("rise").items() >= {"masks": 1000, "fill": "black", "score": "probability"}.items()
    assert all("batch_size" not in method_options(name) for name in METHODS)
    with pytest.raises(ValueError, match="unknown method"): method_options("magic")


# A method of one's own: one function, and one line of the registry.
def of_the_features(model, features, logits, target, *, power: float = 2.0) -> Tensor:
    return logits.gather(1, target[:, None])[:, :, None] * features.abs().pow(power).sum(1)


def of_the_pixels(model, images, target, *, power: float = 2.0) -> Tensor:
    x = model.preprocess(images).requires_grad_()
    logits = model(x)
    if target is None: target = logits.argmax(1)
    return torch.autograd.grad(logits.gather(1, target[:, None]).sum(), x)[0].abs().pow(power).sum(1)


def of_the_masks(model, images, target, *, power: float = 2.0, probe: Probe = Probe(score="logit")) -> Tensor:
    halves = torch.zeros(2, 112, 112)
    halves[0, :56] = halves[1, 56:] = 1
    scores = masked_scores(model, images, target, halves, probe=probe)  # (B, 2) or (B, 2, S)
    return torch.einsum("bm...,mhw->b...hw", scores.sign() * scores.abs().pow(power), halves)


@pytest.mark.parametrize("family, compute, probed", [
    ("features", of_the_features, {}), ("pixels", of_the_pixels, {}),
    ("masks", of_the_masks, {"fill": "black", "score": "logit"})])
def test_a_method_of_ones_own(model, images, monkeypatch, family, compute, probed):
    monkeypatch.setitem(METHODS, "mine", Method("Mine", "nobody's", family, compute, "1", "1", "nothing"))
    assert method_options("mine") == {"power": 2.0} | probed
    with pytest.raises(ValueError, match="mine has no option 'steps'; it takes batch_size, power"):
        attribute(model, images, method="mine", steps=3)
    predicted, classes = seen(model, images)[1].argmax(1), torch.tensor([[0, 4], [8, 1], [3, 2]])
    maps = attribute(model, images, method="mine")
    assert maps.shape == (3, 112, 112) and maps.std() > 0
    assert close(attribute(model, images, target=predicted, method="mine", batch_size=2), maps, 1e-5)
    assert close(attribute(model, images, method="mine", power=2.0), maps, 0)
    assert not close(attribute(model, images, method="mine", power=1.0), maps, 0.01)
    several = attribute(model, images, target=classes, method="mine")
    assert several.shape == (3, 2, 112, 112)
    for s in range(2): assert close(several[:, s], attribute(model, images, target=classes[:, s], method="mine"))
    assert close(attribute(model, images, target=4, method="mine")[:1], several[:1, 1])
    if probed:
        assert not close(attribute(model, images, method="mine", fill="mean"), maps, 0.01)
        assert not close(attribute(model, images, method="mine", score="probability"), maps, 0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", METHODS)
def test_on_a_gpu(images, name):
    if name in CAPTUM: pytest.importorskip("captum")
    model = recognizer()
    expected = attribute(model, images, target=3, method=name, **QUICK.get(name, {}))
    maps = attribute(model.cuda(), images, target=3, method=name, **QUICK.get(name, {}))
    assert maps.device.type == "cpu"
    assert torch.corrcoef(torch.stack([maps.flatten(), expected.flatten()]))[0, 1] > 0.95
    target = torch.tensor([3, 3, 3])
    assert attribute(model, images.cuda(), target=target, method=name, **QUICK.get(name, {})).is_cuda
