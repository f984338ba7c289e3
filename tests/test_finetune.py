"""Fine-tuning: it learns, it survives being killed, and a run never stands for something else."""
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sdd_face.data import load_faces, split_faces
from sdd_face.finetune import QUICK, accuracy, finetune, predict, prepare_run
from sdd_face.model import FaceRecognizer, load_recognizer, read_record

RUN = """
import sys
from sdd_face.finetune import prepare_run
recipe = dict(epochs=4, learning_rate=0.002, step_size=2, gamma=0.1, batch_size=16, layers="all")
prepare_run("killed", people=3, images_per_person=20, device="cpu", recipe=recipe)
"""
SMALL = {"people": 3, "images_per_person": 12, "device": "cpu", "recipe": QUICK | {"epochs": 1, "layers": "head"}}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)


def start(folder: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, "-c", RUN], cwd=folder, stderr=subprocess.DEVNULL)


def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path):
    assert start(tmp_path / "unbroken").wait() == 0
    broken, kills = tmp_path / "broken", 0
    made = broken / "runs" / "killed"
    for condition in (lambda: (made / "history.csv").exists(), lambda: len((made / "history.csv").read_text().splitlines()) >= 4):
        process = start(broken)
        while process.poll() is None and not condition(): time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 2 and not (made / "model.safetensors").exists()
    assert start(broken).wait() == 0
    one, other = (load_file(tmp_path / name / "runs" / "killed" / "model.safetensors") for name in ("unbroken", "broken"))
    for name, value in one.items(): assert torch.equal(value, other[name]), name
    with open(made / "history.csv", newline="") as file: assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]
    assert not (made / "checkpoint.pt").exists()


def test_the_head_alone_leaves_the_body_as_it_was():
    faces = load_faces(people=4, images_per_person=15)
    train, val, _ = split_faces(faces)
    model = load_recognizer("packaged", classes=faces.names)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    finetune(model, train, val, epochs=30, learning_rate=0.02, batch_size=16, layers="head", device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    assert accuracy(model, train) > 0.9


def test_training_the_head_on_cached_features_is_training_it_on_images():
    faces = load_faces(people=3, images_per_person=10)
    cached, plain = (load_recognizer("packaged", classes=faces.names) for _ in range(2))
    finetune(cached, faces, faces, epochs=1, learning_rate=0.01, batch_size=100, layers="head", device="cpu")
    optimizer = torch.optim.AdamW(plain.head.parameters(), 0.01)
    torch.nn.functional.cross_entropy(plain(plain.preprocess(faces.images)), faces.labels).backward()
    optimizer.step()
    torch.testing.assert_close(cached.head.classifier.weight, plain.head.classifier.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("head", ["pool", "own"])
def test_a_frozen_network_sees_each_face_once(head):
    faces = load_faces(people=4, images_per_person=15)
    train, val, _ = split_faces(faces)
    model, seen = load_recognizer("packaged", classes=faces.names, head=head), []
    watch = model.backbone.input_layer.register_forward_hook(lambda layer, inputs, output: seen.append(len(output)))
    finetune(model, train, val, Path("here"), epochs=4, learning_rate=0.01, batch_size=16, layers="head", device="cpu")
    watch.remove()
    assert sum(seen) == len(train) + len(val)
    with open("here/history.csv", newline="") as file: *_, last = csv.DictReader(file)
    assert float(last["val_accuracy"]) == pytest.approx(accuracy(model, val), abs=1e-6)


def test_the_learning_rate_falls_as_the_paper_says():
    faces = load_faces(people=2, images_per_person=4)
    model = FaceRecognizer("ir_tiny", faces.names)
    finetune(model, faces, faces, Path("here"), epochs=5, learning_rate=0.01, step_size=2, gamma=0.1, layers="head", device="cpu")
    with open("here/history.csv", newline="") as file: rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001])


def test_a_loss_that_diverges_is_an_error():
    faces = load_faces(people=2, images_per_person=4)
    model = FaceRecognizer("ir_tiny", faces.names)
    with torch.no_grad(): model.head.classifier.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="try a lower learning_rate"): finetune(model, faces, faces, epochs=1, device="cpu")


def test_a_label_outside_the_model_is_an_error():
    faces = load_faces(people=3, images_per_person=4)
    with pytest.raises(ValueError, match=r"label 2 is outside the model, which knows 2 people \(0 to 1\)"): finetune(FaceRecognizer("ir_tiny", ["a", "b"]), faces, faces, epochs=1, device="cpu")


def test_a_run_is_found_again_and_stands_for_nothing_else():
    made = prepare_run("small", **SMALL)
    file = made.folder / "model.safetensors"
    assert {"split.csv", "model.safetensors", "history.csv", "metrics.json", "samples.npy"} <= {path.name for path in made.folder.iterdir()}
    written = file.stat().st_mtime_ns
    again = prepare_run("small", **SMALL | {"recipe": None})
    assert file.stat().st_mtime_ns == written
    assert torch.equal(predict(made.model, made.test.images), predict(again.model, again.test.images))
    assert read_record(file)["made_from"]["recipe"] == SMALL["recipe"]
    for other, message in (({"seed": 1}, "seed 0, now 1"), ({"recipe": QUICK}, "recipe"), ({"people": 4}, "faces"), ({"arch": "ir_18"}, "arch 'ir_tiny', now 'ir_18'")):
        with pytest.raises(ValueError, match=f"runs/small was made from something else.*{message}"): prepare_run("small", **SMALL | other)


def test_a_broken_off_run_with_another_recipe_is_not_continued():
    faces = load_faces(people=2, images_per_person=4)
    finetune(FaceRecognizer("ir_tiny", faces.names), faces, faces, Path("here"), epochs=1, layers="head", device="cpu")
    with pytest.raises(ValueError, match="epochs 1, now 2"): finetune(FaceRecognizer("ir_tiny", faces.names), faces, faces, Path("here"), epochs=2, layers="head", device="cpu")


def test_the_notebooks_recipe_is_the_quick_one():
    """The parameters of 03_finetune and QUICK say the same, so that any notebook makes the same run."""
    import ast

    import nbformat

    notebook = nbformat.read(Path(__file__).resolve().parents[1] / "nbs" / "03_finetune.ipynb", 4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    assert {name: values["train" if name == "layers" else name] for name in QUICK} == QUICK


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "fork"), reason="needs POSIX limits")
def test_a_full_disk_keeps_what_was_there():
    """A file size limit stands for a full disk: the write fails half way."""
    made = prepare_run("small", **SMALL)
    before = (made.folder / "model.safetensors").read_bytes()
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from sdd_face.model import load_recognizer, save_recognizer
model = load_recognizer("runs/small/model.safetensors")
save_recognizer(model, "runs/small/model.safetensors")
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode != 0
    assert (made.folder / "model.safetensors").read_bytes() == before
    assert not list(made.folder.glob(".partial-*"))


def test_a_compiled_network_trains_like_a_plain_one(monkeypatch):
    """With the compiler's front end alone, which takes seconds; what it captures is what any back end compiles."""
    compiled, compiler = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or compiler(function, backend="aot_eager"))
    faces = load_faces(people=3, images_per_person=6)
    models = {how: load_recognizer("packaged", classes=faces.names).double() for how in ("no", "auto", "yes")}
    for how, model in models.items(): finetune(model, faces, faces, epochs=1, learning_rate=0.002, batch_size=8, device="cpu", compile=how)
    assert compiled == [models["yes"].features]  # "auto" compiles on a GPU only
    assert list(models["yes"].state_dict()) == list(models["no"].state_dict())
    for name, value in models["no"].state_dict().items(): torch.testing.assert_close(models["yes"].state_dict()[name], value, rtol=1e-6, atol=1e-8, msg=name)
    with pytest.raises(ValueError, match="compile is 'fast'; expected 'auto', 'yes' or 'no'"): finetune(models["no"], faces, faces, compile="fast")


def test_metrics_tell_how_fast_the_training_was():
    import json
    metrics = json.loads((prepare_run("small", **SMALL | {"recipe": QUICK | {"epochs": 1}}).folder / "metrics.json").read_text())
    assert set(metrics["training"]) == {"seconds", "images_per_second", "tflop_per_second"} and all(value > 0 for value in metrics["training"].values())
