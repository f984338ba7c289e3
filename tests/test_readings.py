"""Other readings of the paper against two evaluations."""
import copy

import pytest
import torch

from sdd_face.data import Faces
from sdd_face.evaluation import Evaluation, Masking, evaluate
from sdd_face.model import FaceRecognizer, load_recognizer
from sdd_face.readings import READINGS, TABLE_NUMBERS, plot_readings, readings

PEOPLE = [f"p{i}" for i in range(6)]
ONE = Masking(draws=1)


@pytest.fixture(scope="module")
def pooled() -> FaceRecognizer: return load_recognizer("packaged", PEOPLE)


@pytest.fixture(scope="module")
def faces() -> Faces:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 14, 14), dtype=torch.uint8, generator=generator).float()
    images = torch.nn.functional.interpolate(images, (112, 112), mode="bicubic").clamp(0, 255).byte()
    return Faces(images, torch.arange(8) % 4, PEOPLE, torch.arange(8), [f"{i}" for i in range(8)])


@pytest.fixture(scope="module")
def rows(pooled, faces) -> list[dict]:
    chosen = (
        "alpha: fixed point", "alpha: 1", "cut: 30 %", "random: pixels", "drop: relative", "change: against the truth",
        "faces: recognised ones")
    return readings(pooled, faces, others={name: READINGS[name] for name in chosen}, masking=ONE)


@pytest.fixture(scope="module")
def base(pooled, faces) -> Evaluation: return evaluate(pooled, faces, masking=ONE)


def find(rows: list[dict], reading: str, name: str = "sdd", measure: str = "deletion_drop") -> dict:
    return next(row for row in rows if (row["reading"], row["map"], row["measure"]) == (reading, name, measure))


def test_alpha_moves_nothing_and_the_cut_does(rows):
    for row in rows:
        still = row["reading"].startswith("alpha") or row["reading"] == "random: pixels" and row["map"] == "sdd"
        if still: assert row["value"] == pytest.approx(0, abs=1e-2)
        assert row["value"] == pytest.approx(row["after"] - row["before"], abs=1e-2)
        assert row["ci_low"] - 1e-6 <= row["value"] <= row["ci_high"] + 1e-6
    assert abs(find(rows, "cut: 30 %")["value"]) > 1e-3


def test_every_reading_moves_every_number_of_the_tables_for_every_map(rows):
    assert [(row["measure"], row["map"]) for row in rows if row["reading"] == "alpha: 1"] == [
        (measure, name) for measure in TABLE_NUMBERS for name in ("sdd", "random", "difference")]
    assert len(rows) == 7 * 4 * 3 and {row["reference"] for row in rows} == {"default"}


def test_shifts_are_those_of_two_evaluations(rows, base, pooled, faces):
    wider = evaluate(pooled, faces, masking=Masking(draws=1, cut=0.3))
    for scheme in ("deletion", "retention"):
        row = find(rows, "cut: 30 %", "difference", f"{scheme}_drop")
        gap = [100 * (each.drop(scheme, "sdd") - each.drop(scheme, "random")).mean().item() for each in (base, wider)]
        assert (row["before"], row["after"]) == pytest.approx(gap, abs=1e-3)
    right, drop = base.predicted == base.people, base.drop("deletion", "sdd")
    relative, truth = base.drop("deletion", "sdd", relative=True), base.changed("deletion", "sdd", of="truth")
    assert find(rows, "drop: relative")["after"] == pytest.approx(100 * relative.mean().item(), abs=1e-3)
    changed = find(rows, "change: against the truth", measure="deletion_change")
    assert changed["after"] == pytest.approx(100 * truth.mean().item(), abs=1e-3)
    if right.any():
        recognised = find(rows, "faces: recognised ones")["after"]
        assert recognised == pytest.approx(100 * drop[right].mean().item(), abs=1e-3)


def test_options_of_sdd_are_read_otherwise_too(base, pooled, faces):
    others = {name: READINGS[name] for name in ("2 classes", "10 classes", "CAMs: positive part")}
    rows = readings(pooled, faces, others=others, masking=ONE)
    two = evaluate(pooled, faces, masking=ONE, top_k=2)
    expected = 100 * (two.drop("deletion", "sdd") - base.drop("deletion", "sdd")).mean().item()
    assert find(rows, "2 classes")["value"] == pytest.approx(expected, abs=1e-3)
    assert find(rows, "10 classes")["after"] == pytest.approx(  # no more than there are
        100 * evaluate(pooled, faces, masking=ONE, top_k=6).drop("deletion", "sdd").mean().item(), abs=1e-3)
    assert {row["reading"] for row in rows} == set(others)


def test_the_figure_has_a_panel_for_each_number_of_the_tables(rows):
    figure = plot_readings(rows)
    assert [axis.get_title().splitlines()[0] for axis in figure.axes] == list(TABLE_NUMBERS.values())
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == list(dict.fromkeys(row["reading"] for row in rows))


def test_an_unknown_way_of_counting_is_refused(pooled, faces):
    with pytest.raises(ValueError, match="count is 'x'"):
        readings(pooled, faces, others={"odd": {"count": "x"}}, masking=ONE)


def test_another_network_is_a_reading_too(pooled, faces):
    other = copy.deepcopy(pooled)
    with torch.no_grad(): other.head.classifier.weight.mul_(-1)
    row = find(readings(pooled, faces, others={"other": {"model": other}}, masking=ONE), "other")
    results = [evaluate(each, faces, masking=ONE) for each in (pooled, other)]
    expected = [100 * result.drop("deletion", "sdd").mean().item() for result in results]
    assert (row["before"], row["after"]) == pytest.approx(expected, abs=1e-3)
    assert row["value"] == pytest.approx(expected[1] - expected[0], abs=1e-2)
