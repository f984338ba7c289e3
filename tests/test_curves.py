"""Deletion and insertion curves against other people's numbers and known answers."""
import json
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torchcam.methods import CAM
from torchcam.metrics import DeletionInsertionMetric

from sdd_face import masks
from sdd_face.curves import CURVE_SCHEMES, Curves, Stepping, area, measure_curves, perturbation_curves, plot_curves
from sdd_face.data import Faces
from sdd_face.evaluation import Masking, evaluate
from sdd_face.maps import pixel_ranks
from sdd_face.masks import fill_for
from sdd_face.model import FaceRecognizer
from sdd_face.sdd import explain

GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics.json").read_text())
# In double precision batches of other sizes agree on every processor to far more than this; what is kept is float32.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
STEPS3 = Stepping(steps=3)


@pytest.fixture(scope="module")
def single() -> FaceRecognizer:
    """A network in single precision: to blur takes long in double."""
    torch.manual_seed(0)
    return FaceRecognizer("ir_tiny", [f"p{i}" for i in range(6)], color="bgr").eval()


@pytest.fixture(scope="module")
def model(single) -> FaceRecognizer: return deepcopy(single).double()


@pytest.fixture(scope="module")
def faces() -> Faces:
    generator, names = torch.Generator().manual_seed(0), [f"p{i}" for i in range(6)]
    images = torch.randint(0, 256, (6, 3, 112, 112), dtype=torch.uint8, generator=generator)
    return Faces(images, torch.arange(6) % 3, names, torch.arange(6), names)


def maps_of(n: int = 6, size: int = 112) -> torch.Tensor:
    return torch.rand(n, size, size, generator=torch.Generator().manual_seed(1))


def rise_toy() -> tuple:
    """The 16 x 16 toy that the file of golden numbers describes, in float64."""
    axes = [torch.arange(side, dtype=torch.float64) for side in (3, 16, 16)]
    c, i, j = torch.meshgrid(*axes, indexing="ij")
    x = (0.3 * c + 0.7 * i + 1.1 * j).sin()[None]
    saliency = (97 * (16 * i[0] + j[0])) % 257
    weights = torch.stack([0.05 * (0.01 * (k + 1) * (256 * c + 16 * i + j)).cos() for k in range(4)])
    return x, saliency[None], lambda x: torch.einsum("bcij,kcij->bk", x, weights).softmax(1)


@pytest.mark.parametrize("cover, scheme", [("zeros", "deletion"), ("zeros", "insertion"), ("blur", "insertion")])
def test_the_numbers_of_the_authors_of_rise(cover, scheme):
    x, saliency, probabilities = rise_toy()
    covered = {"zeros": torch.zeros_like(x), "blur": masks._rise_blur(x)}[cover]
    target = torch.tensor([GOLDEN["target"]])
    stepping = Stepping(steps=16)
    _, found = perturbation_curves(probabilities, x, covered, {"e": saliency}, target=target, stepping=stepping)
    curve, expected = found[scheme, "e"][0], GOLDEN[f"{scheme}_{cover}"]
    assert len(curve) == expected["points"]
    assert area(curve).item() == pytest.approx(expected["auc"], abs=1e-6)
    ends = {"deletion": (GOLDEN["p"], expected.get("last")), "insertion": (expected.get("first"), GOLDEN["p"])}[scheme]
    for value, end in zip(curve[[0, -1]].tolist(), ends): assert end is None or value == pytest.approx(end, abs=1e-6)


@pytest.mark.parametrize("steps", [7, 16, 49])
def test_torchcam_measures_the_same_areas(steps):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.PReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)).eval().double()
    x = torch.randn(4, 3, 28, 28, dtype=torch.float64)
    with CAM(network, "3", "6") as extractor:
        classes = network(x).argmax(1)
        # as large as the image: resizing would make ties, which torchcam breaks by position
        maps = extractor(classes.tolist(), network(x))[0].detach()
        metric = DeletionInsertionMetric(extractor, partial(torch.softmax, dim=-1), steps=steps)
        metric.update(x)
        theirs = metric.summary()
    with torch.no_grad():
        found_classes, found = perturbation_curves(
            lambda x: network(x).softmax(1), x, torch.zeros_like(x[:1]), {"cam": maps}, stepping=Stepping(steps=steps))
    assert torch.equal(found_classes, classes)
    for scheme in CURVE_SCHEMES:
        assert area(found[scheme, "cam"]).mean().item() == pytest.approx(theirs[f"{scheme}_auc"], abs=1e-6)


def test_a_network_that_reads_one_pixel():
    def reads(x): return torch.stack([x[:, 0, 1, 2], 1 - x[:, 0, 1, 2]], 1)
    heat = torch.zeros(1, 4, 4)
    heat[0, 1, 2] = 1
    white, black, maps = torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), {"best": heat, "worst": -heat}
    _, found = perturbation_curves(reads, white, black, maps, stepping=Stepping(steps=16))
    areas = {key: area(curve).item() for key, curve in found.items()}
    assert areas["deletion", "best"] == areas["insertion", "worst"] == pytest.approx(1 / 32)
    assert areas["deletion", "worst"] == areas["insertion", "best"] == pytest.approx(31 / 32)


def test_only_the_order_of_a_map_counts(model, faces):
    heat = maps_of()
    maps = {"map": heat, "exp": heat.exp(), "cube": (heat - 0.5) ** 3, "scaled": 100 * heat - 7}
    found = measure_curves(model, faces, maps, stepping=Stepping(steps=4))
    for name in found.maps:
        for scheme in CURVE_SCHEMES:
            torch.testing.assert_close(found.confidence[scheme, name], found.confidence[scheme, "map"], **CLOSE)


def test_equal_pixels_are_covered_by_chance_with_a_seed():
    flat = torch.zeros(2, 112, 112)
    assert torch.equal(pixel_ranks(flat), pixel_ranks(flat))
    assert not torch.equal(pixel_ranks(flat, seed=1), pixel_ranks(flat, seed=2))
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
        _, found = perturbation_curves(probabilities, x, cover, maps, stepping=Stepping(steps=4, batch_size=7))
        assert sum(seen) == ends + 5 * 3 * 2 * 3 and max(seen) == 7
        for name in "abc":
            deleted, inserted = found["deletion", name], found["insertion", "a"]
            assert torch.equal(deleted[:, 0], inserted[:, -1]) and torch.equal(deleted[:, -1], inserted[:, 0])
        seen.clear()
        _, alone = perturbation_curves(probabilities, x, cover, maps, stepping=Stepping(steps=1))
        assert sum(seen) == ends and alone["deletion", "a"].shape == (5, 2)


def test_twenty_percent_is_the_papers_measurement(model, faces):
    heat = explain(model, faces.images).sdd.divergence
    heat = heat + 1e-3 * torch.rand(heat.shape, generator=torch.Generator().manual_seed(0))  # ties are drawn otherwise
    table = evaluate(model, faces, {"sdd": heat}, masking=Masking(draws=1))
    found = measure_curves(model, faces, {"sdd": heat}, stepping=Stepping(steps=20))
    for scheme, named in (("deletion", "deletion"), ("insertion", "retention")):
        at_20 = found.confidence[scheme, "sdd"][:, 4]
        torch.testing.assert_close(at_20, table.masked_confidence[named, "sdd"][:, 0], **CLOSE)
    assert torch.equal(found.predicted, table.predicted) and found.shares[4].item() == pytest.approx(0.2)


@pytest.mark.parametrize("fill", ["mean", "noise", "blur"])
def test_a_narrow_network_and_a_seed_get_the_covers_of_the_tables(fill):
    torch.manual_seed(0)
    narrow = FaceRecognizer("mobilefacenet_96", ["a", "b", "c"]).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8, generator=generator)
    images[..., :8] = 0  # what the network does not see
    some = Faces(images, torch.arange(2), narrow.names, torch.arange(2), ["x", "y"])
    heat = {"map": maps_of(2), "seen": torch.rand(2, 7, 6)}
    table = evaluate(narrow, some, heat, masking=Masking(draws=0, fill=fill, seed=5))
    found = measure_curves(narrow, some, heat, fill=fill, stepping=Stepping(steps=5, seed=5))
    for name in heat:  # single precision, which other batches round otherwise
        at_20 = found.confidence["deletion", name][:, 1]
        torch.testing.assert_close(at_20, table.masked_confidence["deletion", name][:, 0], rtol=1e-3, atol=1e-4)


def test_batches_and_company_do_not_matter_and_the_model_is_left_alone(model, faces):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    heat = maps_of(size=7)
    maps = {"map": heat, "flat": torch.zeros(9, 9)}
    a, b = (measure_curves(model, faces, maps, stepping=replace(STEPS3, batch_size=size)) for size in (5, 128))
    for key, curve in b.confidence.items(): torch.testing.assert_close(a.confidence[key], curve, **CLOSE)
    alone = measure_curves(model, faces[2:4], {"map": heat[2:4]}, stepping=STEPS3)
    for key, curve in alone.confidence.items(): torch.testing.assert_close(a.confidence[key][2:4], curve, **CLOSE)
    assert not model.training and not model._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_several_draws_are_averaged(model, faces):
    heat = maps_of(12).view(6, 2, 112, 112)
    maps = {"both": heat, "one": heat[:, 0], "other": heat[:, 1]}
    found = measure_curves(model, faces, maps, stepping=STEPS3).confidence
    for scheme in CURVE_SCHEMES:
        mean = (found[scheme, "one"] + found[scheme, "other"]) / 2
        torch.testing.assert_close(found[scheme, "both"], mean, **CLOSE)


def test_the_cover_of_rise(single, faces):
    x = single.preprocess(faces.images)
    blurred = fill_for(single, faces.images, fill="rise_blur")
    assert blurred.shape == x.shape and blurred.std() < 0.2 * x.std() and torch.equal(blurred, masks._rise_blur(x))
    plain = masks._rise_blur(torch.ones(1, 3, 20, 20))
    torch.testing.assert_close(plain[..., 10, 10], torch.ones(1, 3))
    assert plain[0, 0, 0, 0] == pytest.approx(36 / 121, abs=0.02)  # of an almost flat square, zeros around the image
    found = measure_curves(single, faces[:2], {"map": maps_of(2)}, fill="rise_blur", stepping=Stepping(steps=2))
    with torch.no_grad(): behind = single(blurred[:2]).softmax(1)
    expected = behind.gather(1, found.predicted[:, None])[:, 0]
    torch.testing.assert_close(found.confidence["deletion", "map"][:, -1], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("maps, options, message", [
    ({"m": maps_of(5)}, {}, r"map 'm' is \(5, 112, 112\); expected \(6, h, w\)"),
    ({"m": torch.zeros(3)}, {}, "map 'm' is"),
    ({}, {}, "0 maps"), ({"m": torch.full((6, 7, 7), torch.nan)}, {}, "map 'm' holds NaN"),
    ({"m": maps_of()}, {"fill": "red"}, "fill is 'red'"),
    ({"m": torch.rand(6, 7, 14)}, {}, "map 'm' is 7 x 14, another shape than the images")])
def test_what_cannot_be_measured_is_refused(model, faces, maps, options, message):
    with pytest.raises(ValueError, match=message): measure_curves(model, faces, maps, **options)


@pytest.mark.parametrize("wrong, message", [
    ({"steps": 0}, "steps is 0"), ({"batch_size": 0}, "batch_size is 0"),
    ({"schemes": ("retention",)}, "scheme is 'retention'; expected 'deletion' or 'insertion'")])
def test_steps_that_make_no_curve_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message): Stepping(**wrong)


def test_a_map_of_another_size_and_a_model_in_training_are_refused(faces):
    images, cover, small = torch.rand(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), {"m": torch.rand(1, 7, 7)}
    with pytest.raises(ValueError, match="as large as its image"):
        perturbation_curves(lambda x: x.flatten(1), images, cover, small)
    with pytest.raises(ValueError, match="training mode"):
        measure_curves(FaceRecognizer("ir_tiny", ["a", "b"]), faces, {"m": maps_of()})


def by_hand() -> Curves:
    """Four people with one face each; b's deletion curve lies 0.1 above a's, its insertion curve 0.2 below."""
    shares = torch.linspace(0, 1, 5)
    start = torch.tensor([0.8, 0.7, 0.9, 0.6])[:, None]
    falling, rising = start * (1 - shares), start * shares
    confidence = {
        ("deletion", "a"): falling, ("deletion", "b"): falling + 0.1,
        ("insertion", "a"): rising, ("insertion", "b"): rising - 0.2}
    return Curves(torch.arange(4), torch.arange(4), shares, confidence, {"fill": "black"})


def test_areas_and_their_differences():
    result = by_hand()
    measured = result.measured()
    rows = {(row["measure"], row["map"]): row for row in measured.rows()}
    one = rows["deletion_area", "a"]
    assert one["value"] == pytest.approx(0.375) and rows["insertion_area", "b"]["value"] == pytest.approx(0.175)
    assert one["ci_low"] < 0.375 < one["ci_high"] and "p" not in one and measured.options == {"fill": "black"}
    gaps = {(row["measure"], row["map"]): row for row in measured.against("a")}
    assert set(gaps) == {("deletion_area", "b"), ("insertion_area", "b")}
    more, less = gaps["deletion_area", "b"], gaps["insertion_area", "b"]
    assert [more[name] for name in ("value", "ci_low", "ci_high")] == pytest.approx([0.1] * 3, abs=1e-4)  # paired
    assert less["value"] == pytest.approx(-0.2) and less["p"] < 0.01  # the same for everybody
    alone = {key: curve for key, curve in result.confidence.items() if key[1] == "a"}
    assert replace(result, confidence=alone).measured().against("a") == []
    with pytest.raises(ValueError, match="c to compare; measured were a, b"): measured.against("c")


def test_one_person_has_areas_but_no_interval():
    measured = replace(by_hand(), people=torch.zeros(4, dtype=torch.long)).measured()
    for row in measured.rows() + measured.against("b"):
        assert row["value"] == row["value"] and row["ci_low"] != row["ci_low"]


def test_the_plot_has_a_panel_for_each_scheme_with_the_papers_cut():
    figure = plot_curves(by_hand(), cut=0.3)
    assert [axis.get_title() for axis in figure.axes] == list(CURVE_SCHEMES)
    for axis in figure.axes:
        assert len(axis.lines) == 3 and axis.lines[-1].get_xdata()[0] == 0.3
        assert "a: 0.375" in [text.get_text() for text in axis.get_legend().get_texts()]


def test_a_narrow_network_is_measured_with_the_centre_of_a_map(faces):
    torch.manual_seed(0)
    narrow = FaceRecognizer("mobilefacenet_96", ["a", "b", "c"]).eval()
    maps = {"whole": maps_of(2), "seen": narrow.crop(maps_of(2))}
    found = measure_curves(narrow, faces[:2], maps, stepping=Stepping(steps=2)).confidence
    # the same pictures, each in a place of its own in the batch, where float32 may be rounded otherwise
    for scheme in CURVE_SCHEMES:
        torch.testing.assert_close(found[scheme, "whole"], found[scheme, "seen"], rtol=1e-4, atol=1e-5)
