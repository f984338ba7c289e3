"""Fine-tuning: it learns, it keeps to the recipe, and it does not go on with another one."""
import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdd_face.data import Faces, load_faces, split_faces
from sdd_face.finetune import Recipe, accuracy, differences, finetune
from sdd_face.model import FaceRecognizer, load_recognizer

HEAD = Recipe(epochs=1, learning_rate=0.01, batch_size=16, layers="head", augmentation="none")


@pytest.fixture(scope="session")
def faces() -> Faces: return load_faces(people=4, images_per_person=15)


@pytest.fixture(scope="session")
def few(faces) -> Faces: return faces[::8]  # two of each person


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)


def history(folder: str = "here") -> list[dict[str, str]]:
    with open(Path(folder) / "history.csv", newline="") as file: return list(csv.DictReader(file))


def test_the_head_alone_leaves_the_body_as_it_was(faces):
    train, val, _ = split_faces(faces)
    model = load_recognizer("packaged", classes=faces.names)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    finetune(model, train, val, recipe=replace(HEAD, epochs=30, learning_rate=0.02), device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    assert accuracy(model, train) > 0.9


def test_training_the_head_on_cached_features_is_training_it_on_images(faces):
    some = faces[::3]
    cached, plain = (load_recognizer("packaged", classes=faces.names) for _ in range(2))
    finetune(cached, some, some, recipe=replace(HEAD, batch_size=100), device="cpu")
    optimizer = torch.optim.AdamW(plain.head.parameters(), 0.01)
    torch.nn.functional.cross_entropy(plain(plain.preprocess(some.images)), some.labels).backward()
    optimizer.step()
    torch.testing.assert_close(cached.head.classifier.weight, plain.head.classifier.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("head", ["pool", "own"])
def test_a_frozen_network_sees_each_face_once(faces, head):
    train, val, _ = split_faces(faces)
    model, seen = load_recognizer("packaged", classes=faces.names, head=head), []
    watch = model.backbone.input_layer.register_forward_hook(lambda layer, inputs, output: seen.append(len(output)))
    finetune(model, train, val, recipe=replace(HEAD, epochs=4), folder="here", device="cpu")
    watch.remove()
    assert sum(seen) == len(train) + len(val)
    assert float(history()[-1]["val_accuracy"]) == pytest.approx(accuracy(model, val), abs=1e-6)


def test_the_learning_rate_falls_as_the_paper_says(few):
    model = FaceRecognizer("ir_tiny", few.names)
    finetune(model, few, few, recipe=replace(HEAD, epochs=5, step_size=2, gamma=0.1), folder="here", device="cpu")
    rates = [float(row["learning_rate"]) for row in history()]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001])


def test_a_loss_that_diverges_is_an_error(few):
    model = FaceRecognizer("ir_tiny", few.names)
    with torch.no_grad(): model.head.classifier.weight[0, 0] = torch.nan
    message = "the loss is nan in epoch 1; try a lower learning_rate than 0.005"
    with pytest.raises(FloatingPointError, match=message):
        finetune(model, few, few, recipe=Recipe(epochs=1), device="cpu")


def test_people_whom_the_model_does_not_know_are_an_error(few):
    message = "the network does not know person_00, person_01, person_02, person_03; it knows 2 people"
    with pytest.raises(ValueError, match=message):
        finetune(FaceRecognizer("ir_tiny", ["a", "b"]), few, few, recipe=Recipe(epochs=1), device="cpu")


def test_a_recipe_is_the_papers_and_stays_as_it_is():
    assert Recipe() == Recipe(epochs=20, learning_rate=0.005, step_size=10, gamma=0.1, batch_size=128, layers="all")
    with pytest.raises(ValueError, match="layers is 'body'; expected 'all' or 'head'"): Recipe(layers="body")
    with pytest.raises(AttributeError): Recipe().epochs = 3
    with pytest.raises(TypeError): Recipe(20)


def test_differences_name_what_was_and_what_is():
    assert differences({"a": 1, "b": 2}, {"b": 3, "c": "x"}) == "a 1, now None, b 2, now 3, c None, now 'x'"
    assert differences({"a": 1}, {"a": 1}) == ""


def test_a_broken_off_training_with_another_recipe_is_not_continued(few):
    def train(recipe: Recipe) -> FaceRecognizer:
        return finetune(FaceRecognizer("ir_tiny", few.names), few, few, recipe=recipe, folder="here", device="cpu")

    train(HEAD)
    message = r"here/checkpoint.pt: another recipe was broken off here \(epochs 1, now 2\); choose another run name"
    with pytest.raises(ValueError, match=message): train(replace(HEAD, epochs=2))
    assert len(history()) == 1


def test_a_compiled_network_trains_like_a_plain_one(monkeypatch, faces):
    """With the compiler's front end alone, which takes seconds; what it captures is what any back end compiles."""
    compiled, compiler = [], torch.compile

    def compile_in_front(function):
        compiled.append(function)
        return compiler(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_in_front)
    some, recipe = faces[::10], Recipe(epochs=1, learning_rate=0.002, batch_size=4)  # a whole batch, and half of one
    models = {how: load_recognizer("packaged", classes=faces.names).double() for how in ("no", "auto", "yes")}
    for how, model in models.items():
        epochs = 0 if how == "auto" else 1  # what is compiled is decided before the first
        finetune(model, some, some, recipe=replace(recipe, epochs=epochs), device="cpu", compile=how)
    assert compiled == [models["yes"].backbone.features]  # "auto" compiles on a GPU only
    states = {how: model.state_dict() for how, model in models.items()}
    assert list(states["yes"]) == list(states["no"])
    for name, value in states["no"].items():
        torch.testing.assert_close(states["yes"][name], value, rtol=1e-6, atol=1e-8, msg=name)
    with pytest.raises(ValueError, match="compile is 'fast'; expected 'auto', 'yes' or 'no'"):
        finetune(models["no"], some, some, compile="fast")
