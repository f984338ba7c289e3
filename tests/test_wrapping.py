"""Any network, cut at a layer: exact maps where the rest is linear, a sentence where it is not, and nothing changed."""
from copy import deepcopy

import pytest
import torch
import torchvision
from conftest import untrained
from torch import nn

import sdd_face as sf
from sdd_face.cam import logit_maps
from sdd_face.data import Faces
from sdd_face.evaluation import Masking, evaluate
from sdd_face.finetune import Recipe, finetune
from sdd_face.masks import top_mask
from sdd_face.methods import METHODS, attribute
from sdd_face.model import predict, save_recognizer
from sdd_face.perturbation import Probe, masked_scores
from sdd_face.sanity import cascade
from sdd_face.sdd import explain
from sdd_face.search import searched_map
from sdd_face.wrapping import wrap

NAMES = [f"person {i}" for i in range(6)]
MEAN, STD = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)


class Embedding(nn.Module):
    """Convolutions, then batch norm, flattening and a linear layer, as face networks end."""

    def __init__(self, rest: nn.Module | None = None):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.PReLU(8), nn.Conv2d(8, 12, 3, 4, 1))
        linear = nn.Linear(12 * 25, 10), nn.BatchNorm1d(10), nn.Linear(10, 6)
        self.rest = rest or nn.Sequential(nn.BatchNorm2d(12), nn.Dropout(0.4), nn.Flatten(), *linear)

    def forward(self, x: torch.Tensor) -> torch.Tensor: return self.rest(self.body(x))


def shaken(net: nn.Module) -> nn.Module:
    """Put a random number into every statistic of a batch norm."""
    torch.manual_seed(1)
    for name, value in net.state_dict().items():
        if "running_var" in name: value.uniform_(0.5, 1.5)
        elif "running_mean" in name or name.endswith("bias"): value.normal_(0, 0.1)
    return net.eval()


def resnet() -> nn.Module:
    """Build torchvision's smallest ResNet for six people."""
    torch.manual_seed(0)
    return shaken(torchvision.models.resnet18(num_classes=6))


def pictures(size: int, count: int = 3) -> torch.Tensor:
    """Make images of independent pixels."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def wrapped(): return wrap(resnet(), "layer4", names=NAMES, size=(160, 160), mean=MEAN, std=STD)


@pytest.mark.parametrize("net, layer, size", [
    (resnet, "layer4", 160), (resnet, "layer3", 96), (lambda: shaken(Embedding()), "body", 80),
    (lambda: shaken(torchvision.models.squeezenet1_1(num_classes=6)), "features", 96),
    (lambda: shaken(torchvision.models.mobilenet_v2(num_classes=6)), "features", 96)])
def test_the_mean_of_a_map_and_a_constant_are_the_logit(net, layer, size):
    network = net()
    model = wrap(network, layer, names=NAMES, size=(size, size))
    images = pictures(size)
    x, classes = model.preprocess(images), torch.tensor([[0, 4], [5, 1], [2, 2]])
    with torch.no_grad():
        features, logits = model.features(x), network(x)
        torch.testing.assert_close(model.head(features), logits, rtol=1e-4, atol=1e-4)
        if model.record["head"] != "linear": return  # SqueezeNet ends in a ReLU
        maps, constants = logit_maps(model.head, features, classes)
    torch.testing.assert_close(maps.mean((2, 3)) + constants, logits.gather(1, classes), rtol=1e-3, atol=1e-3)


def test_a_head_that_a_constant_outweighs_is_not_taken_for_linear():
    """What the features add is small beside a trained bias; only half of it passes the ReLU."""
    net = shaken(Embedding(nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(300, 6))))
    with torch.no_grad(): net.rest[2].bias += 1e4
    assert wrap(net, "body", names=NAMES, size=(80, 80)).record["head"] == "not linear"


def test_double_precision_stays_exact():
    model, images = wrap(resnet().double(), "layer4", names=NAMES, size=(96, 96)), pictures(96)
    why = explain(model, images)
    _, bias = model.head.spatial_weights(why.classes)
    with torch.no_grad(): logits = model(model.preprocess(images)).gather(1, why.classes)
    torch.testing.assert_close(why.cams.mean((2, 3)) + bias, logits, rtol=1e-9, atol=1e-9)


def test_maps_are_never_cut_to_a_smaller_network():
    """A map of 112 x 112 is laid over all of the 80 x 80 that the network sees."""
    model = wrap(shaken(Embedding()), "body", names=NAMES, size=(80, 80))
    faces = Faces(pictures(80), torch.tensor([0, 0, 1]), NAMES, torch.arange(3), list("abc"))
    large, small = sf.blind_maps(3)["disc"], sf.blind_maps(3, size=(80, 80))["disc"]
    found = evaluate(model, faces, {"large": large, "small": small}, masking=Masking(draws=0))
    assert (found.drop("deletion", "large") - found.drop("deletion", "small")).abs().max() < 0.05
    with pytest.raises(ValueError, match=r"expected \(M, 80, 80\)"):
        masked_scores(model, faces.images, faces.labels, torch.ones(1, 112, 112), probe=Probe())


def test_which_heads_are_linear():
    def head_of(net: nn.Module, layer: str) -> str: return wrap(net, layer, names=NAMES, size=(80, 80)).record["head"]
    assert head_of(resnet(), "layer4") == head_of(shaken(Embedding()), "body") == "linear"
    assert head_of(resnet(), "layer3") == "not linear"
    ends = nn.Sequential(nn.Flatten(), nn.Linear(300, 10), nn.ReLU(), nn.Linear(10, 6))
    assert head_of(shaken(Embedding(ends)), "body") == "not linear"


def test_a_pool_head_has_the_maps_of_our_own(images):
    ours = untrained(6)
    chain = nn.Sequential(ours.backbone.input_layer, ours.backbone.body, ours.head).eval()
    model = wrap(chain, "1", names=ours.names)
    one, other = explain(ours, images), explain(model, images)
    torch.testing.assert_close(other.cams, one.cams, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(other.sdd.map, one.sdd.map, rtol=1e-3, atol=1e-3)


def test_pixels_are_prepared_as_it_was_told():
    images = pictures(80)
    for color, channels in (("rgb", [0, 1, 2]), ("bgr", [2, 1, 0])):
        model = wrap(shaken(Embedding()), "body", names=NAMES, size=(80, 80), mean=MEAN, std=STD, color=color)
        by_hand = (images[:, channels].float() - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        torch.testing.assert_close(model.preprocess(images), by_hand)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_explains_it_or_says_why_not(wrapped, method):
    few = {"lime": {"samples": 20}, "rise": {"masks": 20}, "occlusion": {"window": 40, "stride": 40}}
    options = few.get(method, {"steps": 4} if method == "integrated_gradients" else {})
    if method == "scorecam": pytest.skip("512 passes for each face")
    if METHODS[method].packages: pytest.importorskip("captum")
    try: found = attribute(wrapped, pictures(160, 2), method=method, **options)
    except ValueError as error: assert method in ("guided_backprop", "guided_gradcam", "deeplift"), error
    else: assert found.shape == (2, 160, 160) and found.isfinite().all()


def test_a_head_that_is_not_linear_has_no_exact_map():
    model = wrap(resnet(), "layer3", names=NAMES, size=(96, 96))
    for ask in (lambda: explain(model, pictures(96)), lambda: attribute(model, pictures(96), method="sdd")):
        with pytest.raises(ValueError, match="linear"): ask()
    assert attribute(model, pictures(96), method="gradcam").shape == (3, 96, 96)


def test_it_is_measured_like_all_others(wrapped):
    images, people = pictures(160, 4), torch.tensor([0, 0, 1, 1])
    faces = Faces(images, people, NAMES, torch.arange(4), list("abcd"))
    disc = sf.blind_maps(4, size=wrapped.backbone.size)["disc"]
    found = evaluate(wrapped, faces, {"sdd": None, "disc": disc}, masking=Masking(draws=2))
    assert found.maps == ["sdd", "disc", "random"] and found.drop("deletion", "sdd").isfinite().all()
    chosen = top_mask(disc[None], 0.2, size=(160, 160))[0]
    assert chosen[60:100, 60:100].all() and not chosen[:20].any()
    curves = sf.measure_curves(wrapped, faces, {"disc": disc}, stepping=sf.Stepping(steps=2))
    assert curves.area("deletion", "disc").isfinite().all()
    assert searched_map(wrapped, images[:1]).shape == (1, 40, 40)  # a place for every 4 pixels


def test_nothing_of_it_is_changed():
    net = resnet()
    before, hooks = deepcopy(net.state_dict()), [len(each._forward_hooks) for each in net.modules()]
    model = wrap(net, "layer4", names=NAMES, size=(96, 96))
    explain(model, pictures(96))
    with pytest.raises(ValueError, match="expected"): model.preprocess(pictures(80))
    assert [len(each._forward_hooks) for each in net.modules()] == hooks and not net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert {id(each) for each in model.parameters()} == {id(each) for each in net.parameters()}
    assert torch.equal(predict(deepcopy(model), pictures(96)), predict(model, pictures(96)))


@pytest.mark.parametrize("options, message", [
    ({"layer": "layer5"}, "no layer 'layer5'; those with places: .*layer4"),
    ({"layer": ""}, "there is no layer ''"),
    ({"layer": "fc"}, r"'fc' gives \(1, 6\); expected \(B, K, h, w\), as these do: .*layer4"),
    ({"layer": "layer4.1.conv1"}, "does not follow from 'layer4.1.conv1' alone"),
    ({"names": ["Ada"]}, "1 names for 6 classes"),
    ({"color": "grey"}, "color is 'grey'; expected 'rgb' or 'bgr'")])
def test_refused(options, message):
    with pytest.raises(ValueError, match=message): wrap(resnet(), **{"layer": "layer4", "size": (96, 96)} | options)


def test_refused_in_training_mode_and_without_logits():
    with pytest.raises(ValueError, match="training mode"): wrap(resnet().train(), "layer4")
    maps_only = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    expected = r"the network gives \(1, 8, 110, 110\); expected logits"
    with pytest.raises(ValueError, match=expected): wrap(maps_only.eval(), "0")


def test_another_size_is_refused_and_never_padded(wrapped):
    small = pictures(112)
    for ask in (lambda: explain(wrapped, small), lambda: predict(wrapped, small), lambda: attribute(wrapped, small)):
        with pytest.raises(ValueError, match=r"\(3, 3, 112, 112\); expected \(B, 3, 160, 160\)"): ask()
    faces = Faces(small, torch.tensor([0, 0, 1]), NAMES, torch.arange(3), list("abc"))
    with pytest.raises(ValueError, match="160"): evaluate(wrapped, faces)


def test_what_it_cannot_do_it_says(wrapped, tmp_path):
    faces = Faces(pictures(160), torch.tensor([0, 0, 1]), NAMES, torch.arange(3), list("abc"))
    with pytest.raises(ValueError, match="wrapped"): save_recognizer(wrapped, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="wrap"): finetune(wrapped, faces, faces[:0], recipe=Recipe(epochs=1))
    with pytest.raises(ValueError, match="embedding"): wrapped.embed(faces.images)
    with pytest.raises(ValueError, match="embedding"): sf.explain_pair(wrapped, faces.images[:1], faces.images[1:2])
    with pytest.raises(ValueError, match="wrapped"): cascade(wrapped, faces, {})
    assert "linear from there on" in repr(wrapped) and "layer4 (512, 5, 5)" in repr(wrapped)
