"""The parts of the verdict: who is compared, what it costs, and how the tables are written."""
import math

import pytest
import torch

from sdd_face.data import spread_over_people
from sdd_face.evaluation import SCHEMES, Evaluation
from sdd_face.model import FaceRecognizer, load_recognizer
from sdd_face.tables import Measured, wide
from sdd_face.verdict import (
    applicable_methods,
    leaderboard,
    leaderboard_markdown,
    plot_leaderboard,
    plot_maps,
    rival_rows,
    rivals_markdown,
    timed_maps,
)


def test_faces_are_spread_over_the_people():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    assert spread_over_people(labels, 3).tolist() == [0, 3, 5]
    assert spread_over_people(labels, 5).tolist() == [0, 1, 3, 4, 5]
    assert spread_over_people(labels, 99).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_method_that_does_not_fit_is_named_with_its_reason():
    model = FaceRecognizer("ir_tiny", ["a", "b", "c"], classifier="cosine").eval()
    images = torch.randint(0, 256, (1, 3, 112, 112), dtype=torch.uint8)
    fit, refused = applicable_methods(model, images, {"cam": {}, "deeplift": {}})
    assert list(fit) == ["cam"] and "deeplift" in refused and len(refused["deeplift"]) > 20


def test_maps_come_with_what_they_cost():
    model = load_recognizer("packaged").eval()
    images = torch.randint(0, 256, (8, 3, 112, 112), dtype=torch.uint8)
    methods = {"cam": {}, "occlusion": {"window": 56, "stride": 28}}
    maps, costs = timed_maps(model, images, torch.zeros(8, dtype=torch.int64), methods)
    assert {name: heat.shape for name, heat in maps.items()} == dict.fromkeys(methods, (8, 112, 112))
    assert 0 < costs["cam"] < costs["occlusion"]  # one pass against ten


def result(people: int) -> Evaluation:
    """A map that drops 0.6 where the disc and its own mean and swapped maps drop 0.4, in both schemes; 40 faces."""
    names = {"good": 0.6, "good, mean": 0.4, "good, swapped": 0.4, "disc": 0.4}
    whose, generator = torch.arange(40) % people, torch.Generator().manual_seed(0)
    noise = {name: 0.05 * torch.randn(40, 1, generator=generator) for name in names}
    after = {(scheme, name): 0.9 - drop + noise[name] for name, drop in names.items() for scheme in SCHEMES}
    said = {key: torch.zeros(40, 1, dtype=torch.int64) for key in after}
    return Evaluation(whose, torch.zeros(40, dtype=torch.int64), torch.full((40,), 0.9), after, said, {})


def test_a_larger_drop_is_better_in_deletion_and_worse_in_retention():
    rows = {(row["measure"], row["reference"]): row for row in rival_rows(result(20), ["good"])}
    for reference in ("disc", "good, mean", "good, swapped"):
        better, worse = rows["deletion", reference], rows["retention", reference]
        assert better["value"] == pytest.approx(20, abs=3) and better["ci_low"] > 0 and better["p"] < 0.05
        assert worse["value"] == pytest.approx(-20, abs=3) and worse["ci_high"] < 0


def test_intervals_hold_for_one_map_and_p_for_all_of_them():
    both = result(20)
    for kept in (both.masked_confidence, both.masked_prediction):
        copied = {(scheme, name): each for (scheme, name), each in kept.items() if "good" in name}
        kept |= {(scheme, name.replace("good", "twin")): each for (scheme, name), each in copied.items()}
    alone, beside = rival_rows(both, ["good"]), rival_rows(both, ["good", "twin"])[:6]
    ends = ("measure", "map", "reference", "value", "ci_low", "ci_high")
    assert [[row[end] for end in ends] for row in alone] == [[row[end] for end in ends] for row in beside]
    every = [(name, rival) for name in ("good", "twin") for rival in ("disc", f"{name}, mean", f"{name}, swapped")]
    adjusted = {(row["measure"], row["reference"]): row["p"] for row in both.merits().against(every)}
    assert [row["p"] for row in beside if row["reference"] != "disc"] == [
        adjusted[row["measure"], row["reference"]] for row in beside if row["reference"] != "disc"]


@pytest.mark.parametrize("people, brackets", [(20, 6), (1, 0), (3, 0)])
def test_without_an_interval_a_number_stands_alone(people: int, brackets: int):
    text = rivals_markdown(rival_rows(result(people), ["good"]), title=str.upper)
    assert text.count("[") == brackets and "nan" not in text and "inf" not in text and "| GOOD |" in text


def board(people: torch.Tensor) -> list[dict]:
    """Two maps and the disc; the first has no number for one face, the disc none in the second column."""
    values = {"a": torch.tensor([0.1, 0.3, math.nan, 0.2]), "b": torch.ones(4), "disc": torch.zeros(4)}
    deletion = Measured({("deletion", name): each for name, each in values.items()}, people)
    network = Measured({("random_network", "a"): torch.zeros(4)}, people)
    return leaderboard([deletion, network], {"a": 2.0}, ["a", "b", "disc"])


def test_the_leaderboard_averages_the_faces_that_have_a_number():
    a, b, disc = wide(board(torch.arange(4)), ["a", "b", "disc"])
    assert a["deletion"] == pytest.approx(0.2) and 0.0999 <= a["deletion_low"] < a["deletion_high"] <= 0.3001
    assert b["deletion"] == 1 and disc["random_network"] is None and a["cost"] == 2 and b["cost"] is None
    ends = [f"{measure}{end}" for measure in ("deletion", "random_network") for end in ("", "_low", "_high")]
    assert list(a) == ["map", *ends, "cost"]


def test_the_leaderboard_is_written_and_drawn_also_for_one_person():
    for people in (torch.arange(4), torch.zeros(4, dtype=torch.int64)):
        rows = board(people)
        text = leaderboard_markdown(rows, "Four faces.", title=str.upper)
        assert text.startswith("**Leaderboard.** Four faces.") and "| A | 20.0" in text and "nan" not in text
        assert len(plot_leaderboard(rows).axes) == 2


def test_maps_are_drawn_in_bands_with_an_outline_unless_they_are_constant():
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    figure = plot_maps(images, {"wide": torch.rand(2, 7, 7), "flat": torch.zeros(2, 112, 112)}, columns=2)
    assert len(figure.axes) == 8  # two bands of two faces
    assert [len(axis.collections) for axis in figure.axes] == [0, 1, 0, 1, 0, 0, 0, 0]
