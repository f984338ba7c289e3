"""Deletion and insertion curves against other people's numbers and known answers."""
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torchcam.methods import CAM
from torchcam.metrics import DeletionInsertionMetric

from sdd_face.curves import SCHEMES, Curves, area, area_rows, covering, curves, perturbation_curves, pixel_ranks, plot_curves, rise_blur
from sdd_face.data import Faces
from sdd_face.evaluation import evaluate, filling
from sdd_face.model import FaceRecognizer
from sdd_face.sdd import explain

GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics.json").read_text())


@pytest.fixture(scope="module")
def model() -> FaceRecognizer:
    torch.manual_seed(0)
    return FaceRecognizer("ir_tiny", [f"p{i}" for i in range(6)], color="bgr").eval()


@pytest.fixture(scope="module")
def faces() -> Faces:
    images = torch.randint(0, 256, (6, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Faces(images, torch.arange(6) % 3, [f"p{i}" for i in range(6)], torch.arange(6), [f"p{i}" for i in range(6)])


def maps_of(n: int = 6, size: int = 112) -> torch.Tensor: return torch.rand(n, size, size, generator=torch.Generator().manual_seed(1))


def rise_toy() -> tuple:
    """The 16 x 16 toy that the file of golden numbers describes, in float64."""
    c, i, j = torch.meshgrid(torch.arange(3.0, dtype=torch.float64), torch.arange(16.0, dtype=torch.float64), torch.arange(16.0, dtype=torch.float64), indexing="ij")
    x = (0.3 * c + 0.7 * i + 1.1 * j).sin()[None]
    saliency = (97 * (16 * i[0] + j[0])) % 257
    weights = torch.stack([0.05 * (0.01 * (k + 1) * (256 * c + 16 * i + j)).cos() for k in range(4)])
    return x, saliency[None], lambda x: torch.einsum("bcij,kcij->bk", x, weights).softmax(1)


@pytest.mark.parametrize("cover, scheme", [("zeros", "deletion"), ("zeros", "insertion"), ("blur", "insertion")])
def test_the_numbers_of_the_authors_of_rise(cover, scheme):
    x, saliency, probabilities = rise_toy()
    covers = {"zeros": torch.zeros_like(x), "blur": rise_blur(x)}
    _, found = perturbation_curves(probabilities, x, covers[cover], {"e": saliency}, torch.tensor([GOLDEN["target"]]), steps=16)
    curve, expected = found[scheme, "e"][0], GOLDEN[f"{scheme}_{cover}"]
    assert len(curve) == expected["points"]
    assert area(curve).item() == pytest.approx(expected["auc"], abs=1e-6)
    ends = {"deletion": (GOLDEN["p"], expected.get("last")), "insertion": (expected.get("first"), GOLDEN["p"])}[scheme]
    for value, end in zip(curve[[0, -1]].tolist(), ends): assert end is None or value == pytest.approx(end, abs=1e-6)


@pytest.mark.parametrize("steps", [7, 16, 49])
def test_torchcam_measures_the_same_areas(steps):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.PReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)).eval().double()
    x = torch.randn(4, 3, 28, 28, dtype=torch.float64)
    with CAM(network, "3", "6") as extractor:
        classes = network(x).argmax(1)
        maps = extractor(classes.tolist(), network(x))[0].detach()  # as large as the image: resizing would make ties, which torchcam breaks by position
        metric = DeletionInsertionMetric(extractor, partial(torch.softmax, dim=-1), steps=steps)
        metric.update(x)
        theirs = metric.summary()
    with torch.no_grad(): found_classes, found = perturbation_curves(lambda x: network(x).softmax(1), x, torch.zeros_like(x[:1]), {"cam": maps}, steps=steps)
    assert torch.equal(found_classes, classes)
    for scheme in ("deletion", "insertion"): assert area(found[scheme, "cam"]).mean().item() == pytest.approx(theirs[f"{scheme}_auc"], abs=1e-6)


def test_a_network_that_reads_one_pixel():
    def reads(x): return torch.stack([x[:, 0, 1, 2], 1 - x[:, 0, 1, 2]], 1)
    heat = torch.zeros(1, 4, 4)
    heat[0, 1, 2] = 1
    _, found = perturbation_curves(reads, torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), {"best": heat, "worst": -heat}, steps=16)
    for key, expected in {("deletion", "best"): 1 / 32, ("deletion", "worst"): 31 / 32, ("insertion", "best"): 31 / 32, ("insertion", "worst"): 1 / 32}.items():
        assert area(found[key]).item() == pytest.approx(expected)


def test_only_the_order_of_a_map_counts(model, faces):
    heat = maps_of()
    found = curves(model, faces, {"map": heat, "exp": heat.exp(), "cube": (heat - 0.5) ** 3, "scaled": 100 * heat - 7}, steps=4)
    for name in found.maps:
        for scheme in ("deletion", "insertion"): torch.testing.assert_close(found.confidence[scheme, name], found.confidence[scheme, "map"], rtol=1e-4, atol=1e-5)


def test_equal_pixels_are_covered_by_chance_with_a_seed():
    flat = torch.zeros(2, 112, 112)
    assert torch.equal(pixel_ranks(flat), pixel_ranks(flat)) and not torch.equal(pixel_ranks(flat, seed=1), pixel_ranks(flat, seed=2))
    top = (pixel_ranks(flat) < 2509).float()
    assert (top.mean(2) < 0.4).all() and (top.mean(1) < 0.4).all() and (top.sum((1, 2)) == 2509).all()
    step = torch.zeros(1, 10, 10)
    step[:, 5:] = 1
    ranks = pixel_ranks(step)
    assert ranks[0, 5:].max() == 49 and ranks[0, :5].min() == 50


def test_the_ends_are_computed_once_for_all_maps_and_both_schemes():
    seen = []
    def probabilities(x):
        seen.append(len(x))
        return torch.stack([x.mean((1, 2, 3)).sigmoid(), x.square().mean((1, 2, 3)).sigmoid()], 1)
    x, maps = torch.randn(5, 3, 8, 8), {name: torch.rand(5, 8, 8) for name in "abc"}
    for cover, ends in ((torch.zeros(1, 3, 8, 8), 5 + 1), (torch.randn(5, 3, 8, 8), 5 + 5)):
        seen.clear()
        _, found = perturbation_curves(probabilities, x, cover, maps, steps=4, batch_size=7)
        assert sum(seen) == ends + 5 * 3 * 2 * 3 and max(seen) == 7
        for name in "abc":
            assert torch.equal(found["deletion", name][:, 0], found["insertion", "a"][:, -1]) and torch.equal(found["deletion", name][:, -1], found["insertion", "a"][:, 0])
        seen.clear()
        _, alone = perturbation_curves(probabilities, x, cover, maps, steps=1)
        assert sum(seen) == ends and alone["deletion", "a"].shape == (5, 2)


def test_twenty_percent_is_the_papers_measurement(model, faces):
    heat = explain(model, faces.images).sdd.divergence
    table = evaluate(model, faces, draws=1)
    found = curves(model, faces, {"sdd": heat}, steps=20)
    torch.testing.assert_close(found.confidence["deletion", "sdd"][:, 4], table.masked_confidence["deletion", "sdd"][:, 0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.confidence["insertion", "sdd"][:, 4], table.masked_confidence["retention", "sdd"][:, 0], rtol=1e-3, atol=1e-5)
    assert torch.equal(found.predicted, table.predicted) and found.shares[4].item() == pytest.approx(0.2)


@pytest.mark.parametrize("fill", ["mean", "noise", "blur"])
def test_a_narrow_network_and_a_seed_get_the_covers_of_the_tables(fill):
    torch.manual_seed(0)
    narrow = FaceRecognizer("mobilefacenet_96", ["a", "b", "c"]).eval()
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[..., :8] = 0  # what the network does not see
    some, heat = Faces(images, torch.arange(2), narrow.names, torch.arange(2), ["x", "y"]), {"map": maps_of(2), "seen": torch.rand(2, 7, 6)}
    table, found = evaluate(narrow, some, heat, draws=0, fill=fill, seed=5), curves(narrow, some, heat, steps=5, fill=fill, seed=5)
    for name in heat: torch.testing.assert_close(found.confidence["deletion", name][:, 1], table.masked_confidence["deletion", name][:, 0], rtol=1e-4, atol=1e-5)


def test_batches_and_company_do_not_matter_and_the_model_is_left_alone(model, faces):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    heat = maps_of(size=7)
    a, b = (curves(model, faces, {"map": heat, "flat": torch.zeros(9, 9)}, steps=3, batch_size=size) for size in (5, 128))
    for key, curve in b.confidence.items(): torch.testing.assert_close(a.confidence[key], curve, rtol=1e-3, atol=1e-5)
    alone = curves(model, faces[2:4], {"map": heat[2:4]}, steps=3)
    for key, curve in alone.confidence.items(): torch.testing.assert_close(a.confidence[key][2:4], curve, rtol=1e-3, atol=1e-5)
    assert not model.training and not model._forward_hooks and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_several_draws_are_averaged(model, faces):
    heat = maps_of(12).view(6, 2, 112, 112)
    found = curves(model, faces, {"both": heat, "one": heat[:, 0], "other": heat[:, 1]}, steps=3)
    for scheme in ("deletion", "insertion"):
        torch.testing.assert_close(found.confidence[scheme, "both"], (found.confidence[scheme, "one"] + found.confidence[scheme, "other"]) / 2)


def test_covers(model, faces):
    assert torch.equal(covering(model, faces.images, "black"), filling(model, faces.images, "black"))
    x = model.preprocess(faces.images)
    blurred = covering(model, faces.images, "rise_blur")
    assert blurred.shape == x.shape and blurred.std() < 0.2 * x.std()
    plain = rise_blur(torch.ones(1, 3, 20, 20))
    torch.testing.assert_close(plain[..., 10, 10], torch.ones(1, 3))
    assert plain[0, 0, 0, 0] == pytest.approx(36 / 121, abs=0.02)  # of an almost flat square, zeros around the image


@pytest.mark.parametrize("maps, options, message", [
    ({"m": maps_of(5)}, {}, r"map 'm' is \(5, 112, 112\); expected \(6, h, w\)"), ({"m": torch.zeros(3)}, {}, "map 'm' is"), ({}, {}, "0 maps"),
    ({"m": torch.full((6, 7, 7), torch.nan)}, {}, "map 'm' holds NaN"), ({"m": maps_of()}, {"steps": 0}, "steps is 0"), ({"m": maps_of()}, {"batch_size": 0}, "batch_size is 0"),
    ({"m": maps_of()}, {"schemes": ("retention",)}, "scheme is 'retention'; expected 'deletion' or 'insertion'"), ({"m": maps_of()}, {"fill": "red"}, "fill is 'red'"), ({"m": torch.rand(6, 7, 14)}, {}, "map 'm' is 7 x 14, another shape than the images")])
def test_what_cannot_be_measured_is_refused(model, faces, maps, options, message):
    with pytest.raises(ValueError, match=message): curves(model, faces, maps, **options)


def test_a_map_of_another_size_and_a_model_in_training_are_refused(faces):
    with pytest.raises(ValueError, match="as large as its image"): perturbation_curves(lambda x: x.flatten(1), torch.rand(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), {"m": torch.rand(1, 7, 7)})
    with pytest.raises(ValueError, match="training mode"): curves(FaceRecognizer("ir_tiny", ["a", "b"]), faces, {"m": maps_of()})


def by_hand() -> Curves:
    """Four people with one face each; the second map's deletion curve lies 0.1 above the first's, its insertion curve 0.2 below."""
    shares = torch.linspace(0, 1, 5)
    start = torch.tensor([0.8, 0.7, 0.9, 0.6])[:, None]
    confidence = {("deletion", "a"): start * (1 - shares), ("deletion", "b"): start * (1 - shares) + 0.1, ("insertion", "a"): start * shares, ("insertion", "b"): start * shares - 0.2}
    return Curves(torch.arange(4), torch.arange(4), shares, confidence, {"fill": "black"})


def test_areas_and_their_differences():
    result = by_hand()
    rows = {(row["scheme"], row["map"]): row for row in area_rows(result)}
    assert rows["deletion", "a"]["value"] == pytest.approx(0.375) and rows["insertion", "b"]["value"] == pytest.approx(0.175)
    assert rows["deletion", "a"]["ci_low"] < 0.375 < rows["deletion", "a"]["ci_high"] and "p" not in rows["deletion", "a"]
    gaps = {(row["scheme"], row["map"]): row for row in area_rows(result, "a")}
    assert set(gaps) == {("deletion", "b"), ("insertion", "b")}
    assert [gaps["deletion", "b"][name] for name in ("value", "ci_low", "ci_high")] == pytest.approx([0.1] * 3, abs=1e-4)  # paired: no doubt
    assert gaps["insertion", "b"]["value"] == pytest.approx(-0.2) and gaps["insertion", "b"]["p"] < 0.01  # the same for everybody
    assert area_rows(replace(result, confidence={key: curve for key, curve in result.confidence.items() if key[1] == "a"}), "a") == []
    with pytest.raises(ValueError, match="the reference is 'c'; measured were a, b"): area_rows(result, "c")


def test_one_person_has_areas_but_no_interval():
    result = by_hand()
    result.labels = torch.zeros(4, dtype=torch.long)
    assert all(row["value"] == row["value"] and row["ci_low"] != row["ci_low"] for row in area_rows(result) + area_rows(result, "b"))


def test_the_plot_has_a_panel_for_each_scheme_with_the_papers_cut():
    figure = plot_curves(by_hand(), cut=0.3)
    assert [axis.get_title() for axis in figure.axes] == list(SCHEMES)
    for axis in figure.axes:
        assert len(axis.lines) == 3 and axis.lines[-1].get_xdata()[0] == 0.3
        assert "a: 0.375" in [text.get_text() for text in axis.get_legend().get_texts()]


def test_a_narrow_network_is_measured_with_the_centre_of_a_map(faces):
    torch.manual_seed(0)
    narrow = FaceRecognizer("mobilefacenet_96", ["a", "b", "c"]).eval()
    found = curves(narrow, faces[:2], {"whole": maps_of(2), "seen": narrow.crop(maps_of(2))}, steps=2)
    for scheme in SCHEMES: assert torch.equal(found.confidence[scheme, "whole"], found.confidence[scheme, "seen"])
