"""Fine-tuning: it learns, it survives being killed, and goes on with nothing else than it began with."""
import csv
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sdd_face.data import Faces, load_faces, split_faces
from sdd_face.finetune import Recipe, accuracy, differences, finetune
from sdd_face.model import FaceRecognizer, load_recognizer

RUN = """
from sdd_face.finetune import Recipe
from sdd_face.runs import Settings, make_run
recipe = Recipe(epochs=4, learning_rate=0.002, step_size=2, gamma=0.1, batch_size=16)
make_run("killed", Settings(people=3, images_per_person=20, recipe=recipe), device="cpu")
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def few() -> Faces: return load_faces(people=2, images_per_person=4)


@pytest.fixture(scope="module")
def sides() -> tuple[Faces, Faces]:
    """Give the faces of four people to learn from, and to watch."""
    train, val, _ = split_faces(load_faces(people=4, images_per_person=15))
    return train, val


def start(folder: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, "-c", RUN], cwd=folder, stderr=subprocess.DEVNULL)


def epochs_in(history: Path) -> list[str]:
    """List the epochs that are done."""
    if not history.exists(): return []
    with open(history, newline="") as file: return [row["epoch"] for row in csv.DictReader(file)]


def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path):
    assert start(tmp_path / "unbroken").wait() == 0
    broken, kills = tmp_path / "broken", 0
    made = broken / "runs" / "killed"
    for done in (1, 3):
        process = start(broken)
        while process.poll() is None and len(epochs_in(made / "history.csv")) < done: time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 2 and not (made / "model.safetensors").exists()
    assert start(broken).wait() == 0
    one, other = (load_file(tmp_path / name / "runs/killed/model.safetensors") for name in ("unbroken", "broken"))
    for name, value in one.items(): assert torch.equal(value, other[name]), name
    assert epochs_in(made / "history.csv") == ["1", "2", "3", "4"]
    assert not (made / "checkpoint.pt").exists()


def test_the_head_alone_leaves_the_body_as_it_was(sides):
    train, val = sides
    model = load_recognizer("packaged", train.names)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    recipe = Recipe(epochs=30, learning_rate=0.02, batch_size=16, layers="head")
    finetune(model, train, val, recipe=recipe, device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    assert accuracy(model, train) > 0.9


def test_training_the_head_on_cached_features_is_training_it_on_images():
    faces = load_faces(people=3, images_per_person=10)
    cached, plain = (load_recognizer("packaged", faces.names) for _ in range(2))
    recipe = Recipe(epochs=1, learning_rate=0.01, batch_size=100, layers="head")
    finetune(cached, faces, faces, recipe=recipe, device="cpu")
    optimizer = torch.optim.AdamW(plain.head.parameters(), 0.01)
    torch.nn.functional.cross_entropy(plain(plain.preprocess(faces.images)), faces.labels).backward()
    optimizer.step()
    torch.testing.assert_close(cached.head.classifier.weight, plain.head.classifier.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("head", ["pool", "own"])
def test_a_frozen_network_sees_each_face_once(sides, head):
    train, val = sides
    model, seen = load_recognizer("packaged", train.names, head=head), []
    layer = model.backbone.input_layer
    watch = layer.register_forward_hook(lambda layer, inputs, output: seen.append(len(output)))
    recipe = Recipe(epochs=4, learning_rate=0.01, batch_size=16, layers="head")
    finetune(model, train, val, recipe=recipe, folder="here", device="cpu")
    watch.remove()
    assert sum(seen) == len(train) + len(val)
    with open("here/history.csv", newline="") as file: *_, last = csv.DictReader(file)
    assert float(last["val_accuracy"]) == pytest.approx(accuracy(model, val), abs=1e-6)


def test_the_learning_rate_falls_as_the_paper_says(few):
    recipe = Recipe(epochs=5, learning_rate=0.01, step_size=2, gamma=0.1, layers="head")
    finetune(FaceRecognizer("ir_tiny", few.names), few, few, recipe=recipe, folder="here", device="cpu")
    with open("here/history.csv", newline="") as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001])


def test_a_loss_that_diverges_is_an_error(few):
    model = FaceRecognizer("ir_tiny", few.names)
    with torch.no_grad(): model.head.classifier.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="try a lower learning_rate"):
        finetune(model, few, few, recipe=Recipe(epochs=1), device="cpu")


def test_a_label_outside_the_model_is_an_error():
    faces, model = load_faces(people=3, images_per_person=4), FaceRecognizer("ir_tiny", ["a", "b"])
    with pytest.raises(ValueError, match=r"label 2 is outside the model, which knows 2 people \(0 to 1\)"):
        finetune(model, faces, faces, recipe=Recipe(epochs=1), device="cpu")


def test_a_broken_off_run_with_another_recipe_is_not_continued(few):
    def train(epochs: int) -> None:
        recipe = Recipe(epochs=epochs, layers="head")
        finetune(FaceRecognizer("ir_tiny", few.names), few, few, recipe=recipe, folder="here", device="cpu")

    train(1)
    with pytest.raises(ValueError, match="epochs 1, now 2"): train(2)


def test_a_recipe_is_the_papers_unless_it_says_otherwise():
    paper = {"epochs": 20, "learning_rate": 0.005, "step_size": 10, "gamma": 0.1, "batch_size": 128, "layers": "all"}
    assert asdict(Recipe()) == paper
    assert differences(paper, asdict(Recipe(epochs=2))) == "epochs 20, now 2"
    with pytest.raises(ValueError, match="layers is 'some'; expected 'all' or 'head'"): Recipe(layers="some")
    with pytest.raises(AttributeError): Recipe().epochs = 3


def test_a_compiled_network_trains_like_a_plain_one(monkeypatch):
    """With the compiler's front end alone, which takes seconds; what it captures is what any back end compiles."""
    compiled, compiler = [], torch.compile

    def capture(function):
        compiled.append(function)
        return compiler(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", capture)
    faces, recipe = load_faces(people=3, images_per_person=6), Recipe(epochs=1, learning_rate=0.002, batch_size=8)
    models = {how: load_recognizer("packaged", faces.names).double() for how in ("no", "auto", "yes")}
    for how, model in models.items(): finetune(model, faces, faces, recipe=recipe, device="cpu", compile=how)
    assert compiled == [models["yes"].features]  # "auto" compiles on a GPU only
    plain, other = (models[how].state_dict() for how in ("no", "yes"))
    assert list(plain) == list(other)
    for name, value in plain.items(): torch.testing.assert_close(other[name], value, rtol=1e-6, atol=1e-8, msg=name)
    with pytest.raises(ValueError, match="compile is 'fast'; expected 'auto', 'yes' or 'no'"):
        finetune(models["no"], faces, faces, compile="fast")
