"""The networks against published layouts and outputs, and what is said of files that do not fit."""
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdd_face.model import FaceRecognizer, embedding_network, load_recognizer, read_record, save_recognizer

GOLDEN = Path(__file__).parent / "golden"
REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
needs_real_faces = pytest.mark.skipif(not REAL.exists(), reason="real faces and weights (../shared/real) are not here; they are not part of the project")


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
    """A strided 1x1 convolution of 8 channels crashes oneDNN 3.x in the backward pass of odd batches; ours must not be one."""
    code = """
import torch
from sdd_face.networks import IRBlock
block = IRBlock(8, 32, stride=2).to(memory_format=torch.channels_last)
for count in (1, 3, 5):
    for _ in range(20): block(torch.randn(count, 8, 56, 56).contiguous(memory_format=torch.channels_last)).sum().backward()
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@needs_real_faces
def test_mobilefacenet_gives_the_published_embeddings():
    golden = json.loads((GOLDEN / "mobilefacenet_y1.json").read_text())
    model = load_recognizer(REAL / "weights" / "mobilefacenet_y1.npz")
    faces = [np.asarray(Image.open(REAL / "facescrub12" / "aligned" / file).convert("RGB")) for file in golden["files"]]
    images = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2)
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
    state = {f"model.{name}": value for name, value in network.state_dict().items()} | {"head.kernel": torch.zeros(4, 4)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "adaface.ckpt")
    model = load_recognizer(tmp_path / "adaface.ckpt", classes=["Ann"], arch="ir_tiny")
    assert model.record["color"] == "bgr"
    assert torch.equal(model.backbone.input_layer[0].weight, network.input_layer[0].weight)


def test_a_bare_state_dict_needs_its_colours(tmp_path):
    torch.save(embedding_network("ir_tiny").state_dict(), tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="does not tell its color"): load_recognizer(tmp_path / "bare.pt", classes=["Ann"], arch="ir_tiny")
    model = load_recognizer(tmp_path / "bare.pt", classes=["Ann"], color="rgb")
    assert model.record["color"] == "rgb" and model.record["arch"] == "ir_tiny" and model.record["source"] == "a state dict"


def test_another_architecture_is_named(model, tmp_path):
    torch.save(embedding_network("ir_18").state_dict(), tmp_path / "ir18.pt")
    with pytest.raises(ValueError, match=r"not the weights of ir_tiny .*input_layer\.0\.weight \(64, 3, 3, 3\) for \(8, 3, 3, 3\).*it fits ir_18"):
        load_recognizer(tmp_path / "ir18.pt", classes=["Ann"], arch="ir_tiny", color="rgb")
    save_recognizer(model, tmp_path / "tiny.safetensors")
    with pytest.raises(ValueError, match="arch is 'ir_tiny', but 'ir_50' was asked for"): load_recognizer(tmp_path / "tiny.safetensors", arch="ir_50")


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.npz"])
@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_truncated_files_are_reported(model, tmp_path, name, keep):
    path = tmp_path / name
    if name.endswith(".safetensors"): save_recognizer(model, path)
    elif name.endswith(".pt"): torch.save(model.state_dict(), path)
    else: np.savez(path, **{key: value.numpy() for key, value in model.state_dict().items()})
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match="damaged, cut short or not a weights file"): load_recognizer(path, classes=["Ann"], arch="ir_tiny", color="rgb")


class Harmful:
    def __reduce__(self): return (exec, ("raise SystemExit('code from a checkpoint was run')",))


def test_pickled_code_is_never_run(tmp_path):
    torch.save({"state_dict": Harmful()}, tmp_path / "harmful.ckpt")
    (tmp_path / "harmful.pkl").write_bytes(pickle.dumps(Harmful(), 2))
    np.savez(tmp_path / "harmful.npz", weight=np.array([Harmful()], dtype=object))
    with pytest.raises(ValueError, match="harmful.ckpt: holds no state_dict"): load_recognizer(tmp_path / "harmful.ckpt", classes=["Ann"])
    with pytest.raises(ValueError, match="holds pickled code, which is never run"): load_recognizer(tmp_path / "harmful.pkl", classes=["Ann"])
    with pytest.raises(ValueError, match="harmful.npz: "): load_recognizer(tmp_path / "harmful.npz", classes=["Ann"])


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such weights file"): load_recognizer(tmp_path / "none.pt")


def test_the_packaged_network_is_small_and_knows_people_it_has_not_seen_like_this():
    from importlib.resources import files

    from sdd_face.finetune import predict
    from sdd_face.synthetic import draw_faces, make_people

    path = files("sdd_face") / "weights" / "ir_tiny.safetensors"
    assert path.stat().st_size <= 2_000_000
    crowd = read_record(path)["people"]
    drawn = draw_faces(make_people(crowd["count"], seed=crowd["seed"]), images=1, seed=12345)
    right = predict(load_recognizer(), drawn.images).argmax(1) == drawn.people
    assert right.float().mean() > 0.8
