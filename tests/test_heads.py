"""Every head's maps are exact: their mean, plus a constant, is the logit."""
import json
import subprocess
import sys

import pytest
import torch
from test_model import REAL, needs_real_faces, real_faces

from sdd_face.cam import class_activation_maps, logit_maps
from sdd_face.data import Faces
from sdd_face.evaluation import Masking, evaluate
from sdd_face.heads import DifferenceClassifier, pull_back
from sdd_face.model import FaceRecognizer, load_recognizer, save_recognizer
from sdd_face.sdd import explain

NAMES = [f"person {i}" for i in range(9)]
ALL_HEADS = [(head, classifier) for head in ("pool", "own") for classifier in ("linear", "cosine")]


def randomized(arch: str, head: str, classifier: str, dtype: torch.dtype) -> FaceRecognizer:
    """Build a recogniser with a random number in every weight and every statistic of a batch norm."""
    torch.manual_seed(1)
    model = FaceRecognizer(arch, NAMES, head=head, classifier=classifier)
    for name, value in model.state_dict().items():
        if "running_var" in name: value.uniform_(0.5, 1.5)
        elif "running_mean" in name or name.endswith("bias"): value.normal_(0, 0.1)
    return model.to(dtype).eval()


def worst(model: FaceRecognizer, features: torch.Tensor, classes: torch.Tensor) -> float:
    """Give the largest error of the maps' sums, relative to the largest logit."""
    with torch.no_grad():
        maps, constants = logit_maps(model.head, features, classes)
        logits = model.head(features).gather(1, classes)
    return float((maps.mean((2, 3)) + constants - logits).abs().max() / logits.abs().max())


@pytest.mark.parametrize("head, classifier", ALL_HEADS)
@pytest.mark.parametrize("arch", ["ir_18", "ir_tiny", "mobilefacenet", "mobilefacenet_96"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_the_mean_of_a_map_and_a_constant_are_the_logit(arch, head, classifier, dtype, tolerance):
    model = randomized(arch, head, classifier, dtype)
    features = torch.randn(3, *model.backbone.feature_shape, dtype=dtype)
    classes = torch.tensor([[0, 4, 8], [8, 4, 4], [1, 2, 3]])
    assert worst(model, features, classes) < tolerance


@needs_real_faces
@pytest.mark.parametrize("head, classifier", ALL_HEADS)
@pytest.mark.parametrize("file, color", [("mobilefacenet_y1.npz", ""), ("mobilefacenet_068.ckpt", "rgb")])
def test_maps_are_exact_on_real_weights_and_faces(file, color, head, classifier):
    model = load_recognizer(REAL / "weights" / file, NAMES, color=color, head=head, classifier=classifier)
    images, _ = real_faces(step=100)
    with torch.no_grad(): features = model.features(model.preprocess(images))
    assert worst(model, features, torch.arange(9).expand(len(images), 9)) < 1e-4


@pytest.mark.parametrize("arch", ["ir_tiny", "mobilefacenet", "mobilefacenet_96"])
def test_weights_are_what_autograd_finds(arch):
    model = randomized(arch, "own", "linear", torch.float64)
    _, rows, columns = model.backbone.feature_shape
    features = torch.randn(1, *model.backbone.feature_shape, dtype=torch.float64, requires_grad=True)
    gradient, = torch.autograd.grad(model.head(features)[0, 5], features)
    weights, _ = model.head.spatial_weights(torch.tensor([5]))
    torch.testing.assert_close(weights[0], gradient[0] * rows * columns, rtol=1e-10, atol=1e-12)


MEMORY = """
import json, resource, torch
from sdd_face.model import FaceRecognizer
from sdd_face.sdd import explain_features
model = FaceRecognizer("ir_18", [str(i) for i in range(530)], head="own").eval()
features = torch.randn(256, 512, 7, 7)
with torch.no_grad(): e = explain_features(model, features, model.head(features))
print(json.dumps({"shape": list(e.cams.shape), "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak memory of a process is counted as on Linux")
def test_five_maps_of_256_faces_of_530_people_fit_in_two_gigabytes():
    result = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen["shape"] == [256, 5, 7, 7] and seen["gigabytes"] < 2


@pytest.mark.parametrize("arch", ["ir_tiny", "mobilefacenet_96"])
@pytest.mark.parametrize("head, classifier", ALL_HEADS)
def test_explaining_and_evaluating_work_under_every_head(arch, head, classifier):
    model = randomized(arch, head, classifier, torch.float32)
    images = torch.randint(0, 256, (4, 3, 112, 112), dtype=torch.uint8)
    faces = Faces(images, torch.tensor([0, 0, 1, 1]), NAMES, torch.arange(4), list("abcd"))
    e = explain(model, images, top_k=3)
    assert e.sdd.map.shape == (4, *model.backbone.size) and e.sdd.map.amax((1, 2)).eq(1).all()
    half = torch.zeros(112, 112, dtype=torch.bool)
    half[:56] = True
    result = evaluate(model, faces, {"sdd": None, "upper half": half}, masking=Masking(draws=1), top_k=3)
    assert result.maps == ["sdd", "upper half", "random"] and result.drop("deletion", "sdd").isfinite().all()


def test_a_narrow_network_sees_the_middle_of_a_face():
    model = randomized("mobilefacenet_96", "pool", "linear", torch.float32)
    images = torch.randint(0, 256, (1, 3, 112, 112), dtype=torch.uint8)
    assert torch.equal(model.crop(images), images[..., 8:104])
    assert torch.equal(model.preprocess(images), model.preprocess(images[..., 8:104]))


@pytest.mark.parametrize("head, classifier", ALL_HEADS)
def test_a_saved_recogniser_keeps_its_head(head, classifier, tmp_path):
    model = randomized("ir_tiny", head, classifier, torch.float32)
    save_recognizer(model, tmp_path / "model.safetensors")
    again = load_recognizer(tmp_path / "model.safetensors")
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    with torch.no_grad(): assert torch.equal(again(again.preprocess(images)), model(model.preprocess(images)))
    assert (head, classifier) == (again.record["head"], again.record["classifier"])
    other = {"pool": "own", "own": "pool"}[head]
    with pytest.raises(ValueError, match="head is"): load_recognizer(tmp_path / "model.safetensors", head=other)


def test_a_head_or_classifier_that_does_not_exist_is_refused():
    wrong = ("head", "attention", "'pool' or 'own'"), ("classifier", "svm", "'linear' or 'cosine'")
    for option, given, known in wrong:
        with pytest.raises(ValueError, match=f"{option} is '{given}'; expected {known}"):
            FaceRecognizer("ir_tiny", NAMES, **{option: given})


@pytest.mark.parametrize("head, classifier", ALL_HEADS)
@pytest.mark.parametrize("arch", ["ir_tiny", "mobilefacenet_96"])
def test_a_difference_of_two_classes_is_a_class_like_others(arch, head, classifier):
    """Its logit is the difference of theirs, its map the difference of their maps, and exact as well."""
    model = randomized(arch, head, classifier, torch.float64)
    features = torch.randn(3, *model.backbone.feature_shape, dtype=torch.float64)
    first, second, pairs = torch.tensor([0, 4, 4, 8]), torch.tensor([1, 0, 8, 4]), torch.arange(4)
    with torch.no_grad():
        logits, (maps, constants) = model.head(features), logit_maps(model.head, features, torch.arange(9))
    model.head.classifier = DifferenceClassifier(model.head.classifier, first, second)
    with torch.no_grad():
        between, (difference, constant) = model.head(features), logit_maps(model.head, features, pairs)
    torch.testing.assert_close(between, logits[:, first] - logits[:, second])
    torch.testing.assert_close(difference, maps[:, first] - maps[:, second])
    torch.testing.assert_close(constant, constants[:, first] - constants[:, second])
    torch.testing.assert_close(between[:, 2], -between[:, 3])
    assert worst(model, features, pairs.expand(3, 4)) < 1e-10


def test_weights_with_positions_need_the_positions():
    features = torch.randn(2, 5, 7, 7)
    assert class_activation_maps(features, torch.randn(3, 5, 7, 7)).shape == (2, 3, 7, 7)
    for wrong in (torch.randn(3, 5, 7, 6), torch.randn(2, 3, 4, 7, 7), torch.randn(5)):
        with pytest.raises(ValueError, match="expected .B, K, h, w. and"): class_activation_maps(features, wrong)


CHAINS = {
    "a 1x1 convolution": [torch.nn.Conv2d(8, 5, 1), torch.nn.Flatten(), torch.nn.Linear(5 * 42, 4)],
    "one with a stride and padding": [torch.nn.Conv2d(8, 5, 3, 2, 1), torch.nn.Flatten(), torch.nn.Linear(5 * 12, 4)],
    "adaptive pooling": [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 4)],
    "pooling to 2 x 3": [torch.nn.AdaptiveAvgPool2d((2, 3)), torch.nn.Flatten(), torch.nn.Linear(48, 4)],
    "average pooling": [torch.nn.AvgPool2d(3, 2), torch.nn.Dropout2d(0.3), torch.nn.Flatten(), torch.nn.Linear(48, 4)],
    "unflattening": [
        torch.nn.Flatten(), torch.nn.Linear(336, 24), torch.nn.Unflatten(1, (4, 2, 3)), torch.nn.BatchNorm2d(4),
        torch.nn.Conv2d(4, 4, (2, 3), groups=4), torch.nn.Flatten()]}


@pytest.mark.parametrize("name", CHAINS)
def test_weights_go_back_through_every_linear_layer(name):
    torch.manual_seed(0)
    chain = torch.nn.Sequential(*CHAINS[name])
    for key, value in chain.state_dict().items():
        if "running_var" in key: value.uniform_(0.5, 1.5)
        elif value.is_floating_point(): value.normal_()
    chain, features, v = chain.double().eval(), *(torch.randn(*s, dtype=torch.float64) for s in ((3, 8, 6, 7), (5, 4)))
    with torch.inference_mode(): weights, constant = pull_back(chain, v, (8, 6, 7))
    with torch.no_grad(): wanted = chain(features) @ v.T
    found = torch.einsum("bkyx,skyx->bs", features, weights) + constant
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer", [torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.LayerNorm(7), torch.nn.Sigmoid()])
def test_weights_do_not_go_back_through_others(layer):
    with pytest.raises(ValueError, match=f"{type(layer).__name__} in an output layer; expected layers that are linear"):
        pull_back(torch.nn.Sequential(layer).eval(), torch.ones(1, 8), (8, 6, 7))
