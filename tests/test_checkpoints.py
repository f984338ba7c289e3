"""Weights files of others: recognised by what is in them, refused in a sentence, and never run."""
import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
import torchvision
from conftest import noise
from safetensors.torch import save_file
from test_model import REAL, needs_real_faces, real_faces
from test_wrapping import shaken
from torch import nn

import sdd_face as sf
from sdd_face.cam import logit_maps
from sdd_face.checkpoints import choose_architecture, matching_architecture, read_checkpoint
from sdd_face.files import is_hub_name
from sdd_face.layouts import of_other_names
from sdd_face.model import load_recognizer
from sdd_face.networks import embedding_network
from sdd_face.sdd import explain


class Trap:
    """Runs when it is unpickled."""
    def __reduce__(self): return (exec, ("raise SystemExit('code from a checkpoint was run')",))


class Settings(dict):
    """Settings as a training framework keeps them."""


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return embedding_network("ir_tiny").state_dict()


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize("arch", ["ir_18", "ir_34", "ir_50", "ir_101", "ir_se_50"])
def test_every_size_builds_and_is_known_by_its_shapes(arch):
    with torch.device("meta"): state = embedding_network(arch).state_dict()
    assert matching_architecture(state) == arch


def test_squeeze_and_excitation_has_the_published_names():
    with torch.device("meta"): state = embedding_network("ir_se_50").state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items() if "se_block" in name}
    assert shapes["body.0.res_layer.se_block.fc1.weight"] == (4, 64, 1, 1)
    assert shapes["body.23.res_layer.se_block.fc2.weight"] == (512, 32, 1, 1)
    assert len(shapes) == 48  # two convolutions without a bias in each of 24 blocks


def test_a_lightning_checkpoint_of_adaface_is_bgr_and_its_settings_are_passed_over(state, tmp_path):
    content = {
        "state_dict": prefixed("model.", state) | {"head.kernel": torch.zeros(4, 4)}, "epoch": 25,
        "callbacks": {Settings: {"best": np.float64(0.9)}}, "trap": Trap(),
        "hyper_parameters": Settings(arch="ir_tiny", nested=argparse.Namespace(lr=0.1))}
    torch.save(content, tmp_path / "adaface.ckpt")
    model = load_recognizer(tmp_path / "adaface.ckpt")
    record = model.record
    assert (record["color"], record["arch"], record["source"]) == ("bgr", "ir_tiny", "AdaFace checkpoint")
    assert "BGR pixels, (x - 127.5) / 127.5" in repr(model) and "ir_tiny from AdaFace checkpoint" in repr(model)
    for name, value in model.backbone.state_dict().items(): assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("prefix", ["net.", "model.net."])
@pytest.mark.parametrize("space", ["RGB", "BGR"])
def test_a_cvlface_model_takes_its_colors_from_the_file_beside_it(state, tmp_path, prefix, space):
    path, other = tmp_path / "model.pt", {"RGB": "bgr", "BGR": "rgb"}[space]
    torch.save(prefixed(prefix, state), path)
    (tmp_path / "model.yaml").write_text(f"input_size: [3, 112, 112]\ncolor_space: '{space}'\nname: ir_tiny\n")
    assert load_recognizer(path).record["color"] == space.lower()
    with pytest.raises(ValueError, match="color is"): load_recognizer(path, color=other)


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_a_bare_state_dict_is_known_by_its_layers(state, tmp_path, ending):
    path = tmp_path / f"bare{ending}"
    torch.save(state, path) if ending == ".pt" else save_file(state, path)
    with pytest.raises(ValueError, match="does not tell its color"): load_recognizer(path)
    record = load_recognizer(path, color="bgr").record
    assert (record["arch"], record["color"], record["source"]) == ("ir_tiny", "bgr", "state dict")


@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".pt"])
def test_a_file_without_tensors_holds_no_state_dict(tmp_path, ending):
    path = tmp_path / f"empty{ending}"
    if ending == ".safetensors": save_file({}, path)
    elif ending == ".npz": np.savez(path)
    else: torch.save({}, path)
    with pytest.raises(ValueError, match=f"empty{ending}: holds no state_dict"): read_checkpoint(path)


def test_colors_are_asked_for_where_nothing_tells_them(state, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(prefixed("net.", state), path)
    message = "does not tell its color; say color='rgb' or color='bgr'"
    with pytest.raises(ValueError, match=message): load_recognizer(path)
    (tmp_path / "model.yaml").write_text("name: ir_tiny\n")
    with pytest.raises(ValueError, match="model.yaml: expected color_space: RGB or BGR"): load_recognizer(path)


def test_half_of_the_keys_are_not_enough(state, tmp_path):
    torch.save(dict(list(state.items())[::2]), tmp_path / "half.pt")
    message = r"not the weights of ir_tiny \(\d+ missing: .*\); ir_tiny is the nearest"
    with pytest.raises(ValueError, match=message): load_recognizer(tmp_path / "half.pt", color="rgb")


def test_a_network_of_another_size_is_told_which_one_it_is(tmp_path):
    torch.save(prefixed("model.", embedding_network("ir_34").state_dict()), tmp_path / "big.ckpt")
    message = r"not the weights of ir_18 \(.*unexpected: .*\); it fits ir_34"
    with pytest.raises(ValueError, match=message): load_recognizer(tmp_path / "big.ckpt", arch="ir_18")


def test_another_network_is_named_by_its_first_tensor(tmp_path):
    torch.save({"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}, tmp_path / "vit.pt")
    message = "a state dict of another network, beginning with blocks.0.attn.qkv.weight; known are ir_18"
    with pytest.raises(ValueError, match=message): load_recognizer(tmp_path / "vit.pt")


def test_traps_do_not_close(tmp_path):
    for content in ({"state_dict": Trap()}, Trap(), [Trap()], {"model.weight": Trap()}):
        torch.save(content, tmp_path / "trap.ckpt")
        with pytest.raises(ValueError, match="trap.ckpt: "): read_checkpoint(tmp_path / "trap.ckpt")


def test_a_network_without_people_embeds_but_does_not_explain(state, tmp_path):
    torch.save(prefixed("model.", state), tmp_path / "adaface.ckpt")
    model = load_recognizer(tmp_path / "adaface.ckpt")
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    torch.testing.assert_close(model.embed(images).norm(dim=1), torch.ones(2))
    with pytest.raises(ValueError, match="the model knows no people"): explain(model, images)


@needs_real_faces
@pytest.mark.parametrize("file, kind, arch, color", [
    ("mobilefacenet_y1.npz", "MobileFaceNet y1", "mobilefacenet", ""),
    ("mobilefacenet_068.ckpt", "MobileFaceNet of PyTorch", "mobilefacenet_96", "rgb"),
])
def test_both_mobilefacenets_are_recognised_and_tell_people_apart(file, kind, arch, color):
    path, (images, people) = REAL / "weights" / file, real_faces(step=20)
    found = read_checkpoint(path)
    assert found.kind == kind and choose_architecture(found) == arch
    if color:
        with pytest.raises(ValueError, match="does not tell its color"): load_recognizer(path)
    cosines, same = load_recognizer(path, color=color).similarity(images, images), people[:, None] == people
    matching, others = cosines[same & ~torch.eye(len(same), dtype=torch.bool)], cosines[~same]
    assert (matching[:, None] > others[::7]).float().mean() > 0.99


def test_names_of_the_hub_are_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("minchul/cvlface_adaface_ir101_webface12m")
    assert is_hub_name("minchul/cvlface_adaface_ir18_casia@v1.0")
    for name in ("packaged", "weights/model.pt", "./weights/model", "/data/model", "a/b/c", "../x/y"):
        assert not is_hub_name(name)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "mine").touch()
    assert not is_hub_name("weights/mine")


COMMIT = "0123456789abcdef0123456789abcdef01234567"
PUBLISHED, PINNED, LAYOUT = "someone/face_net", f"someone/face_net@{COMMIT}", "someone/other_layout"


class Hub(BaseHTTPRequestHandler):
    """Serve models as the hub does; the first answer with weights breaks off in the middle."""
    protocol_version = "HTTP/1.1"

    def __init__(self, models: dict[str, dict[str, bytes]], log: list[str], *arguments):
        self.models, self.log = models, log
        super().__init__(*arguments)

    def log_message(self, *arguments): pass

    def do_HEAD(self): self.answer(body=False)

    def do_GET(self): self.answer(body=True)

    def answer(self, body: bool):
        model, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if model not in self.models: return self.refuse("RepoNotFound")
        if revision not in ("main", COMMIT): return self.refuse("RevisionNotFound")
        if name not in self.models[model]: return self.refuse("EntryNotFound")
        whole = self.models[model][name]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        content = whole[start:]
        if body: self.log.append(f"{name} from {start}")
        self.send_response(206 if start else 200)
        headers = {
            "ETag": f'"{hashlib.sha256(whole).hexdigest()}"', "X-Repo-Commit": COMMIT,
            "Content-Length": len(content), "Accept-Ranges": "bytes"}
        if start: headers["Content-Range"] = f"bytes {start}-{len(whole) - 1}/{len(whole)}"
        for header in headers.items(): self.send_header(*map(str, header))
        self.end_headers()
        breaks = name.endswith(".pt") and self.log.count(f"{name} from 0") == 1 and not start
        if body: self.wfile.write(content[: len(content) // 2] if breaks else content)
        if breaks and body:
            self.wfile.flush()
            self.connection.close()

    def refuse(self, code: str):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def hub(models: dict[str, dict[str, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """Run a hub on this machine; give its address and a log of what was sent."""
    log: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, models, log))
    Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_port}", log
    finally: server.shutdown()


LOAD = """
import json, sys
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 2**16  # pieces that fit into a small file
from sdd_face.model import load_recognizer

def answer(name):
    try: return load_recognizer(name).record
    except Exception as error: return f"{type(error).__name__}: {error}"

print(json.dumps({name: answer(name) for name in sys.argv[1:]}))
"""


def load_from(address: str, cache: Path, *names: str, **environment: str) -> dict[str, dict | str]:
    """Load models by their names in a process of its own, since the library reads its settings once."""
    quiet = {f"HF_HUB_DISABLE_{what}": "1" for what in ("XET", "TELEMETRY", "PROGRESS_BARS")}
    settings = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(cache)} | quiet | environment
    result = subprocess.run(
        [sys.executable, "-c", LOAD, *names], env=settings, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@dataclass
class Answers:
    """What became of names, while the hub was there and when it was gone."""
    online: dict[str, dict | str]  # the record of the model, or the error
    offline: dict[str, dict | str]
    sent: list[str]  # by the hub


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> Answers:
    """Ask for models by name: in two processes for all tests, since each of them imports torch."""
    folder = tmp_path_factory.mktemp("hub")
    torch.save(prefixed("net.", embedding_network("ir_tiny").state_dict()), folder / "model.pt")
    files = {"model.pt": (folder / "model.pt").read_bytes(), "model.yaml": b"color_space: 'BGR'\nname: ir_tiny\n"}
    published = {f"pretrained_model/{name}": content for name, content in files.items()}
    with hub({PUBLISHED: published, LAYOUT: {"config.json": b"{}"}}) as (address, sent):
        names = PUBLISHED, PINNED, "nobody/nothing", f"{PUBLISHED}@v9", LAYOUT
        online = load_from(address, folder / "cache", *names)
    offline = load_from(address, folder / "cache", PUBLISHED, "someone/never_seen", HF_HUB_OFFLINE="1")
    return Answers(online, offline, sent)


def test_a_model_comes_from_the_hub_once_whole_and_with_its_commit(answers):
    record = answers.online[PUBLISHED]
    assert record["color"] == "bgr" and record["source"] == f"CVLface model, commit {COMMIT[:12]}"
    assert answers.online[PINNED] == record
    weights = [line for line in answers.sent if line.startswith("pretrained_model/model.pt")]
    assert weights[0].endswith("from 0") and not weights[1].endswith("from 0")  # it went on where it broke off
    assert len(weights) == 2  # and was not fetched again for the commit
    assert answers.offline[PUBLISHED] == record


@pytest.mark.parametrize("name, message", [
    ("nobody/nothing", "no such model on the hub, or it is private"),
    (f"{PUBLISHED}@v9", "the hub has this model, but not the revision v9"),
    (LAYOUT, "holds no pretrained_model/model.yaml; expected a model in the layout of CVLface"),
])
def test_what_the_hub_does_not_have_is_said(answers, name, message):
    assert answers.online[name].startswith(f"ValueError: {name}: {message}")


def test_without_a_network_the_cache_is_all_there_is(answers):
    message = "ConnectionError: someone/never_seen: not in the cache, and the hub cannot be reached"
    assert answers.offline["someone/never_seen"].startswith(message)


# Networks of others

class IBlock(nn.Module):
    """A block of InsightFace's iresnet, under its names."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inside), nn.Conv2d(inside, outside, 3, 1, 1, bias=False)
        self.bn2, self.prelu = nn.BatchNorm2d(outside), nn.PReLU(outside)
        self.conv2, self.bn3 = nn.Conv2d(outside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return y + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """InsightFace's iresnet of arcface_torch, whose backbone.pth is read."""

    def __init__(self, depths: tuple[int, ...]):
        super().__init__()
        self.conv1, self.bn1, self.prelu = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)
        for i, (depth, inside, outside) in enumerate(zip(depths, (64, 64, 128, 256), (64, 128, 256, 512)), 1):
            rest = [IBlock(outside, outside, 1) for _ in range(depth - 1)]
            setattr(self, f"layer{i}", nn.Sequential(IBlock(inside, outside, 2), *rest))
        self.bn2, self.dropout, self.fc = nn.BatchNorm2d(512), nn.Dropout(0.0), nn.Linear(25088, 512)
        self.features = nn.BatchNorm1d(512)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.prelu(self.bn1(self.conv1(x)))))))
        return self.features(self.fc(self.dropout(self.bn2(x)).flatten(1)))


def test_insightface_backbones_are_read_as_they_are(tmp_path):
    theirs, file = shaken(IResNet((2, 2, 2, 2))), tmp_path / "backbone.pth"
    torch.save(theirs.state_dict(), file)
    ours, images = load_recognizer(file, ["Ada", "Bo"], head="own"), noise(2)
    assert (ours.record["arch"], ours.record["color"], ours.record["std"]) == ("iresnet18", "rgb", 127.5)
    with torch.no_grad(): wanted = nn.functional.normalize(theirs((images / 255 - 0.5) / 0.5))
    torch.testing.assert_close(ours.embed(images), wanted, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        x = ours.preprocess(images)
        maps, constants = logit_maps(ours.head, ours.features(x), torch.arange(2))
        torch.testing.assert_close(maps.mean((2, 3)) + constants, ours(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arch, depths, millions", [
    ("iresnet18", (2, 2, 2, 2), 24.03), ("iresnet34", (3, 4, 6, 3), 34.14), ("iresnet50", (3, 4, 14, 3), 43.59),
    ("iresnet100", (3, 13, 30, 3), 65.16)])
def test_all_depths_of_insightface(arch, depths, millions):
    with torch.device("meta"): state = IResNet(depths).state_dict()
    found = of_other_names(state)
    assert matching_architecture(found["tensors"]) == arch and found["kind"] == "InsightFace model"
    with torch.device("meta"): count = sum(each.numel() for each in embedding_network(arch).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


def test_facenet_weights_are_read_as_they_are(tmp_path):
    facenet = pytest.importorskip("facenet_pytorch", reason="facenet-pytorch is not installed")
    torch.manual_seed(0)
    theirs, file = shaken(facenet.InceptionResnetV1(num_classes=8631, classify=False)), tmp_path / "vggface2.pt"
    torch.save(theirs.state_dict(), file)
    ours = load_recognizer(file, ["Ada", "Bo"], head="own", classifier="cosine")
    images = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    assert ours.image_size == (160, 160) and ours.record["arch"] == "inception_resnet"
    with torch.no_grad(): wanted = theirs((images - 127.5) / 128)
    torch.testing.assert_close(ours.embed(images), wanted, rtol=1e-4, atol=1e-5)
    pair = sf.explain_pair(ours, images[:1], images[1:])
    torch.testing.assert_close(pair.a.map.mean((1, 2)) + pair.a.constant, pair.cosine, rtol=1e-4, atol=1e-5)
    for method in ("cam", "guided_backprop"):
        assert sf.attribute(ours, images, method=method).shape == (2, 160, 160)
    with pytest.raises(ValueError, match=r"expected \(B, 3, 160, 160\)"): ours.embed(noise(2))


def test_unknown_networks_are_led_to_wrap(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    message = r"beginning with conv1\.weight; known are .*net\.load_state_dict.*sdd_face\.wrap\(net\.eval\(\)"
    with pytest.raises(ValueError, match=message): load_recognizer(tmp_path / "resnet18.pth", color="rgb")
    torch.save({"model": embedding_network("ir_tiny").state_dict(), "epoch": 3}, tmp_path / "training.pth")
    assert load_recognizer(tmp_path / "training.pth", ["Ada"], color="rgb").record["arch"] == "ir_tiny"


@pytest.mark.parametrize("wrapping", [lambda net: net, lambda net: {"model": net, "epoch": 3}])
def test_a_pickled_module_is_told_to_save_its_state_dict(tmp_path, wrapping):
    for net in (torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 16), nn.Sequential(nn.Linear(2, 2))):
        torch.save(wrapping(net), tmp_path / "module.pt")
        message = r"holds no state_dict, .* but a pickled network; save its state_dict: torch\.save\(net\.state_dict\("
        with pytest.raises(ValueError, match=message): load_recognizer(tmp_path / "module.pt")
