"""The networks against published layouts and outputs, and what is said of files that do not fit."""
import json
import os
import pickle
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from sdd_face import tensor_files
from sdd_face.checkpoints import read_checkpoint, read_record
from sdd_face.classes import compared_classes, known_classes
from sdd_face.data import Faces
from sdd_face.evaluation import evaluate
from sdd_face.model import (
    FaceRecognizer,
    load_recognizer,
    predict,
    require_evaluation,
    save_recognizer,
)
from sdd_face.networks import embedding_network
from sdd_face.sdd import explain
from sdd_face.synthetic import draw_faces, make_people

GOLDEN = Path(__file__).parent / "golden"
REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
needs_real_faces = pytest.mark.skipif(
    not REAL.exists(), reason="real faces and weights (../shared/real) are not here; they are not part of the project")


def real_images(files: list[Path]) -> torch.Tensor:
    """Read aligned faces as they are: (N, 3, 112, 112), uint8 RGB."""
    faces = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    return torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2)


def real_faces(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Read each STEP-th of the real faces, and whose it is."""
    files = sorted((REAL / "facescrub12" / "aligned").glob("*/*.jpg"))[::step]
    names = sorted({file.parent.name for file in files})
    return real_images(files), torch.tensor([names.index(file.parent.name) for file in files])


def golden_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fill a state dict with the sine waves that the golden file describes."""
    filled = {}
    for i, name in enumerate(sorted(state)):
        shape, n = state[name].shape, state[name].numel()
        s = np.sin(0.37 * np.arange(n) + i)
        is_norm = f"{name.rpartition('.')[0]}.running_mean" in state
        if name.endswith("num_batches_tracked"): value = np.zeros(1)
        elif name.endswith("running_var"): value = 1 + 0.5 * s**2
        elif name.endswith(("running_mean", "bias")): value = 0.1 * s
        elif len(shape) > 1: value = 1.4 * s / np.sqrt(n / shape[0])
        else: value = 1 + 0.1 * s if is_norm else 0.25 + 0.05 * s
        filled[name] = torch.from_numpy(value.reshape(shape)).to(state[name].dtype)
    return filled


@pytest.mark.parametrize("arch", ["ir_18", "ir_50"])
def test_ir_resnet_has_the_layout_and_outputs_of_adaface(arch):
    golden = json.loads((GOLDEN / "adaface_ir.json").read_text())[arch]
    network = embedding_network(arch).eval()
    state = network.state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == golden["keys"]
    network.load_state_dict(golden_weights(state))
    x = torch.from_numpy(np.sin(0.01 * np.arange(2 * 3 * 112 * 112)).reshape(2, 3, 112, 112)).float()
    with torch.no_grad():
        features = network.features(x)
        embedding, norm = network(x)
    assert list(features.shape) == golden["features_shape"]
    assert features.abs().mean().item() == pytest.approx(golden["features_absmean"], rel=1e-4)
    assert norm[:, 0].tolist() == pytest.approx(golden["norm"], rel=1e-4)
    np.testing.assert_allclose(embedding[:, :8], golden["embedding_first8"], atol=2e-6)


@pytest.mark.parametrize("arch", ["ir_34", "ir_101", "ir_tiny", "mobilefacenet"])
def test_every_network_gives_seven_by_seven_features(arch):
    with torch.device("meta"):
        network = embedding_network(arch).eval()
        x = torch.empty(1, 3, 112, 112)
        assert network.features(x).shape == (1, network.channels, 7, 7)


def test_odd_batches_of_few_channels_do_not_corrupt_memory():
    """A strided 1x1 convolution of 8 channels crashes oneDNN 3.x in the backward pass of odd batches; ours is none."""
    code = """
import torch
from sdd_face.networks import IRBlock
block = IRBlock(8, 32, stride=2).to(memory_format=torch.channels_last)
for count in (1, 3, 5):
    x = torch.randn(count, 8, 56, 56).contiguous(memory_format=torch.channels_last)
    for _ in range(20): block(x).sum().backward()
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@needs_real_faces
def test_mobilefacenet_gives_the_published_embeddings():
    golden = json.loads((GOLDEN / "mobilefacenet_y1.json").read_text())
    model = load_recognizer(REAL / "weights" / "mobilefacenet_y1.npz")
    images = real_images([REAL / "facescrub12" / "aligned" / file for file in golden["files"]])
    np.testing.assert_allclose(model.embed(images)[:, :8], golden["first8"], atol=1e-4)
    np.testing.assert_allclose(model.similarity(images, images), golden["cosine"], atol=1e-4)


@pytest.fixture
def model() -> FaceRecognizer:
    torch.manual_seed(0)
    return FaceRecognizer("ir_tiny", ["Ann", "Bob", "Cem"], color="bgr", std=128.0).eval()


def test_a_saved_recogniser_comes_back_bit_by_bit(model, tmp_path):
    save_recognizer(model, tmp_path / "model.safetensors", note="kept")
    again = load_recognizer(tmp_path / "model.safetensors")
    assert again.names == model.names and again.record == model.record and not again.training
    assert read_record(tmp_path / "model.safetensors")["note"] == "kept"
    for name, value in model.state_dict().items(): assert torch.equal(value, again.state_dict()[name]), name


def test_new_people_get_a_new_head_on_the_same_body(model, tmp_path):
    save_recognizer(model, tmp_path / "model.safetensors")
    a, b = (load_recognizer(tmp_path / "model.safetensors", classes=["X", "Y"], seed=3) for _ in range(2))
    assert a.names == ["X", "Y"] and a.head.classifier.weight.shape[0] == 2
    assert torch.equal(a.head.classifier.weight, b.head.classifier.weight)
    assert torch.equal(a.backbone.body[0].res_layer[1].weight, model.backbone.body[0].res_layer[1].weight)


def test_adaface_checkpoints_are_read_as_bgr(tmp_path):
    network = embedding_network("ir_tiny")
    state = {f"model.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state | {"head.kernel": torch.zeros(4, 4)}, "epoch": 3}, tmp_path / "adaface.ckpt")
    model = load_recognizer(tmp_path / "adaface.ckpt", classes=["Ann"], arch="ir_tiny")
    assert model.record["color"] == "bgr"
    assert torch.equal(model.backbone.input_layer[0].weight, network.input_layer[0].weight)


def test_a_bare_state_dict_needs_its_colors(tmp_path):
    torch.save(embedding_network("ir_tiny").state_dict(), tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="does not tell its color"):
        load_recognizer(tmp_path / "bare.pt", classes=["Ann"], arch="ir_tiny")
    record = load_recognizer(tmp_path / "bare.pt", classes=["Ann"], color="rgb").record
    assert (record["color"], record["arch"], record["source"]) == ("rgb", "ir_tiny", "state dict")


def test_another_architecture_is_named(model, tmp_path):
    torch.save(embedding_network("ir_18").state_dict(), tmp_path / "ir18.pt")
    shape = r"input_layer\.0\.weight \(64, 3, 3, 3\) for \(8, 3, 3, 3\)"
    with pytest.raises(ValueError, match=f"not the weights of ir_tiny .*{shape}.*it fits ir_18"):
        load_recognizer(tmp_path / "ir18.pt", classes=["Ann"], arch="ir_tiny", color="rgb")
    save_recognizer(model, tmp_path / "tiny.safetensors")
    with pytest.raises(ValueError, match=r"tiny.safetensors: not the weights of ir_50 \(.*\); it fits ir_tiny"):
        load_recognizer(tmp_path / "tiny.safetensors", arch="ir_50")


def test_a_saved_recogniser_takes_the_way_of_every_file(model, tmp_path):
    """Its record is one thing more that a file may tell: what is said otherwise is refused as for others' files."""
    path = tmp_path / "model.safetensors"
    save_recognizer(model, path)
    found = read_checkpoint(path)
    assert (found.kind, found.color, found.mean, found.std) == ("model of sdd_face", "bgr", 127.5, 128.0)
    assert found.record == read_record(path) and found.record["names"] == model.names
    assert found.head.keys() == model.head.state_dict().keys()
    for name, value in found.tensors.items(): assert torch.equal(value, model.backbone.state_dict()[name]), name
    with pytest.raises(ValueError, match="model.safetensors: color is 'bgr', but 'rgb' was asked for"):
        load_recognizer(path, color="rgb")


def test_a_weights_file_is_opened_once(model, tmp_path, monkeypatch):
    path, opened = tmp_path / "model.safetensors", []
    save_recognizer(model, path)
    monkeypatch.setattr(tensor_files, "safe_open", lambda *asked: opened.append(asked[0]) or safe_open(*asked))
    load_recognizer(path)
    assert opened == [path]


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.npz"])
@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_truncated_files_are_reported(model, tmp_path, name, keep):
    path = tmp_path / name
    if name.endswith(".safetensors"): save_recognizer(model, path)
    elif name.endswith(".pt"): torch.save(model.state_dict(), path)
    else: np.savez(path, **{key: value.numpy() for key, value in model.state_dict().items()})
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match="damaged, cut short or not a weights file"):
        load_recognizer(path, classes=["Ann"], arch="ir_tiny", color="rgb")


def test_a_damaged_record_is_a_damaged_file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(1)}, path, {"sdd_face": '{"arch": '})
    for read in (load_recognizer, read_record):
        with pytest.raises(ValueError, match="model.safetensors: damaged; its record is not JSON"): read(path)
    save_file({"weight": torch.zeros(1)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="model.safetensors: a weights file without a record"): read_record(path)


class Harmful:
    def __reduce__(self): return (exec, ("raise SystemExit('code from a checkpoint was run')",))


def test_pickled_code_is_never_run(tmp_path):
    torch.save({"state_dict": Harmful()}, tmp_path / "harmful.ckpt")
    (tmp_path / "harmful.pkl").write_bytes(pickle.dumps(Harmful(), 2))
    np.savez(tmp_path / "harmful.npz", weight=np.array([Harmful()], dtype=object))
    said = {
        "harmful.ckpt": "harmful.ckpt: holds no state_dict", "harmful.npz": "harmful.npz: ",
        "harmful.pkl": "holds pickled code, which is never run"}
    for file, message in said.items():
        with pytest.raises(ValueError, match=message): load_recognizer(tmp_path / file, classes=["Ann"])


def test_a_missing_file_is_a_missing_file(tmp_path):
    for name in ("none.pt", "none.npz", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match=f"{name}: no such weights file"): load_recognizer(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no such weights file"): read_record(tmp_path / "none.safetensors")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")
def test_a_full_disk_keeps_what_was_there(model, tmp_path):
    """A limit to the size of files stands for a full disk: the write fails half way."""
    import resource

    path, (soft, hard) = tmp_path / "model.safetensors", resource.getrlimit(resource.RLIMIT_FSIZE)
    save_recognizer(model, path, note="first")
    before = path.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(Exception, match="File too large"): save_recognizer(model, path, note="second")
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_packaged_network_is_small_and_knows_people_it_has_not_seen_like_this():
    path = files("sdd_face") / "weights" / "ir_tiny.safetensors"
    assert path.stat().st_size <= 2_000_000
    crowd = read_record(path)["people"]
    some = {trait: value[::3] for trait, value in make_people(**crowd).items()}
    drawn = draw_faces(some, images=1, seed=12345)
    right = predict(load_recognizer(), drawn.images).argmax(1) == 3 * drawn.people
    assert right.float().mean() > 0.8


# What is asked of a recogniser

def faces_of(model: FaceRecognizer, count: int = 3) -> Faces:
    images = torch.randint(0, 256, (count, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % len(model.names)
    return Faces(images, labels, model.names, torch.arange(count), [f"face {i}" for i in range(count)])


LOOKS = {
    "predict": lambda model, faces: predict(model, faces.images),
    "embed": lambda model, faces: model.embed(faces.images),
    "explain": lambda model, faces: explain(model, faces.images, top_k=2),
    "evaluate": lambda model, faces: evaluate(model, faces, {"sdd": None}, top_k=2),
}


@pytest.mark.parametrize("part", ["", "backbone", "head", "backbone.body.0.res_layer.0"])
@pytest.mark.parametrize("look", LOOKS)
def test_a_part_in_training_mode_is_enough_to_refuse(model, look, part):
    """The whole may be in evaluation mode: batch norms in training would answer otherwise, and change."""
    model.get_submodule(part).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    message = r"the model is in training mode; call model.eval\(\) first"
    with pytest.raises(ValueError, match=message): LOOKS[look](model, faces_of(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    require_evaluation(model.eval())


def test_predictions_do_not_depend_on_the_batches(model):
    images = faces_of(model, 5).images
    logits = predict(model, images)
    assert logits.shape == (5, 3) and not logits.requires_grad
    with torch.no_grad(): torch.testing.assert_close(logits, model(model.preprocess(images)))
    torch.testing.assert_close(predict(model, images, batch_size=2), logits)


# Which classes are compared

LOGITS = torch.tensor([[0.0, 3, 1, 2, -1], [5.0, 1, 1, 7, 1]])


@pytest.mark.parametrize("target, against, top_k, expected", [
    (None, None, 3, [[1, 3, 2], [3, 0, 1]]),  # the most probable ones
    (None, None, 1, [[1], [3]]),
    (None, None, 5, [[1, 3, 2, 0, 4], [3, 0, 1, 2, 4]]),  # equal logits in the order of the classes
    (4, None, 3, [[4, 1, 3], [4, 3, 0]]),  # the target first, however improbable
    ([2, 1], None, 4, [[2, 1, 3, 0], [1, 3, 0, 2]]),
    (None, [[0], [4]], 3, [[1, 0, 3], [3, 4, 0]]),  # those that are asked for, then the most probable others
    ([2, 3], [[4, 0], [1, 2]], 4, [[2, 4, 0, 1], [3, 1, 2, 0]]),  # in the order in which they are asked for
    (None, [[4, 0], [1, 2]], 1, [[1, 4, 0], [3, 1, 2]]),  # never fewer than are asked for
    (0, [[1, 2, 3, 4], [4, 3, 2, 1]], 5, [[0, 1, 2, 3, 4], [0, 4, 3, 2, 1]]),
])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_compared_classes_by_hand(target, against, top_k, expected, dtype):
    target = torch.tensor(target) if isinstance(target, list) else target
    chosen = compared_classes(
        LOGITS.to(dtype), target, against=None if against is None else torch.tensor(against), top_k=top_k)
    assert chosen.tolist() == expected and chosen.dtype == torch.int64


def test_ties_stay_in_the_order_of_the_classes():
    flat = torch.zeros(2, 40)
    assert compared_classes(flat, top_k=40).tolist() == [list(range(40))] * 2
    assert compared_classes(flat, 7, top_k=4).tolist() == [[7, 0, 1, 2]] * 2
    assert compared_classes(flat, 7, against=torch.tensor([[5], [0]]), top_k=4).tolist() == [[7, 5, 0, 1], [7, 0, 1, 2]]
    near = torch.tensor([[100.0, 1e-30, 2e-30, 0.0]])  # small differences beside a large logit still count
    assert compared_classes(near, top_k=4).tolist() == [[0, 2, 1, 3]]


@pytest.mark.parametrize("options, message", [
    ({"top_k": 6}, "top_k is 6; expected 1 to 5, the people that the model knows"),
    ({"top_k": 0}, "top_k is 0; expected 1 to 5"),
    ({"target": 5}, "target is 5; the model knows 0 to 4"),
    ({"target": torch.tensor([0, -1])}, "target is -1; the model knows 0 to 4"),
    ({"target": torch.tensor([0, 1, 2])}, r"target is \(3,\) of torch.int64; expected one integer, \(2,\)"),
    ({"target": 0.5}, r"target is \(\) of torch.float32"),
    ({"against": torch.tensor([[1], [3]])}, "against holds the explained class itself; expected other classes"),
    ({"against": torch.tensor([[2], [9]])}, "against is 9; the model knows 0 to 4"),
    ({"against": torch.zeros(2, 0, dtype=torch.int64)}, r"against is \(2, 0\)"),
    ({"against": torch.ones(2, 1, dtype=torch.bool)}, r"against is \(2, 1\) of torch.bool"),
])
def test_classes_that_cannot_be_compared_are_refused(options, message):
    with pytest.raises(ValueError, match=message): compared_classes(LOGITS, **{"top_k": 3} | options)
    with pytest.raises(ValueError, match="the model knows no people"): compared_classes(LOGITS[:, :0], top_k=1)


def test_known_classes_are_one_for_all_or_some_for_each():
    assert known_classes(2, 3, 5, "target").tolist() == [2, 2, 2]
    assert known_classes(torch.tensor([0, 4, 1], dtype=torch.uint8), 3, 5, "target").tolist() == [0, 4, 1]
    assert known_classes(torch.tensor([[0, 1], [3, 4]]), 2, 5, "target").tolist() == [[0, 1], [3, 4]]
    cube = torch.zeros(1, 1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"target is \(1, 1, 1\)"): known_classes(cube, 1, 5, "target")
