"""Scaled directed divergence against golden numbers, against torchcam, and against hard cases."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchcam.methods import FinerCAM

from sdd_face.cam import class_activation_maps
from sdd_face.explanation import plot_explanation
from sdd_face.model import FaceRecognizer
from sdd_face.sdd import explain, sdd

CASES = json.loads((Path(__file__).parent / "golden" / "sdd.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_golden_numbers(case):
    cams = torch.tensor(case["cams"], dtype=torch.float64)[None]
    result = sdd(cams, target=case["target"], size=None, prepare="raw")
    assert result.scale.item() == pytest.approx(case["F"], rel=1e-6)
    assert result.alpha.item() == pytest.approx(case["alpha"], rel=1e-6)
    np.testing.assert_allclose(result.divergence[0], case["divergence"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(result.map[0], case["map"], rtol=1e-6, atol=1e-6)


def cams_of_kind(kind: str, classes: int, dtype: torch.dtype) -> torch.Tensor:
    """Make three images' worth of CAMs that could go wrong."""
    cams = torch.randn(3, classes, 7, 7, generator=torch.Generator().manual_seed(classes)).double()
    if kind == "constant": cams = torch.full_like(cams, 3.0)
    if kind == "zero": cams = torch.zeros_like(cams)
    if kind == "zero_target": cams[:, 0] = 0
    if kind == "zero_others": cams[:, 1:] = 0
    if kind == "unequal": cams[:, 0] *= 1e-20
    return cams.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["random", "constant", "zero", "zero_target", "zero_others", "unequal"])
@pytest.mark.parametrize("classes", [1, 2, 5, 50])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_any_finite_cams_give_a_finite_map_and_alpha_keeps_the_order(dtype, kind, classes, scale):
    cams = cams_of_kind(kind, classes, dtype) * scale
    several = [{}, {"alpha": "fixed_point"}, {"prepare": "relu"}, {"prepare": "raw"}, {"order": "cams"}]
    several += [{"order": "map"}, {"members": torch.rand(3, classes) < 0.5}, {"minimum_scale": 1.0}, {"alpha": "0.3"}]
    for options in several:
        result = sdd(cams, **options)
        for value in vars(result).values(): assert value.isfinite().all(), options
        assert result.map.min() >= 0 and result.map.max() <= 1 and result.map.shape == (3, 112, 112)
    for order in ("divergence", "cams"):
        rising = [sdd(cams, alpha=number, order=order) for number in (0.01, 0.2, 0.4, 10.0)]
        ranks = rising[0].divergence.flatten(1).argsort(1)
        for result in rising: assert (result.map.flatten(1).gather(1, ranks).diff(dim=1) >= 0).all()


def test_of_more_maps_than_fifty_the_minimum_wins():
    assert sdd(torch.randn(1, 60, 7, 7)).scale.item() >= 60


def test_targets_may_differ_from_image_to_image():
    cams = torch.randn(3, 4, 7, 7)
    together = sdd(cams, target=torch.tensor([2, 0, 3]))
    for i, target in enumerate((2, 0, 3)):
        torch.testing.assert_close(together.map[i], sdd(cams[i : i + 1], target=target).map[0])


def test_maps_that_do_not_take_part_are_as_if_they_were_not_there():
    cams, members = torch.randn(3, 6, 7, 7), torch.tensor([True, False, True, True, False, True]).expand(3, -1)
    for options in ({}, {"prepare": "raw"}, {"minimum_scale": 1.0}, {"order": "cams"}):
        some, all_of_them = sdd(cams, members=members, **options), sdd(cams[:, members[0]], **options)
        for name in ("map", "divergence", "scale", "alpha"):
            torch.testing.assert_close(getattr(some, name), getattr(all_of_them, name))


def test_scaling_a_cam_changes_nothing_by_default():
    cams = torch.randn(2, 5, 7, 7)
    other = cams * torch.rand(2, 5, 1, 1).add(0.1) + torch.randn(2, 5, 1, 1)
    torch.testing.assert_close(sdd(other).divergence, sdd(cams).divergence, rtol=1e-3, atol=1e-4)
    above = cams - cams.amin((2, 3), keepdim=True)
    by_hand = above / above.amax((2, 3), keepdim=True)
    torch.testing.assert_close(sdd(by_hand, prepare="raw").divergence, sdd(cams).divergence, rtol=1e-3, atol=1e-4)


def test_the_fixed_point_is_one():
    result = sdd(torch.randn(4, 5, 7, 7, dtype=torch.float64), alpha="fixed_point", size=None)
    full = torch.exp(result.alpha[:, None, None] * result.divergence)
    deviation = full.flatten(1).std(1, correction=0)
    torch.testing.assert_close(result.alpha, 0.2 + 0.2 * deviation / (deviation + 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cams", [
    torch.full((1, 2, 7, 7), torch.nan), torch.zeros(0, 2, 7, 7), torch.zeros(2, 7, 7),
    torch.zeros(1, 2, 7, 7, dtype=torch.long)])
def test_cams_that_are_none_are_refused(cams):
    with pytest.raises(ValueError, match="cams "): sdd(cams)


@pytest.fixture(scope="module")
def model() -> FaceRecognizer:
    torch.manual_seed(0)
    return FaceRecognizer("ir_tiny", [f"p{i}" for i in range(8)]).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_divergence_is_torchcams_finer_cam(model, images):
    """D = F (x_t - g mean x_k): on a pooling head, the positive part is FinerCAM with gamma g on Grad-CAM."""
    for i in range(len(images)):
        result = explain(model, images[i : i + 1], size=None, prepare="raw")
        scale, classes = result.sdd.scale.item(), result.classes[0].tolist()
        with FinerCAM(model, model.backbone.body, input_shape=(3, 112, 112), gamma=(len(classes) - 1) / scale) as finer:
            scores = model(model.preprocess(images[i : i + 1]))
            theirs = finer(classes[0], scores, comparison_idx=classes[1:], normalized=False)[0][0]
        torch.testing.assert_close(result.sdd.divergence[0].relu() / scale, 49 * theirs.detach(), rtol=1e-3, atol=1e-5)


def test_the_maps_add_up_to_the_logits(model, images):
    result = explain(model, images, top_k=8)
    with torch.no_grad(): logits = model(model.preprocess(images))
    sums = result.cams.mean((2, 3)) + model.head.classifier.bias.detach()[result.classes]
    torch.testing.assert_close(sums, logits.gather(1, result.classes), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.probabilities.sum(1), torch.ones(3))


def test_a_position_dependent_head_is_exact_too():
    features, weights = torch.randn(2, 6, 7, 7, dtype=torch.float64), torch.randn(2, 3, 6, 7, 7, dtype=torch.float64)
    logits = torch.einsum("bkyx,bskyx->bs", features, weights) / 49
    torch.testing.assert_close(class_activation_maps(features, weights).mean((2, 3)), logits, rtol=1e-10, atol=1e-12)


def test_overlapping_classes_are_those_whose_maps_correlate_most(model, images):
    near = explain(model, images, compared="overlapping", overlap=0.3)
    everyone = explain(model, images, top_k=8)
    for face in range(len(images)):
        order = {c: i for i, c in enumerate(everyone.classes[face].tolist())}
        maps = everyone.cams[face].flatten(1)
        likeness = torch.corrcoef(maps)[0]
        expected = [everyone.classes[face, 0].item()]
        ranked = likeness[1:].argsort(descending=True) + 1
        expected += everyone.classes[face, ranked[:4]].tolist()
        assert near.classes[face].tolist() == expected
        above = [likeness[order[c]] >= 0.3 for c in expected]
        assert near.members[face].tolist() == [True, *above[1:]]
    alone = explain(model, images, compared="overlapping", overlap=1.1)
    assert alone.members.sum(1).tolist() == [1, 1, 1] and (alone.sdd.scale == 1).all()
    assert explain(model, images).members.all()


def test_batches_do_not_matter_and_the_model_is_left_alone(model, images):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    a, b = explain(model, images), explain(model, images, batch_size=1)
    assert torch.equal(a.classes, b.classes)
    torch.testing.assert_close(a.sdd.map, b.sdd.map, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(explain(model, images / 255).sdd.map, a.sdd.map, rtol=1e-3, atol=1e-4)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model._forward_hooks and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("wrong, message", [
    ({"top_k": 9}, "top_k is 9; expected 1 to 8, the people that the model knows"), ({"top_k": 0}, "top_k is 0"),
    ({"target": 8}, "target is 8; the model knows 0 to 7"), ({"target": -1}, "target is -1"),
    ({"compared": "x"}, "compared is 'x'; expected 'probable' or 'overlapping'"),
    ({"order": "x"}, "order is 'x'"), ({"prepare": "x"}, "prepare is 'x'"),
    ({"alpha": "x"}, "alpha is 'x'; expected 'divergence', 'fixed_point' or a number"),
    ({"minimum_scale": "x"}, "minimum_scale is 'x'")])
def test_what_cannot_be_explained_is_refused(model, images, wrong, message):
    with pytest.raises(ValueError, match=message): explain(model, images, **wrong)


@pytest.mark.parametrize("wrong, message", [
    (torch.full((1, 3, 112, 112), torch.nan), "NaN or infinity"),
    (torch.zeros(0, 3, 112, 112, dtype=torch.uint8), "the batch is empty"),
    (torch.zeros(3, 112, 112), "expected \\(B, 3, 112, 112\\)"),
    (torch.full((1, 3, 112, 112), 2.0), "reach from 2 to 2"),
    (torch.zeros(1, 3, 112, 112, dtype=torch.long), "expected uint8")])
def test_images_that_are_none_are_refused(model, wrong, message):
    with pytest.raises(ValueError, match=message): explain(model, wrong)


def test_a_model_in_training_mode_is_refused(images):
    awake = FaceRecognizer("ir_tiny", ["a", "b"])
    with pytest.raises(ValueError, match="training mode"): explain(awake, images, top_k=2)


def test_the_picture_has_the_papers_layout(model, images):
    result = explain(model, images)
    samples = {c: images[0] for c in range(8)}
    figure = plot_explanation(result, images, samples=samples, index=1)
    assert len(figure.axes) == 12 + 1  # a bar says what the colours mean
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0] == model.names[result.classes[1, 0]]
    assert titles[6].startswith("CAM") and titles[11].startswith("SDD")


def test_the_picture_of_a_narrow_network_shows_what_it_sees(images):
    result = explain(FaceRecognizer("mobilefacenet_96", [f"p{i}" for i in range(3)]).eval(), images[:1], top_k=2)
    figure = plot_explanation(result, images)
    assert {axis.images[0].get_array().shape for axis in figure.axes[:3]} == {(112, 96, 3)}


def test_the_names_travel_with_the_explanation(model, images):
    assert explain(model, images, batch_size=2).names == model.names
