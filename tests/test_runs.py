"""A run is opened by its name, and stands for nothing else than what it was made from."""
import ast
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import ROOT

from sdd_face.checkpoints import read_record
from sdd_face.finetune import Recipe
from sdd_face.model import load_recognizer, predict
from sdd_face.runs import QUICK, Run, Settings, make_run, open_or_make, open_run, run_settings, write_metrics

SMALL = Settings(people=3, images_per_person=12, recipe=replace(QUICK, epochs=1, layers="head"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Make a small run, once; the tests work in its folder."""
    folder, before = tmp_path_factory.mktemp("project"), Path.cwd()
    os.chdir(folder)
    try: yield make_run("small", SMALL, device="cpu")
    finally: os.chdir(before)


def test_a_run_keeps_what_it_was_made_from(made: Run):
    kept = {path.name for path in made.folder.iterdir()}
    assert kept == {"split.csv", "model.safetensors", "settings.json", "history.csv", "metrics.json", "samples.npy"}
    told = json.loads((made.folder / "settings.json").read_text())
    assert Settings(**told | {"recipe": Recipe(**told["recipe"])}) == SMALL == run_settings("small")
    assert read_record(made.folder / "model.safetensors")["made_from"]["recipe"] == asdict(SMALL.recipe)


def test_a_run_is_opened_by_its_name(made: Run):
    file = made.folder / "model.safetensors"
    written = file.stat().st_mtime_ns
    for again in (open_run("small", device="cpu"), make_run("small", SMALL, device="cpu")):
        assert again.settings == SMALL and again.folder == made.folder
        assert [side.files for side in (again.train, again.val, again.test)] == [
            side.files for side in (made.train, made.val, made.test)]
        assert torch.equal(predict(again.model, made.test.images), predict(made.model, made.test.images))
    assert file.stat().st_mtime_ns == written


@pytest.mark.parametrize("other, message", [
    ({"seed": 1}, "seed 0, now 1"), ({"recipe": QUICK}, "recipe"), ({"people": 4}, "faces"),
    ({"arch": "ir_18"}, "arch 'ir_tiny', now 'ir_18'"), ({"head": "own"}, "head 'pool', now 'own'"),
    ({"classifier": "cosine"}, "classifier 'linear', now 'cosine'"), ({"weights": "random"}, "weights 'packaged'"),
    ({"images_per_person": 11}, "faces"),
])
def test_a_run_stands_for_nothing_else(made: Run, other: dict, message: str):
    files = {path.name: path.read_bytes() for path in made.folder.iterdir()}
    with pytest.raises(ValueError, match=f"runs/small.* was made from something else.*{message}"):
        make_run("small", replace(SMALL, **other), device="cpu")
    assert {path.name: path.read_bytes() for path in made.folder.iterdir()} == files


def test_a_missing_run_is_refused_with_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (open_run, run_settings):
        with pytest.raises(FileNotFoundError, match="runs/mine: no such run; .* sdd-face reproduce --run mine"):
            call("mine")
    assert run_settings() == Settings() and not list(tmp_path.iterdir())


def test_the_default_run_is_made_if_it_is_missing(tmp_path, monkeypatch):
    from sdd_face import runs
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "Settings", lambda **given: replace(SMALL, **given))
    assert open_run(device="cpu").folder == tmp_path / "runs/quick" and (tmp_path / "runs/quick/settings.json").exists()


def test_two_names_are_two_runs(made: Run):
    other = make_run("other", replace(SMALL, seed=1), device="cpu")
    assert other.folder != made.folder and run_settings("small") == SMALL and run_settings("other").seed == 1


def test_a_model_is_opened_or_made_and_never_written_over(tmp_path):
    file, calls = tmp_path / "net.safetensors", []

    def make(): return calls.append(1) or load_recognizer("packaged")

    for _ in range(2): model = open_or_make(file, {"parts": ("a", "b")}, make)
    assert len(calls) == 1 and model.names == load_recognizer("packaged").names
    before = file.read_bytes()
    with pytest.raises(ValueError, match="net.safetensors was made from something else .parts .*choose another run"):
        open_or_make(file, {"parts": ("a",)}, make)
    assert file.read_bytes() == before and len(calls) == 1


def test_the_notebooks_recipe_is_the_quick_one():
    """The parameters of 03_finetune and the default settings say the same, so that any notebook makes the same run."""
    notebook = nbformat.read(ROOT / "nbs" / "03_finetune.ipynb", 4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    wanted = asdict(Settings())
    recipe = wanted.pop("recipe")
    assert {name: values[name] for name in wanted} == wanted
    assert {name: values["train" if name == "layers" else name] for name in recipe} == recipe


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "fork"), reason="needs POSIX limits")
def test_a_full_disk_keeps_what_was_there(made: Run):
    """A file size limit stands for a full disk: the write fails half way."""
    before = (made.folder / "model.safetensors").read_bytes()
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from sdd_face.model import load_recognizer, save_recognizer
model = load_recognizer("runs/small/model.safetensors")
save_recognizer(model, "runs/small/model.safetensors")
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=made.folder.parents[1], capture_output=True, text=True)
    assert process.returncode != 0
    assert (made.folder / "model.safetensors").read_bytes() == before
    assert not list(made.folder.glob(".partial-*"))


def test_metrics_tell_how_fast_the_training_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = make_run("whole", replace(SMALL, recipe=replace(QUICK, epochs=1)), device="cpu")
    training = json.loads((whole.folder / "metrics.json").read_text())["training"]
    assert set(training) == {"seconds", "images_per_second", "tflop_per_second"}
    assert all(value > 0 for value in training.values())
    write_metrics(whole.folder, more=1)
    assert json.loads((whole.folder / "metrics.json").read_text()).items() >= {"more": 1, "training": training}.items()
