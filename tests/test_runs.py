"""Runs: a name stands for one thing, is found again, and survives being killed."""
import ast
import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sdd_face import runs
from sdd_face.checkpoints import read_record
from sdd_face.data import load_faces
from sdd_face.finetune import Recipe, accuracy
from sdd_face.model import load_recognizer, predict
from sdd_face.passes import choose_precision
from sdd_face.runs import (
    QUICK,
    Settings,
    make_run,
    open_or_make,
    open_or_packaged,
    open_run,
    run_settings,
    write_metrics,
)

ONE_EPOCH = replace(QUICK, epochs=1, layers="head", augmentation="none")
SMALL = Settings(people=3, images_per_person=12, recipe=ONE_EPOCH)
draw_once = cache(load_faces)  # the same faces for every test: drawing them takes longer than all the rest


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "load_faces", draw_once)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory) -> Iterator[runs.Run]:
    """Make a small run, in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("small"))
        patch.setattr(runs, "load_faces", draw_once)
        yield make_run("small", SMALL, device="cpu")


@pytest.fixture
def small(made_once, monkeypatch) -> runs.Run:
    """Go to the folder of the small run, which no test changes."""
    monkeypatch.chdir(made_once.folder.parents[1])
    return made_once


@pytest.fixture
def copied(made_once, tmp_path) -> Path:
    """Give a copy of the small run, in the folder of the test."""
    return Path(shutil.copytree(made_once.folder, tmp_path / "runs" / "small"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same_weights(one: Path, other: Path) -> None:
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    for name, value in a.items(): assert torch.equal(value, b[name]), name


# Opened again, and refused

def test_a_run_is_found_again(small):
    file = small.folder / "model.safetensors"
    expected = {"split.csv", "model.safetensors", "history.csv", "metrics.json", "samples.npy", "settings.json"}
    assert contents(small.folder).keys() == expected
    written = file.stat().st_mtime_ns
    for again in (open_run("small", device="cpu"), make_run("small", SMALL, device="cpu")):
        assert file.stat().st_mtime_ns == written
        assert again.settings == SMALL and again.folder == small.folder and not again.model.training
        assert torch.equal(predict(small.model, small.test.images), predict(again.model, again.test.images))
        for side in ("train", "val", "test"): assert getattr(again, side).files == getattr(small, side).files
    assert read_record(file)["made_from"]["recipe"] == asdict(ONE_EPOCH)


@pytest.mark.parametrize("other, message", [
    ({"data": "photographs"}, "data is '.*photographs', the run has 'synthetic'"),
    ({"people": 4}, "people is 4, the run has 3"),
    ({"images_per_person": 11}, "images_per_person is 11, the run has 12"),
    ({"arch": "ir_18"}, "arch is 'ir_18', the run has 'ir_tiny'"),
    ({"weights": "weights/other.ckpt"}, "weights is 'weights/other.ckpt', the run has 'packaged'"),
    ({"head": "own"}, "head is 'own', the run has 'pool'"),
    ({"classifier": "cosine"}, "classifier is 'cosine', the run has 'linear'"),
    ({"seed": 1}, "seed is 1, the run has 0"),
    ({"recipe": replace(ONE_EPOCH, epochs=2, gamma=0.2)}, "epochs is 2, the run has 1, gamma is 0.2, the run has 0.1"),
    ({"recipe": replace(ONE_EPOCH, learning_rate=0.1)}, "learning_rate is 0.1, the run has 0.002"),
    ({"recipe": replace(ONE_EPOCH, step_size=5)}, "step_size is 5, the run has 4"),
    ({"recipe": replace(ONE_EPOCH, batch_size=32)}, "batch_size is 32, the run has 64"),
    ({"recipe": replace(ONE_EPOCH, layers="all")}, "layers is 'all', the run has 'head'"),
])
def test_a_run_stands_for_nothing_else(small, tmp_path, other, message):
    if "data" in other: other = {"data": str(photographs(tmp_path))}
    before = contents(small.folder)
    refused = rf"runs/small: {message}; choose another run name, or delete it"
    with pytest.raises(ValueError, match=refused): make_run("small", replace(SMALL, **other), device="cpu")
    assert contents(small.folder) == before


def photographs(folder: Path) -> Path:
    """Write the faces of the small run to a folder, as photographs of three people."""
    faces = draw_once("synthetic", people=3, images_per_person=12, seed=0, device="cpu")
    for i, (image, label) in enumerate(zip(faces.images, faces.labels)):
        path = folder / "photographs" / f"person {label}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return folder / "photographs"


def test_colors_that_the_model_was_not_trained_with_are_refused(copied):
    color = read_record(copied / "model.safetensors")["color"]
    assert make_run("small", replace(SMALL, color=color), device="cpu").settings.color == color
    before, wrong = contents(copied), {"rgb": "bgr", "bgr": "rgb"}[color]
    with pytest.raises(ValueError, match=f"model.safetensors: color is '{color}', but '{wrong}' was asked for"):
        make_run("small", replace(SMALL, color=wrong), device="cpu")
    assert contents(copied) == before


def test_two_names_are_two_runs(copied, made_once):
    before = contents(copied)
    other = make_run("other", replace(SMALL, seed=1), device="cpu")
    assert {path.name for path in copied.parent.iterdir()} == {"small", "other"} and contents(copied) == before
    assert run_settings("small").seed == 0 and run_settings("other").seed == 1
    one, two = open_run("small", device="cpu"), open_run("other", device="cpu")
    assert one.folder == copied and two.folder == other.folder
    weights = [each.model.head.classifier.weight for each in (one, made_once, two, other)]
    assert torch.equal(*weights[:2]) and torch.equal(*weights[2:]) and not torch.equal(weights[0], weights[2])


# Missing ones

@pytest.mark.parametrize("read", [run_settings, open_run])
def test_a_missing_run_is_refused_with_the_command_that_makes_it(read):
    message = "runs/mine: no such run; notebook 03 makes it, or: sdd-face reproduce --run mine"
    with pytest.raises(FileNotFoundError, match=message): read("mine")
    assert not list(Path().iterdir())


def test_the_missing_default_run_is_made(monkeypatch):
    assert run_settings() == run_settings("quick") == Settings()
    small = {"people": 2, "images_per_person": 6, "recipe": ONE_EPOCH}
    monkeypatch.setattr(runs, "Settings", lambda **kept: Settings(**small | kept))  # the true one takes a minute
    made = open_run(device="cpu")
    assert made.folder == Path("runs/quick").resolve() and made.settings == Settings(**small)
    monkeypatch.undo()
    monkeypatch.chdir(made.folder.parents[1])
    assert run_settings() == made.settings  # what it was made from, no longer the defaults
    assert torch.equal(open_run(device="cpu").model.head.classifier.weight, made.model.head.classifier.weight)


# What it was made from

def test_where_there_is_no_run_the_packaged_network_explains_people_that_it_knows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ready = open_or_packaged(device="cpu")
    assert not list(tmp_path.iterdir()) and ready.settings.recipe.epochs == 0
    assert len(ready.test) >= 40 and ready.test.names == ready.model.names[: len(ready.test.names)]
    assert accuracy(ready.model, ready.test) > 0.9
    with pytest.raises(FileNotFoundError, match="runs/mine: no such run"): open_or_packaged("mine")


def test_settings_are_kept_as_they_were():
    settings = Settings(
        data="faces", people=3, images_per_person=5, relatives=2, differing=3, arch="ir_50",
        weights="OWNER/NAME@main", color="bgr", head="own", classifier="cosine", seed=7, precision="bfloat16",
        recipe=Recipe(
            epochs=3, learning_rate=1e-4, step_size=2, gamma=0.3, batch_size=8, layers="head", augmentation="none"))
    assert all(getattr(settings, name) != value for name, value in vars(Settings()).items())
    folder = Path("runs/mine")
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(asdict(settings)))
    kept = run_settings("mine")
    assert kept == settings and isinstance(kept.recipe, Recipe)
    assert [type(value) for value in vars(kept).values()] == [type(value) for value in vars(settings).values()]


def test_the_settings_of_a_run_are_a_file_that_can_be_read(small):
    kept = json.loads((small.folder / "settings.json").read_text())
    assert kept == asdict(SMALL) and kept["recipe"] == asdict(ONE_EPOCH)


def test_settings_are_not_changed_by_accident():
    with pytest.raises(AttributeError): Settings().seed = 1
    with pytest.raises(TypeError): Settings("faces")


def test_the_notebooks_parameters_are_the_default_settings():
    """The parameters of notebook 03 and the defaults say the same, so that any notebook makes the same run."""
    notebook = nbformat.read(Path(__file__).resolve().parents[1] / "nbs" / "03_finetune.ipynb", 4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    wanted = asdict(Settings())
    recipe = wanted.pop("recipe")
    assert values["run"] == "quick" and {name: values[name] for name in wanted} == wanted
    assert {name: values["train" if name == "layers" else name] for name in recipe} == recipe == asdict(QUICK)


def test_a_run_starts_from_its_network_under_its_head_or_another(small):
    network, started = SMALL.load_network(), SMALL.start_model(small.train.names)
    assert network.names == load_recognizer("packaged").names and started.names == small.train.names
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(value, started.backbone.state_dict()[name]), name
        assert torch.equal(value, small.model.backbone.state_dict()[name]), name  # only the head was trained
    assert (started.record["head"], started.record["classifier"]) == ("pool", "linear")
    record = replace(SMALL, classifier="cosine").start_model(["Ann"], head="own").record
    assert (record["head"], record["classifier"]) == ("own", "cosine")


# Beside the model

def test_samples_are_a_face_of_each_person(small):
    samples = torch.from_numpy(np.load(small.folder / "samples.npy"))
    assert samples.shape == (3, 3, 112, 112)
    for c, sample in enumerate(samples): assert torch.equal(sample, small.train.images[small.train.labels == c][0])


def test_metrics_tell_how_good_and_how_fast_it_was(small, tmp_path, monkeypatch):
    metrics = json.loads((small.folder / "metrics.json").read_text())
    sizes = [metrics[side] for side in ("train", "val", "test")]
    assert sizes == [len(small.train), len(small.val), len(small.test)] and sum(sizes) == metrics["images"] == 36
    right = (predict(small.model, small.test.images).argmax(1) == small.test.labels).float().mean()
    assert metrics["people"] == 3 and metrics["accuracy"]["test"] == pytest.approx(float(right))
    assert set(metrics["training"]) == {"seconds", "precision", "images_per_second"}
    monkeypatch.chdir(tmp_path)
    settings = Settings(people=2, images_per_person=6, recipe=replace(QUICK, epochs=1))
    made = make_run("every layer", settings, device="cpu")
    training = json.loads((made.folder / "metrics.json").read_text())["training"]
    assert training.pop("precision") == choose_precision("auto", torch.device("cpu"))
    assert set(training) == {"seconds", "images_per_second", "tflop_per_second"}
    assert all(value > 0 for value in training.values())


def test_metrics_are_added_to(tmp_path):
    write_metrics(tmp_path, one=1, two=2)
    write_metrics(tmp_path, two=3)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"one": 1, "two": 3}


# One policy for every model that is kept

def test_a_model_is_made_once_and_not_written_over(tmp_path):
    file, made = tmp_path / "deep" / "net.safetensors", []

    def make():
        made.append(load_recognizer("packaged", ["Ann", "Bob"], seed=len(made)))
        return made[-1]

    first, second = (open_or_make(file, {"people": (1, 2), "seed": 0}, make) for _ in range(2))
    assert made == [first] and torch.equal(first.head.classifier.weight, second.head.classifier.weight)
    before = file.read_bytes()
    message = r"net.safetensors was made from something else \(seed 0, now 1\); choose another run name, or delete it"
    with pytest.raises(ValueError, match=message): open_or_make(file, {"people": [1, 2], "seed": 1}, make)
    file.with_name("other.safetensors").write_bytes(before[:1000])
    with pytest.raises(ValueError, match="other.safetensors: damaged, cut short"):
        open_or_make(file.with_name("other.safetensors"), {}, make)
    assert len(made) == 1 and file.read_bytes() == before


# Killed

KILLED = Settings(
    people=3, images_per_person=16, recipe=Recipe(epochs=4, learning_rate=0.002, step_size=2, batch_size=16))
RUN = f"""
from sdd_face.finetune import Recipe, accuracy
from sdd_face.runs import Settings, make_run
make_run("killed", {KILLED!r}, device="cpu")
"""


def kill_when(condition, folder: Path) -> None:
    """Start the run in a process of its own, and kill it once the condition holds."""
    process = subprocess.Popen([sys.executable, "-c", RUN], cwd=folder, stderr=subprocess.DEVNULL)
    while process.poll() is None and not condition(): time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    made = tmp_path / "broken" / "runs" / "killed"
    history = made / "history.csv"
    kill_when(history.exists, tmp_path / "broken")
    kill_when(lambda: len(history.read_text().splitlines()) >= 4, tmp_path / "broken")
    assert not (made / "model.safetensors").exists() and (made / "checkpoint.pt").exists()
    with pytest.raises(FileNotFoundError, match="runs/killed: no such run"): open_run("killed")

    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        make_run("killed", KILLED, device="cpu")
    same_weights(made / "model.safetensors", tmp_path / "unbroken" / "runs" / "killed" / "model.safetensors")
    with open(history, newline="") as file: rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert not (made / "checkpoint.pt").exists() and run_settings("killed") == KILLED
