"""What a run keeps may be damaged, and what is asked of it may make no sense: said before anything is trained."""
import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from sdd_face import ranges
from sdd_face.files import PARTIAL, atomic_path, is_hub_name, read_json, remove_partial
from sdd_face.finetune import Recipe
from sdd_face.keys import file_stamps
from sdd_face.masks import FILLS
from sdd_face.methods import METHODS
from sdd_face.networks import ARCHITECTURES
from sdd_face.parameters import declared_parameters, notebooks_folder, numbered_notebooks
from sdd_face.passes import PRECISIONS
from sdd_face.reproduce import RECORD, plan_run
from sdd_face.runs import make_run, run_settings
from sdd_face.synthetic import draw_faces, make_people

TEXT = {"data", "weights", "run", "figures", "methods", "device", "pretrain"}  # judged elsewhere


def people(folder: Path, count: int, images: int = 4) -> Path:
    """Draw a folder of people."""
    drawn = draw_faces(make_people(count, seed=1000), images=images, seed=3)
    for i, (image, who) in enumerate(zip(drawn.images, drawn.people.tolist())):
        (folder / f"P{who}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"P{who}" / f"{i}.png")
    return folder


# What is asked for

def test_every_parameter_has_a_range_or_its_words():
    declared = {}
    for notebook in numbered_notebooks(notebooks_folder()): declared |= declared_parameters(notebook)
    judged = {*ranges.CHOICES, *ranges.RANGES, *TEXT}
    assert not declared.keys() - judged and judged - declared.keys() == {"layers"}
    ranges.require_fit(declared)
    assert set(ranges.CHOICES["arch"]) == set(ARCHITECTURES) and set(ranges.NAMES["methods"]) == set(METHODS)
    assert set(ranges.CHOICES["fill"]) == set(FILLS) and set(ranges.CHOICES["precision"]) == set(PRECISIONS)


WRONG = [
    ("batch_size", "0"), ("batch_size", "-3"), ("epochs", "-1"), ("people", "0"), ("images_per_person", "1"),
    ("learning_rate", "nan"), ("learning_rate", "0"), ("learning_rate", "inf"), ("gamma", "2"), ("step_size", "0"),
    ("cut", "0"), ("cut", "1.5"), ("draws", "0"), ("top_k", "1"), ("top_k", "-5"), ("rule", "pixel"), ("fill", "white"),
    ("random", ""), ("order", "maps"), ("prepare", "none"), ("alpha", "nan"), ("alpha", "big"), ("alpha", "-1"),
    ("minimum_scale", "inf"), ("overlap", "2"), ("compared", "all"), ("device", "gpu"), ("colors", "red"),
    ("train", "some"), ("augmentation", "yes"), ("precision", "half"), ("compile", "maybe"), ("head", "both"),
    ("classifier", "svm"), ("color", "RGB"), ("arch", "ir_9"), ("face", "-1"), ("methods", "sdd,x"),
    ("differing", "11"), ("relatives", "0")]


@pytest.mark.parametrize("name, value", WRONG)
def test_values_that_make_no_sense_are_refused_before_anything_runs(tmp_path, monkeypatch, name, value):
    monkeypatch.chdir(tmp_path)
    message = f"^{name} is '?{re.escape(value)}"
    with pytest.raises(ValueError, match=message): plan_run(beyond=True, parameters={name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, value", [
    ("alpha", "0.3"), ("alpha", "fixed_point"), ("minimum_scale", "1.0"), ("device", "cuda:1"), ("cut", "0.5")])
def test_values_that_make_sense_are_taken(tmp_path, monkeypatch, name, value):
    monkeypatch.chdir(tmp_path)
    plan_run(parameters={name: value})


def test_as_many_are_compared_as_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = str(people(tmp_path / "faces", 3))
    (tmp_path / "faces" / "P9").mkdir()
    (tmp_path / "faces" / "P9" / "one.png").write_bytes(b"x")
    with pytest.warns(UserWarning, match="holds 3 people with 3 images or more: top_k is 3, not 5"):
        assert plan_run(parameters={"data": data}).values["top_k"] == 3
    with pytest.raises(ValueError, match="top_k is 5, but .* holds 3 people"):
        plan_run(parameters={"data": data, "top_k": "5"})


@pytest.mark.parametrize("figures", [None, "here", "P0/deep"])
def test_a_run_does_not_write_into_its_own_data(tmp_path, monkeypatch, figures):
    monkeypatch.chdir(people(tmp_path / "faces", 5))
    with pytest.raises(ValueError, match="lies inside the data"): plan_run(parameters={"data": "."}, figures=figures)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="figures: faces/figures lies inside the data"):
        plan_run(parameters={"data": "faces"}, figures="faces/figures")
    plan_run(parameters={"data": "faces"}, figures="faces-figures")


@pytest.mark.parametrize("options", [
    {"learning_rate": "1e-3"}, {"learning_rate": 0}, {"learning_rate": float("nan")}, {"gamma": "0.1"}, {"gamma": -1},
    {"batch_size": 0}, {"batch_size": 2.5}, {"batch_size": "64"}, {"epochs": -1}, {"epochs": 1.5}, {"step_size": 0}])
def test_a_recipe_of_numbers_that_are_none_is_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"): Recipe(**options)


@pytest.mark.parametrize("name, hub", [
    ("minchul/cvlface_adaface_ir101", True), ("timm/resnet50.a1_in1k", True), ("owner/model-v1.0", True),
    ("weights/backbone.onnx", False), ("weights/net.pth.tar", False), ("weights/net.H5", False), ("here/net", False),
    ("here/net@main", True), ("~/net", False), ("./net", False), ("a/b/c", False)])
def test_a_mistyped_file_is_not_asked_from_the_hub(tmp_path, monkeypatch, name, hub):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert is_hub_name(name) == hub


# What is kept

@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"text"', "[" * 9000, "\x00", '{"a": 3}', '{"a": {}}',
                                  '{"a": {"key": 1, "outputs": {}, "seconds": 1, "steps": {}, "processes": 1}}',
                                  '{"a": {"key": "", "outputs": {"x": 3}, "seconds": 1, "steps": {}, "processes": 1}}'])
def test_a_damaged_record_of_a_run_says_what_is_lost(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/quick").mkdir(parents=True)
    (tmp_path / "runs/quick" / RECORD).write_text(text)
    message = "runs/quick/reproduce.json: no record of a run; delete it .all notebooks run again"
    with pytest.raises(ValueError, match=message): plan_run()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"NaN"])
def test_damaged_numbers_and_settings_are_refused_before_the_training(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "quick"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_bytes(content)
    for ask in (plan_run, make_run):
        with pytest.raises(ValueError, match="metrics.json: no numbers of a run; delete it"): ask()
    (folder / "settings.json").write_bytes(content)
    with pytest.raises(ValueError, match="settings.json: no settings of a run.*delete it"): run_settings()


@pytest.mark.parametrize("kept", [
    {}, {"recipe": {}, "wrong": 1}, {"recipe": {"epochs": -1}}, {"recipe": 3}, {"recipe": {"epochs": "6"}}])
def test_settings_of_other_shapes_are_refused(tmp_path, monkeypatch, kept):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/quick").mkdir(parents=True)
    (tmp_path / "runs/quick/settings.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="settings.json: no settings of a run.*delete it"): run_settings()


def test_json_of_anything_is_a_dictionary_or_refused(tmp_path):
    path = tmp_path / "kept.json"
    assert read_json(path, what="numbers", lost="none") == {}
    path.write_text('{"a": 1}')
    assert read_json(path, what="numbers", lost="none") == {"a": 1}


# Files

def test_names_as_long_as_a_file_system_allows_are_written(tmp_path):
    for name in ("n" * 251 + ".png", "é" * 125 + ".png", "語" * 83 + ".csv"):
        with atomic_path(tmp_path / name) as temporary:
            assert temporary.suffix == Path(name).suffix
            temporary.write_text("x")
        assert (tmp_path / name).read_text() == "x"
        (tmp_path / name).unlink()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [
    OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file data/0: file write"),
    ValueError("I/O error: File too large (os error 27)")])
def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path, error):
    with pytest.raises(OSError, match="note.txt: cannot be written"):
        with atomic_path(tmp_path / "note.txt"): raise error
    with pytest.raises(KeyError), atomic_path(tmp_path / "note.txt"): raise KeyError("another error stays what it is")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX")
def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    left, living = tmp_path / f"{PARTIAL}99999999-abcd-fig1.png", tmp_path / f"{PARTIAL}{os.getpid()}-abcd-fig1.png"
    others = tmp_path / ".partial-00000000-1-abcd-fig1.png", tmp_path / f"{PARTIAL}x-fig1.png", tmp_path / "fig1.png"
    for path in (left, living, *others): path.touch()
    remove_partial(tmp_path)
    assert not left.exists() and living.exists() and all(path.exists() for path in others)


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_links_are_followed_in_the_stamp_and_circles_end(tmp_path):
    (tmp_path / "all/Ann").mkdir(parents=True)
    (tmp_path / "some").mkdir()
    (tmp_path / "some/Ann").symlink_to(tmp_path / "all/Ann")
    (tmp_path / "all/Ann/again").symlink_to(tmp_path / "all")
    (tmp_path / "one.png").write_bytes(b"z")
    (tmp_path / "some/Bob.png").symlink_to(tmp_path / "one.png")
    stamps = [file_stamps(tmp_path / "some")]
    for change in (lambda: (tmp_path / "all/Ann/0.png").write_bytes(b"x"),
                   lambda: (tmp_path / "all/Ann/0.png").write_bytes(b"xy"),
                   lambda: (tmp_path / "one.png").write_bytes(b"zz"),
                   lambda: (tmp_path / "some/Cem").symlink_to(tmp_path / "all/Ann"),
                   lambda: (tmp_path / "some/Ann").unlink()):
        change()
        stamps.append(file_stamps(tmp_path / "some"))
        assert stamps[-1] != stamps[-2]
    (tmp_path / "all/Ann/.hidden").write_bytes(b"x")
    assert file_stamps(tmp_path / "some") == stamps[-1]
