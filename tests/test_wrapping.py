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
from sdd_face.sanity import cascade, randomized, stages
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
def test_every_method_explains_it(wrapped, method):
    few = {"lime": {"samples": 20}, "rise": {"masks": 20}, "occlusion": {"window": 40, "stride": 40}}
    options = few.get(method, {"steps": 4} if method == "integrated_gradients" else {})
    if method == "scorecam": pytest.skip("512 passes for each face")
    if METHODS[method].packages: pytest.importorskip("captum")
    found = attribute(wrapped, pictures(160, 2), method=method, **options)
    assert found.shape == (2, 160, 160) and found.isfinite().all() and found.std() > 0
    if method == "deeplift":
        images, best = pictures(160, 2), predict(wrapped, pictures(160, 2)).argmax(1, keepdim=True)
        jump = (predict(wrapped, images) - predict(wrapped, torch.zeros_like(images))).gather(1, best)[:, 0]
        torch.testing.assert_close(found.sum((1, 2)), jump, rtol=1e-3, atol=1e-3)


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
    ({"layer": "fc"}, r"'fc' gives \(1, 6\); expected \(B, K, h, w\).*: .*layer4"),
    ({"layer": "layer4", "reshape": (7, 7)}, r"gives \(1, 512, 3, 3\); expected tokens \(B, N, K\) for 7 x 7 places"),
    ({"std": 0}, "std is 0; expected a number"), ({"mean": (1.0, 2.0)}, r"mean is \(1.0, 2.0\); expected a number"),
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


def test_a_classifier_has_no_embedding(wrapped):
    faces = pictures(160)
    with pytest.raises(ValueError, match=r"wrapped as a classifier; .* names=\[\]"): wrapped.embed(faces)
    with pytest.raises(ValueError, match="wrapped as a classifier"): sf.explain_pair(wrapped, faces[:1], faces[1:2])
    with pytest.raises(ValueError, match="a classifier of its own; wrap it without"): wrapped.with_people(["Ada"])
    assert "linear from there on" in repr(wrapped) and "layer4 (512, 5, 5)" in repr(wrapped)


# Heads that divide

class Length(nn.Module):
    """Divide each embedding by its length, as one may write it."""

    def __init__(self, divide):
        super().__init__()
        self.divide = divide

    def forward(self, x: torch.Tensor) -> torch.Tensor: return self.divide(x)


def written(divide) -> nn.Module:
    """Build a network whose pooled features are divided by something, then classified."""
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10), Length(divide), nn.Linear(10, 6)
    return shaken(Embedding(nn.Sequential(*head)))


def residual(model, images: torch.Tensor) -> tuple[float, float]:
    """Give the largest error of mean + constant, and what the features add, both relative to the largest logit."""
    people = torch.arange(len(model.names))
    with torch.no_grad():
        x = model.preprocess(images)
        maps, constants = logit_maps(model.head, model.features(x), people)
        logits = model(x)
    size = logits.abs().max()
    error, added = maps.mean((2, 3)) + constants - logits, logits - constants
    return float(error.abs().max() / size), float(added.abs().max() / size)


DIVIDE = {
    "normalize": nn.functional.normalize, "over the norm": lambda x: x / x.norm(dim=1, keepdim=True),
    "expanded": lambda x: x / x.norm(dim=1, keepdim=True).clamp_min(1e-9).expand_as(x),
    "rsqrt": lambda x: x * x.square().sum(1, keepdim=True).rsqrt(),
    "in place": lambda x: x.clone().div_(x.std(1)[:, None]),
    "linalg": lambda x: torch.div(x, torch.linalg.vector_norm(x, dim=1, keepdim=True)),
    "layer norm": nn.LayerNorm(10), "group norm": nn.GroupNorm(2, 10), "rms norm": nn.RMSNorm(10)}


@pytest.mark.parametrize("name", DIVIDE)
def test_a_head_that_divides_is_exact_through_the_divisor(name):
    model = wrap(written(DIVIDE[name]), "body", names=NAMES, size=(80, 80))
    error, added = residual(model, pictures(80))
    assert model.record["head"] == "linear but for a division" and error < 1e-5 and added > 1e-2
    exact = residual(wrap(written(DIVIDE[name]).double(), "body", names=NAMES, size=(80, 80)), pictures(80))
    assert exact[0] < 1e-12


def test_layer_norm_with_trained_biases_is_exact():
    """The biases stand outside the division: divided too, mean + constant was off by 11.6 for logits up to 2.9."""
    net = written(nn.LayerNorm(10))
    with torch.no_grad(): net.rest[3].divide.bias.normal_(0, 5)
    model = wrap(net, "body", names=NAMES, size=(80, 80))
    assert residual(model, pictures(80))[0] < 1e-5
    why = explain(model, pictures(80))
    weights, constants = model.head.image_weights(model.features(model.preprocess(pictures(80))), why.classes)
    logits = predict(model, pictures(80)).gather(1, why.classes)
    torch.testing.assert_close(why.cams.mean((2, 3)) + constants, logits, rtol=1e-4, atol=1e-4)
    assert attribute(model, pictures(80), method="cam").isfinite().all() and weights.shape[:3] == (3, 5, 12)


@pytest.mark.parametrize("divide", [nn.Softsign(), lambda x: x / (1 + x.abs()), nn.Softmax(1), nn.GELU()])
def test_an_activation_is_no_division(divide):
    assert wrap(written(divide), "body", names=NAMES, size=(80, 80)).record["head"] == "not linear"


def test_a_face_of_a_batch_has_its_own_divisor():
    model = wrap(written(nn.functional.normalize), "body", names=NAMES, size=(80, 80))
    together, alone = explain(model, pictures(80)), [explain(model, each[None]) for each in pictures(80)]
    torch.testing.assert_close(together.cams, torch.cat([each.cams for each in alone]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make, layer, size, options", [
    (lambda m: m.convnext_tiny(num_classes=6), "features", 64, {}),
    (lambda m: m.swin_t(num_classes=6), "permute", 64, {}),
    (lambda m: m.swin_t(num_classes=6), "norm", 64, {"reshape": (2, 2)}),
    (lambda m: m.efficientnet_b0(num_classes=6), "features", 64, {})])
def test_networks_of_torchvision_are_exact(make, layer, size, options):
    torch.manual_seed(0)
    model = wrap(shaken(make(torchvision.models)), layer, size=(size, size), **options)
    error, added = residual(model, pictures(size))
    assert model.record["head"] != "not linear" and error < 1e-5 and added > 0.1


@pytest.mark.parametrize("name, layer, options", [
    ("convnext_atto", "stages", {}), ("resnet10t", "layer4", {}),
    ("vit_tiny_patch16_224", "norm", {"reshape": (4, 4)}), ("vit_tiny_patch16_224", "blocks.11", {"reshape": (4, 4)})])
def test_networks_of_timm_are_exact(name, layer, options):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    more = {"img_size": 64, "global_pool": "avg"} if options else {}
    model = wrap(shaken(timm.create_model(name, num_classes=6, **more)), layer, size=(64, 64), **options)
    error, added = residual(model, pictures(64))
    assert model.record["head"] != "not linear" and error < 1e-5 and added > 0.1
    assert explain(model, pictures(64)).sdd.map.shape == (3, 64, 64)


# Tokens

def transformer() -> nn.Module:
    """Build a small vision transformer with a class token."""
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(64, 16, 3, 2, 32, 64, num_classes=6)
    nn.init.normal_(net.heads.head.weight)
    return shaken(net)


def test_a_transformer_with_a_class_token():
    model = wrap(transformer(), "encoder.layers.encoder_layer_1", names=NAMES, size=(64, 64), reshape=(4, 4))
    images = pictures(64)
    x = model.preprocess(images)
    with torch.no_grad(): torch.testing.assert_close(model.head(model.features(x)), model(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="linear"): explain(model, images)
    for method in ("gradcam", "hirescam", "layercam", "saliency"):
        found = attribute(model, images, method=method)
        assert found.shape == (3, 64, 64) and found.std((1, 2)).min() > 0
    message = r"layer_norm sends back, in .*encoder_layer_0\.ln_1 \(LayerNorm\)"
    with pytest.raises(ValueError, match=message): attribute(model, images, method="deeplift")


def test_maps_of_a_class_token_alone_are_refused():
    with pytest.raises(ValueError, match="only tokens without a place count, such as a class token"):
        wrap(transformer(), "encoder.ln", names=NAMES, size=(64, 64), reshape=(4, 4))
    with pytest.raises(ValueError, match=r"gives \(1, 17, 32\); expected \(B, K, h, w\), or reshape"):
        wrap(transformer(), "encoder.ln", names=NAMES, size=(64, 64))
    with pytest.raises(ValueError, match=r"\(1, 17, 32\); expected tokens \(B, N, K\) for 5 x 5 places, N or more"):
        wrap(transformer(), "encoder.ln", names=NAMES, size=(64, 64), reshape=(5, 5))


# Networks that give an embedding

def embedder(unit: bool = False) -> nn.Module:
    """Build a network that gives an embedding, perhaps of unit length."""
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10), nn.BatchNorm1d(10)
    return shaken(Embedding(nn.Sequential(*ends, *[Length(nn.functional.normalize)] * unit)))


@pytest.mark.parametrize("unit", [False, True])
def test_pairs_under_a_wrapped_embedding_are_exact(unit):
    model, images = wrap(embedder(unit).double(), "body", names=[], size=(80, 80)), pictures(80, 6)
    a, b, gallery = images[:2], images[2:4], images[4:]
    pair = sf.explain_pair(model, a, b, gallery, top_k=3)
    by_hand = nn.functional.cosine_similarity(*(model.backbone(model.preprocess(each)) for each in (a, b)))
    torch.testing.assert_close(pair.cosine, by_hand.detach())
    for side in (pair.a, pair.b):
        torch.testing.assert_close(side.map.mean((1, 2)) + side.constant, by_hand.detach(), rtol=1e-9, atol=1e-9)
    assert pair.a.sdd.map.shape == (2, 80, 80) and model.similarity(a, b).shape == (2, 2)
    with pytest.raises(ValueError): explain(model, images)
    with pytest.raises(ValueError, match="knows no people"): attribute(model, images)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_new_people_on_an_embedding(unit, classifier):
    bare = wrap(embedder(unit), "body", names=[], size=(80, 80))
    one, two = (bare.with_people(NAMES, classifier=classifier, seed=seed) for seed in (1, 2))
    assert residual(one, pictures(80))[0] < 1e-5
    assert not torch.equal(one.head.classifier.weight, two.head.classifier.weight)
    faces = Faces(pictures(80, 12), torch.arange(12) % 6, NAMES, torch.arange(12), list("abcdefghijkl"))
    before = {name: value.clone() for name, value in one.backbone.state_dict().items()}
    recipe = Recipe(epochs=2, layers="head", augmentation="none", batch_size=4)
    finetune(one, faces, faces[:0], recipe=recipe, device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in one.backbone.state_dict().items())
    assert residual(one, pictures(80))[0] < 1e-5 and one.embed(pictures(80)).shape == (3, 10)


# Learning, saving, doubting

def test_it_learns_as_the_bare_network_does(tmp_path):
    images, people = pictures(80, 12), torch.arange(12) % 6
    faces = Faces(images, people, NAMES, torch.arange(12), list("abcdefghijkl"))
    model = wrap(shaken(Embedding()), "body", names=NAMES, size=(80, 80))
    recipe = Recipe(epochs=1, batch_size=12, augmentation="none", learning_rate=0.01)
    torch.manual_seed(0)
    for part in model.modules():
        if isinstance(part, nn.Dropout): part.p = 0.0
    bare = deepcopy(model.backbone.net).train()
    finetune(model, faces, faces[:2], recipe=recipe, device="cpu", folder=tmp_path)
    optimizer = torch.optim.AdamW(bare.parameters(), 0.01)
    nn.functional.cross_entropy(bare(model.preprocess(images)), people).backward()
    optimizer.step()
    for one, other in zip(model.backbone.net.parameters(), bare.parameters()):
        counts = other.grad.abs() > 1e-4  # AdamW makes a full step of what is only rounding
        torch.testing.assert_close(one[counts], other[counts], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model.backbone.net.rest[0].running_var, bare.rest[0].running_var)
    assert not model.training and (tmp_path / "checkpoint.pt").exists()


def test_what_cannot_be_learned_is_refused(wrapped):
    faces = Faces(pictures(160), torch.tensor([0, 0, 1]), NAMES, torch.arange(3), list("abc"))
    head = Recipe(epochs=1, layers="head", augmentation="none")
    with pytest.raises(ValueError, match="wrapped with a classifier of its own"):
        finetune(wrapped, faces, faces[:0], recipe=head, device="cpu")
    with pytest.raises(ValueError, match="compile is 'yes', but a wrapped network"):
        finetune(wrapped, faces, faces[:0], recipe=Recipe(epochs=1), device="cpu", compile="yes")


@pytest.mark.parametrize("half", [False, True])
def test_saved_and_loaded_by_a_function_that_builds_it(tmp_path, half):
    model, file = wrap(resnet(), "layer4", names=NAMES, size=(96, 96), mean=MEAN, std=STD), tmp_path / "m.safetensors"
    save_recognizer(model, file, half=half, epochs=3)
    again = sf.load_recognizer(file, net=lambda: torchvision.models.resnet18(num_classes=6))
    assert again.names == NAMES and again.image_size == (96, 96) and again.record["layer"] == "layer4"
    assert not again.training and again.record["head"] == "linear"
    close = {"rtol": 0.05, "atol": 0.05} if half else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(predict(again, pictures(96)), predict(model, pictures(96)), **close)
    assert torch.equal(explain(again, pictures(96)).classes, explain(model, pictures(96)).classes) or half


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_a_classifier_of_ours_is_saved_with_it(tmp_path, classifier):
    model = wrap(embedder(), "body", names=[], size=(80, 80)).with_people(NAMES, classifier=classifier)
    save_recognizer(model, tmp_path / "mine.safetensors")
    again = sf.load_recognizer(tmp_path / "mine.safetensors", net=embedder)
    torch.testing.assert_close(predict(again, pictures(80)), predict(model, pictures(80)))
    other = sf.load_recognizer(tmp_path / "mine.safetensors", ["Ada", "Bo"], net=embedder, classifier="cosine", seed=3)
    assert other.names == ["Ada", "Bo"] and other.record["classifier"] == "cosine"
    torch.testing.assert_close(other.embed(pictures(80)), model.embed(pictures(80)))


def test_tokens_are_saved_with_their_places(tmp_path):
    model = wrap(transformer(), "encoder.layers.encoder_layer_1", names=NAMES, size=(64, 64), reshape=(4, 4))
    save_recognizer(model, tmp_path / "vit.safetensors")
    again = sf.load_recognizer(tmp_path / "vit.safetensors", net=transformer, precision="bfloat16")
    assert again.record["reshape"] == [4, 4] and again.backbone.grid == (4, 4) and again.precision == "bfloat16"


def test_what_cannot_be_loaded_says_why(wrapped, tmp_path):
    file, bare = tmp_path / "mine.safetensors", tmp_path / "bare.pt"
    save_recognizer(wrapped, file)
    torch.save(resnet().state_dict(), bare)
    message = r"a wrapped ResNet; expected a function.*net=make_net"
    with pytest.raises(ValueError, match=message): sf.load_recognizer(file)
    with pytest.raises(ValueError, match="expected a function that builds"): sf.load_recognizer(file, net=resnet())
    with pytest.raises(ValueError, match="the weights of a ResNet, not of this Embedding: .* differ"):
        sf.load_recognizer(file, net=Embedding)
    with pytest.raises(ValueError, match="has a classifier of its own"): sf.load_recognizer(file, ["Ada"], net=resnet)
    with pytest.raises(ValueError, match=r"does not tell how to wrap .*wrap\(net, layer=\.\.\.\)"):
        sf.load_recognizer(bare, net=resnet)
    with pytest.raises(ValueError, match=r"not of this ResNet: fc\.weight, fc\.bias differ"):
        sf.load_recognizer(file, net=lambda: torchvision.models.resnet18(num_classes=7))


def test_a_cascade_goes_down_through_its_own_parts():
    torch.manual_seed(0)
    model = wrap(shaken(torchvision.models.resnet18(num_classes=6)), "layer4", names=NAMES, size=(64, 64))
    listed = list(stages(model))
    assert listed[:2] == ["fc", "layer4.1"] and listed[-3:] == ["bn1", "conv1", "everything"]
    before, seen = deepcopy(model.state_dict()), {}
    for stage, copy in randomized(model, pictures(64, 4), seed=1):
        changed = {name for name, value in copy.state_dict().items() if not torch.equal(value, before[name])}
        seen[stage] = {name.removeprefix("backbone.net.").partition(".")[0] for name in changed}
    assert seen["fc"] == {"fc"} and seen["layer4.1"] == {"fc", "layer4"} and "conv1" in seen["everything"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    faces = Faces(pictures(64, 4), torch.tensor([0, 0, 1, 1]), NAMES, torch.arange(4), list("abcd"))
    functions = {"CAM": lambda net, images, who: attribute(net, images, target=who, method="cam")}
    found = cascade(model, faces, functions, draws=1)
    assert found.values["trained", "CAM"].eq(1).all() and found.values["fc", "CAM"].abs().max() < 1


def test_weights_that_no_layer_begins_are_shuffled():
    model = wrap(transformer(), "encoder.layers.encoder_layer_1", names=NAMES, size=(64, 64), reshape=(4, 4))
    *_, (stage, copy) = randomized(model, pictures(64, 2), seed=1)
    one, other = (each.backbone.net.encoder.pos_embedding.detach().flatten() for each in (model, copy))
    assert stage == "everything" and not torch.equal(one, other) and torch.equal(one.sort()[0], other.sort()[0])
