"""The parts of the verdict: who is compared, what it costs, and how the tables are written."""
import math

import pytest
import torch

from sdd_face.evaluation import Evaluation
from sdd_face.model import FaceRecognizer, load_recognizer
from sdd_face.verdict import leaderboard, leaderboard_markdown, plot_leaderboard, plot_maps, rival_rows, rivals_markdown, spread, timed_maps, willing


def test_faces_are_spread_over_the_people():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    assert spread(labels, 3).tolist() == [0, 3, 5]
    assert spread(labels, 5).tolist() == [0, 1, 3, 4, 5]
    assert spread(labels, 99).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_method_that_does_not_fit_is_named_with_its_reason():
    model = FaceRecognizer("ir_tiny", ["a", "b", "c"], classifier="cosine").eval()
    images = torch.randint(0, 256, (1, 3, 112, 112), dtype=torch.uint8)
    fit, refused = willing(model, images, {"cam": {}, "deeplift": {}})
    assert list(fit) == ["cam"] and "deeplift" in refused and len(refused["deeplift"]) > 20


def test_maps_come_with_what_they_cost():
    model = load_recognizer("packaged").eval()
    images = torch.randint(0, 256, (8, 3, 112, 112), dtype=torch.uint8)
    maps, costs = timed_maps(model, images, torch.zeros(8, dtype=torch.int64), {"cam": {}, "occlusion": {"window": 56, "stride": 28}})
    assert {name: heat.shape for name, heat in maps.items()} == dict.fromkeys(("cam", "occlusion"), (8, 112, 112))
    assert 0 < costs["cam"] < costs["occlusion"]  # one pass against ten


def result(people: int) -> Evaluation:
    """A map that drops 0.6 where the disc and its own mean and swapped maps drop 0.4, in both schemes; 40 faces."""
    names = {"good": 0.6, "good, mean": 0.4, "good, swapped": 0.4, "disc": 0.4}
    labels, generator = torch.arange(40) % people, torch.Generator().manual_seed(0)
    noise = {name: 0.05 * torch.randn(40, 1, generator=generator) for name in names}
    after = {(scheme, name): 0.9 - drop + noise[name] for name, drop in names.items() for scheme in ("deletion", "retention")}
    said = {key: torch.zeros(40, 1, dtype=torch.int64) for key in after}
    return Evaluation(labels, torch.zeros(40, dtype=torch.int64), torch.full((40,), 0.9), after, said, {})


def test_a_larger_drop_is_better_in_deletion_and_worse_in_retention():
    rows = {(row["scheme"], row["reference"]): row for row in rival_rows(result(20), ["good"])}
    for reference in ("disc", "good, mean", "good, swapped"):
        assert rows["deletion", reference]["advantage"] == pytest.approx(20, abs=3) and rows["deletion", reference]["ci_low"] > 0 and rows["deletion", reference]["p"] < 0.05
        assert rows["retention", reference]["advantage"] == pytest.approx(-20, abs=3) and rows["retention", reference]["ci_high"] < 0


@pytest.mark.parametrize("people, brackets", [(20, 6), (1, 0), (3, 0)])
def test_without_an_interval_a_number_stands_alone(people: int, brackets: int):
    text = rivals_markdown(rival_rows(result(people), ["good"]), str.upper)
    assert text.count("[") == brackets and "nan" not in text and "inf" not in text and "| GOOD |" in text


def board(people: torch.Tensor) -> list[dict]:
    """Two maps and the disc; the first has no number for one face, the disc none in the second column."""
    values = {"a": torch.tensor([0.1, 0.3, math.nan, 0.2]), "b": torch.ones(4), "disc": torch.zeros(4)}
    return leaderboard({"deletion": (values, people), "random_network": ({"a": torch.zeros(4)}, people)}, {"a": 2.0}, ["a", "b", "disc"])


def test_the_leaderboard_averages_the_faces_that_have_a_number():
    rows = {row["map"]: row for row in board(torch.arange(4))}
    assert rows["a"]["deletion"] == pytest.approx(0.2) and 0.0999 <= rows["a"]["deletion_low"] < rows["a"]["deletion_high"] <= 0.3001
    assert rows["b"]["deletion"] == 1 and rows["disc"]["random_network"] is None and rows["a"]["cost"] == 2 and rows["b"]["cost"] is None


def test_the_leaderboard_is_written_and_drawn_also_for_one_person():
    for people in (torch.arange(4), torch.zeros(4, dtype=torch.int64)):
        rows = board(people)
        text = leaderboard_markdown(rows, "Four faces.", str.upper)
        assert text.startswith("**Leaderboard.** Four faces.") and "| A | 20.0" in text and "nan" not in text
        assert len(plot_leaderboard(rows).axes) == 2


def test_maps_are_drawn_in_bands_with_an_outline_unless_they_are_constant():
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    figure = plot_maps(images, {"wide": torch.rand(2, 7, 7), "flat": torch.zeros(2, 112, 112)}, columns=2)
    assert len(figure.axes) == 8  # two bands of two faces
    assert [len(axis.collections) for axis in figure.axes] == [0, 1, 0, 1, 0, 0, 0, 0]
