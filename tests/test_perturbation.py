"""Scores under masks: by hand, against Captum and torchcam, and against masks and options that make no sense."""
import inspect
import sys
from collections import Counter
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from captum.attr import Occlusion
from torchcam.methods import ScoreCAM
from torchcam.methods.core import _CAM

from sdd_face.lime import lime
from sdd_face.masks import fill_for, window_masks
from sdd_face.model import FaceRecognizer
from sdd_face.perturbation import (
    SCORES,
    Probe,
    masked_scores,
    occlusion,
    rise,
    rise_masks,
    score_cam,
)

METHODS = {"occlusion": (occlusion, {"stride": 32}), "rise": (rise, {"masks": 12})}
METHODS |= {"score_cam": (score_cam, {}), "lime": (lime, {"samples": 12, "cells": 3})}
FACES = torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
CLASSES = torch.tensor([2, 0, 5])


def network(arch: str = "ir_tiny", people: int = 6, **options) -> FaceRecognizer:
    """Make a network whose logits differ from class to class by more than its rounding."""
    torch.manual_seed(0)
    model = FaceRecognizer(arch, [f"p{i}" for i in range(people)], **options).eval()
    with torch.no_grad(): model.head.classifier.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def model() -> FaceRecognizer: return network()


class Linear(FaceRecognizer):
    """Two people; the first one's logit is the sum of the pixels' brightness times known weights."""

    evidence = torch.randn(112, 112, generator=torch.Generator().manual_seed(2)) / 100

    def __init__(self): super().__init__("ir_tiny", ["Ann", "Bob"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logit = (((x + 1) / 2).mean(1) * self.evidence).sum((1, 2))
        return torch.stack([logit, torch.zeros_like(logit)], 1)


@pytest.fixture(scope="module")
def linear() -> FaceRecognizer: return Linear().eval()


WHITE = torch.full((1, 3, 112, 112), 255, dtype=torch.uint8)


def asked(method, **fields) -> Probe:
    """Change fields of a method's own probe."""
    return replace(inspect.signature(method).parameters["probe"].default, **fields)


def some_masks(*shape: int) -> torch.Tensor: return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def passes(monkeypatch) -> Counter:
    """Count the images that go through the network, and the largest batch."""
    seen, features = Counter(), FaceRecognizer.features

    def counted(self, x):
        seen["images"] += len(x)
        seen["largest"] = max(seen["largest"], len(x))
        return features(self, x)

    monkeypatch.setattr(FaceRecognizer, "features", counted)
    return seen


@pytest.mark.parametrize("fill", ["black", "grey", "blur"])
@pytest.mark.parametrize("score", SCORES)
def test_scores_are_those_of_masked_images_one_by_one(model, score, fill):
    soft = some_masks(4, 112, 112), some_masks(3, 4, 112, 112)
    for masks in (*soft, *(each > 0.5 for each in soft)):
        x, cover = model.preprocess(FACES), fill_for(model, FACES, fill=fill).expand(3, -1, -1, -1)
        each = masks.float().expand(3, 4, 112, 112)[:, :, None]
        mixed = each * x[:, None] + (1 - each) * cover[:, None]
        with torch.no_grad(): logits = model(mixed.flatten(0, 1)).view(3, 4, 6).double()
        expected = {"logit": logits, "probability": logits.softmax(2), "log_odds": logits.softmax(2).logit()}[score]
        expected = expected.gather(2, CLASSES[:, None, None].expand(3, 4, 1))[..., 0].float()
        scores = masked_scores(model, FACES, CLASSES, masks, probe=Probe(fill=fill, score=score, batch_size=5))
        torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3)


def test_masks_of_everything_and_of_nothing(model):
    with torch.no_grad():
        logits = torch.stack([model(model.preprocess(images)) for images in (FACES, torch.zeros_like(FACES))], 1)
    expected = logits[torch.arange(3), :, CLASSES]
    both = torch.stack([torch.ones(112, 112), torch.zeros(112, 112)])
    for masks in (both, both.bool()):
        scores = masked_scores(model, FACES, CLASSES, masks, probe=Probe(score="logit"))
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


def test_log_odds_stay_finite_where_probabilities_do_not(linear, monkeypatch):
    monkeypatch.setattr(linear, "evidence", torch.full((112, 112), 1.0))
    everything = torch.ones(1, 112, 112)
    assert masked_scores(linear, WHITE, torch.tensor([0]), everything).item() == pytest.approx(12544)
    assert masked_scores(linear, WHITE, torch.tensor([1]), everything).item() == pytest.approx(-12544)
    assert masked_scores(linear, WHITE, torch.tensor([0]), everything, probe=Probe(score="probability")).item() == 1


@pytest.mark.parametrize("score", SCORES)
def test_several_classes_share_their_passes(model, passes, score):
    masks, classes = some_masks(4, 112, 112), torch.tensor([[2, 1], [0, 5], [5, 4]])
    probe = Probe(score=score)
    one = torch.stack([masked_scores(model, FACES, each, masks, probe=probe) for each in classes.T], 2)
    passes.clear()
    torch.testing.assert_close(masked_scores(model, FACES, classes, masks, probe=probe), one)
    assert passes["images"] == 12


def test_passes_and_memory(model, passes):
    masked_scores(model, FACES, CLASSES, some_masks(5, 112, 112), probe=Probe(batch_size=4))
    assert passes == {"images": 15, "largest": 4}
    costs = [(occlusion, {"stride": 32}, 3 * (3 * 3 + 1 + 7)), (rise, {"masks": 9}, 27)]
    for method, options, cost in [*costs, (lime, {"samples": 9, "cells": 2}, 27)]:
        passes.clear()
        method(model, FACES, CLASSES, **options, probe=asked(method, batch_size=4))
        assert passes["largest"] == 4 and passes["images"] == cost
    passes.clear()
    score_cam(model, FACES, CLASSES)
    assert passes == {"images": 3 * (model.backbone.channels + 1), "largest": 16}


@pytest.mark.parametrize("name", METHODS)
def test_one_at_a_time_is_as_all_together_and_nothing_is_left_behind(model, name):
    method, options = METHODS[name]
    before, state = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    together = method(model, FACES, CLASSES, **options, probe=asked(method, batch_size=7))
    assert together.shape == (3, 112, 112) and together.dtype == torch.float32
    assert together.isfinite().all() and not together.requires_grad
    for i in range(3):
        alone = method(model, FACES[i : i + 1], CLASSES[i : i + 1], **options)[0]
        torch.testing.assert_close(alone, together[i], rtol=1e-3, atol=1e-3 * float(together[i].abs().max()))
    assert torch.equal(torch.get_rng_state(), state) and not model.training and torch.is_grad_enabled()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    for module in model.modules():
        assert not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_narrow_network(name):
    method, options = METHODS[name]
    model = network("mobilefacenet_96", head="own") if name != "score_cam" else network()
    model.backbone.size = (112, 96)  # for Score-CAM a small network, as it asks once for each channel
    heat = method(model, FACES[:1], CLASSES[:1], **options)
    assert heat.shape == (1, 112, 96) and heat.isfinite().all() and heat.std() > 0
    if name == "occlusion":
        torch.testing.assert_close(heat, method(model, model.crop(FACES[:1]), CLASSES[:1], **options))


def test_masks_of_the_whole_face_are_cut_for_a_narrow_network():
    model, masks = network("mobilefacenet_96"), some_masks(2, 112, 112)
    whole, cut = (masked_scores(model, FACES, CLASSES, each) for each in (masks, masks[:, :, 8:104]))
    torch.testing.assert_close(whole, cut)


@pytest.mark.parametrize("score", ["probability", "logit"])
def test_occlusion_is_captums(model, score):
    def forward(x): return model(x).softmax(1) if score == "probability" else model(x)
    x, baseline = model.preprocess(FACES), model.preprocess(torch.zeros_like(FACES[:1]))
    options = {"baselines": baseline, "target": CLASSES, "perturbations_per_eval": 9}
    for window, stride in ((32, 16), (48, 32), (56, 56)):
        with torch.no_grad():
            strides = (3, stride, stride)
            theirs = Occlusion(forward).attribute(x, (3, window, window), strides=strides, **options)
        ours = occlusion(model, FACES, CLASSES, window=window, stride=stride, probe=Probe(score=score))
        assert torch.equal(theirs[:, 0], theirs[:, 1])
        assert (ours - theirs[:, 0]).abs().max() < 1e-4 * theirs.abs().max()


def test_occlusion_of_a_linear_network_finds_its_evidence(linear):
    windows = window_masks((112, 112), window=32, stride=16).float()
    inside = torch.einsum("mhw,hw->m", windows, linear.evidence)
    expected = torch.einsum("m,mhw->hw", inside, windows) / windows.sum(0)
    for mode in ("hide", "show"):
        heat = occlusion(linear, WHITE, torch.tensor([0]), mode=mode, probe=Probe(score="logit"))[0]
        torch.testing.assert_close(heat, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size, cells, keep", [
    ((112, 112), 7, 0.5), ((112, 96), 7, 0.3), ((112, 112), 10, 0.1), ((5, 9), 2, 1.0)])
def test_rise_masks_are_unbiased(size, cells, keep):
    masks = rise_masks(1000, size, cells=cells, keep=keep)
    assert masks.min() >= 0 and masks.max() <= 1 and masks.shape == (1000, *size)
    error = (keep * (1 - keep) / 1000) ** 0.5  # of a hard coin; smooth ones have less
    assert (masks.mean(0) - keep).abs().max() <= 5 * error + 1e-6
    assert not torch.equal(rise_masks(3, (112, 112), seed=1), rise_masks(3, (112, 112), seed=2))
    assert torch.equal(masks[:2], rise_masks(1000, size, cells=cells, keep=keep)[:2])


def test_rise_of_a_linear_network_is_its_expectation(linear):
    bent = torch.nn.functional.interpolate(torch.eye(7)[:, None], 128, mode="linear")[:, 0]
    shared = sum(bent[:, at : at + 112].T @ bent[:, at : at + 112] for at in range(16)) / 16
    for keep in (0.5, 0.3):
        expected = keep * linear.evidence.sum() + (1 - keep) * shared @ linear.evidence @ shared
        options = {"masks": 300, "keep": keep, "probe": Probe(score="logit")}
        errors = [rise(linear, WHITE, torch.tensor([0]), seed=seed, **options)[0] - expected for seed in range(4)]
        spread = torch.stack(errors).std(0).mean()
        assert torch.stack(errors).mean(0).abs().mean() < 1.5 * spread / 4**0.5
        assert torch.stack(errors).mean().abs() < spread


def test_rise_follows_its_definition_its_seed_and_not_the_batch_size(model):
    masks, options = rise_masks(10, (112, 112), keep=0.4, seed=5), {"masks": 10, "keep": 0.4}
    scores = masked_scores(model, FACES, CLASSES, masks, probe=Probe(score="probability"))
    expected = torch.einsum("bm,mhw->bhw", scores, masks) / 4
    for size in (1, 7, 256):
        heat = rise(model, FACES, CLASSES, seed=5, **options, probe=asked(rise, batch_size=size))
        torch.testing.assert_close(heat, expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(rise(model, FACES, CLASSES, seed=6, **options), expected, rtol=0.01)
    centred = torch.einsum("bm,mhw->bhw", scores - scores.mean(1, keepdim=True), masks) / 4
    heat = rise(model, FACES, CLASSES, seed=5, **options, baseline="mean")
    torch.testing.assert_close(heat, centred, rtol=1e-3, atol=1e-4)


class PublishedScoreCAM(ScoreCAM):
    """Scale after enlarging, as the paper does; torchcam scales before."""
    @staticmethod
    def _normalize(cams, spatial_dims=None, eps=1e-8):
        return cams if spatial_dims else _CAM._normalize(cams, spatial_dims, eps)

    def _upsample(self, activation): return _CAM._normalize(super()._upsample(activation), 2)


def test_score_cam_is_torchcams(model):
    ours = score_cam(model, FACES, CLASSES, probe=asked(score_cam, fill="grey"))
    for extractor, tolerance in ((PublishedScoreCAM, 1e-4), (ScoreCAM, 0.03)):
        with torch.no_grad(), extractor(model, model.backbone.body, input_shape=(3, 112, 112)) as cam:
            cam._relu = False
            small = cam(CLASSES.tolist(), model(model.preprocess(FACES)), normalized=False)[0]
        theirs = torch.nn.functional.interpolate(small[:, None], (112, 112), mode="bilinear")[:, 0]
        assert (ours - theirs).abs().max() < tolerance * theirs.abs().max()


def test_score_cam_survives_a_dead_channel(model, monkeypatch):
    features = FaceRecognizer.features

    def one_dead(self, x):
        return features(self, x) * (torch.arange(self.backbone.channels) > 0)[:, None, None]

    monkeypatch.setattr(FaceRecognizer, "features", one_dead)
    assert score_cam(model, FACES[:1], CLASSES[:1]).isfinite().all()


def test_lime_is_weighted_ridge_regression(model):
    squares = (torch.arange(112) * 4 // 112)[:, None] * 4 + torch.arange(112) * 4 // 112
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        shown = torch.stack([torch.bernoulli(torch.full((1, 16), 0.5))[0] for _ in range(60)])
    scores = masked_scores(model, FACES, CLASSES, shown.bool()[:, squares], probe=Probe(score="probability")).double()
    shown = shown.double()
    weights = torch.exp(-((1 - shown.mean(1).sqrt()) ** 2) / (2 * 0.25**2))[:, None]
    shown = shown - (weights * shown).sum(0) / weights.sum()
    expected = torch.linalg.solve(shown.T @ (weights * shown) + torch.eye(16), shown.T @ (weights * scores.T)).T.float()
    heat = lime(model, FACES, CLASSES, samples=60, cells=4, seed=9, probe=asked(lime, batch_size=32))
    torch.testing.assert_close(heat, expected[:, squares], rtol=1e-3, atol=1e-5)


def test_lime_of_a_linear_network_orders_the_squares(linear):
    heat = lime(linear, WHITE, torch.tensor([0]), samples=400, cells=4, probe=Probe(score="logit"))[0]
    inside = linear.evidence.unfold(0, 28, 28).unfold(1, 28, 28).sum((2, 3)).flatten()
    found = heat.unfold(0, 28, 28).unfold(1, 28, 28)
    assert (found.amax((2, 3)) == found.amin((2, 3))).all()
    assert torch.corrcoef(torch.stack([found[..., 0, 0].flatten(), inside]))[0, 1] > 0.999


def test_lime_without_captum_names_the_extra(model, monkeypatch):
    for module in ("captum.attr", "sklearn.linear_model"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(ImportError, match=r"pip install 'sdd_face\[methods\]'"):
                lime(model, FACES, CLASSES)


def with_nan() -> torch.Tensor:
    masks = torch.ones(2, 112, 112)
    masks[1, 5, 5] = torch.nan
    return masks


@pytest.mark.parametrize("masks, message", [
    (torch.ones(2, 100, 112), r"masks have the shape \(2, 100, 112\); expected \(M, 112, 112\)"),
    (torch.ones(112, 112), "masks have the shape"), (torch.ones(0, 112, 112), "masks have the shape"),
    (torch.ones(2, 4, 112, 112), "masks have the shape"), (with_nan(), "NaN"),
    (torch.full((1, 112, 112), 1.5), "reach from 1.5 to 1.5"), (-torch.ones(1, 112, 112), "reach from -1"),
    (torch.ones(1, 112, 112, dtype=torch.uint8), "masks are torch.uint8")])
def test_masks_that_are_none(model, masks, message):
    with pytest.raises(ValueError, match=message): masked_scores(model, FACES, CLASSES, masks)


@pytest.mark.parametrize("fields, message", [
    ({"fill": "pink"}, "fill is 'pink'"), ({"score": "luck"}, "score is 'luck'"),
    ({"batch_size": 0}, "batch_size is 0")])
@pytest.mark.parametrize("name", METHODS)
def test_options_that_are_none(model, name, fields, message):
    method, _ = METHODS[name]
    with pytest.raises(ValueError, match=message): method(model, FACES, CLASSES, probe=asked(method, **fields))


def test_a_probe_is_kept_as_it_was_made():
    with pytest.raises(FrozenInstanceError): Probe().fill = "grey"
    assert asked(rise) == asked(lime) == Probe(score="probability")


@pytest.mark.parametrize("call, message", [
    (lambda model: occlusion(model, FACES, CLASSES, mode="look"), "mode is 'look'"),
    (lambda model: occlusion(model, FACES, CLASSES, window=16, stride=20), "stride <= window"),
    (lambda model: window_masks((112, 96), window=100, stride=10), "expected 1 <= stride"),
    (lambda model: rise(model, FACES, CLASSES, keep=0.0), "share in"),
    (lambda model: rise(model, FACES, CLASSES, masks=0), "0 masks"),
    (lambda model: rise(model, FACES, CLASSES, baseline="low"), "baseline is 'low'"),
    (lambda model: rise_masks(10, model.backbone.size, cells=200), "cells is 200"),
    (lambda model: lime(model, FACES, CLASSES, cells=0), "cells is 0"),
    (lambda model: lime(model, FACES, CLASSES, samples=0), "samples is 0")])
def test_shapes_that_are_none(model, call, message):
    with pytest.raises(ValueError, match=message): call(model)


@pytest.mark.parametrize("target, message", [
    (torch.tensor([0, 1]), r"target is \(2,\) of torch.int64; .* \(3,\), one for each image, or \(3, S\)"),
    (torch.tensor([0, 1, 6]), "target is 6; the model knows 0 to 5"),
    (torch.tensor([-1, 1, 2]), "target is -1; the model knows 0 to 5"),
    (torch.tensor([0.0, 1.0, 2.0]), "target is .* expected one integer")])
@pytest.mark.parametrize("name", METHODS)
def test_classes_that_are_none(model, name, target, message):
    method, options = METHODS[name]
    with pytest.raises(ValueError, match=message): method(model, FACES, target, **options)


def test_one_person_has_no_odds():
    model, nobody = network(people=1), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="one person only"): occlusion(model, FACES, nobody)
    scores = masked_scores(model, FACES, nobody, torch.ones(1, 112, 112), probe=Probe(score="probability"))
    assert (scores == 1).all()


def test_a_model_in_training_mode_is_refused():
    model = network().train()
    for method, options in METHODS.values():
        with pytest.raises(ValueError, match=r"call model.eval\(\) first"): method(model, FACES, CLASSES, **options)
