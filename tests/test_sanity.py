"""Sanity checks against known answers: other weights, other classes, other readings."""
import copy

import pytest
import torch
from scipy.stats import spearmanr

from sdd_face.cam import logit_maps
from sdd_face.data import Faces
from sdd_face.evaluation import evaluate
from sdd_face.model import FaceRecognizer, load_recognizer
from sdd_face.sanity import COLUMNS, READINGS, cascade, other_classes, plot_cascade, plot_readings, randomised, rank_correlation, readings, stages
from sdd_face.sdd import explain

PEOPLE = [f"p{i}" for i in range(6)]


@pytest.fixture(scope="module", params=[("pool", "linear"), ("own", "cosine")], ids="-".join)
def model(request) -> FaceRecognizer: return load_recognizer("packaged", PEOPLE, head=request.param[0], classifier=request.param[1])


@pytest.fixture(scope="module")
def pooled() -> FaceRecognizer: return load_recognizer("packaged", PEOPLE)


@pytest.fixture(scope="module")
def faces() -> Faces:
    images = torch.randint(0, 256, (8, 3, 14, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).float()
    images = torch.nn.functional.interpolate(images, (112, 112), mode="bicubic").clamp(0, 255).byte()
    return Faces(images, torch.arange(8) % 4, PEOPLE, torch.arange(8), [f"{i}" for i in range(8)])


def cam(model, images, classes): return explain(model, images, 1, classes, size=None).cams[:, 0]


def divergence(model, images, classes): return explain(model, images, 5, classes, size=None).sdd.divergence


def edges(model, images, classes): return images.float().mean(1).diff(dim=1)  # does not look at the network


def state(model) -> dict: return {name: value.clone() for name, value in model.state_dict().items()}


def test_ranks_correlate_as_scipy_says():
    a, b = torch.randn(5, 9, 8), torch.randn(5, 9, 8).round()
    expected = [spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a, b)]
    assert rank_correlation(a, b).tolist() == pytest.approx(expected)
    torch.testing.assert_close(rank_correlation(a, a.exp()), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(rank_correlation(a, -a), -torch.ones(5, dtype=torch.float64))
    assert rank_correlation(a, torch.ones(5, 9, 8)).isnan().all()


@pytest.mark.parametrize("a, b, message", [
    (torch.rand(2, 3, 3), torch.rand(2, 3, 4), "the maps are"), (torch.rand(3, 3), torch.rand(3, 3), "the maps are"), (torch.rand(1, 3, 3), torch.full((1, 3, 3), torch.nan), "NaN")])
def test_maps_that_cannot_be_compared_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message): rank_correlation(a, b)


def test_stages_cover_all_that_makes_logits(model):
    changed = [name for names in stages(model).values() for name in names]
    untouched = [name for name in model.state_dict() if not any(name.startswith(each) for each in changed)]
    assert all(name.startswith("backbone.output_layer") for name in untouched) and (not untouched) == (model.record["head"] == "own")
    assert list(stages(model))[0] == "head" and list(stages(model))[-1] == "input" and list(stages(model))[1] == "block 8"


def test_the_model_is_unchanged_and_the_copy_changes_from_the_top(model, faces):
    before, last = state(model), None
    for stage, network in randomised(model, faces.images, seed=0, statistics="new"):
        now, names = state(network), stages(model)[stage]
        moved = {name for name in now if not torch.equal(now[name], (last or before)[name])}
        assert moved and all(any(name.startswith(each) for each in names) for name in moved), stage
        assert not network.training and network is not model
        last = now
    assert stage == "input" and all(torch.equal(value, before[name]) for name, value in state(model).items())
    assert not model._forward_hooks and not model.training


def test_the_new_head_is_not_the_one_that_training_began_with(faces):
    for seed in range(3):
        model = load_recognizer("packaged", PEOPLE, seed=seed)
        _, network = next(randomised(model, faces.images, seed))
        assert not torch.allclose(network.head.classifier.weight, model.head.classifier.weight, atol=1e-3)


def test_random_weights_follow_from_the_seed(pooled, faces):
    a, b, c = ({name: value for stage, network in randomised(pooled, faces.images, seed) for name, value in state(network).items()} for seed in (0, 0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a) and any(not torch.equal(a[name], c[name]) for name in a)


def test_new_batch_norms_measure_what_they_see(pooled, faces):
    *_, (_, measured) = randomised(pooled, faces.images, statistics="measured")
    *_, (_, new) = randomised(pooled, faces.images, statistics="new")
    seen, first = {}, "backbone.input_layer.1"
    for name, network in (("measured", measured), ("new", new)):
        layer = network.get_submodule(first)
        with torch.no_grad(): seen[name] = network.backbone.input_layer[0](network.preprocess(faces.images))
        momenta = {each.momentum for each in network.modules() if isinstance(each, torch.nn.BatchNorm2d)}
        assert momenta == {0.1} and not any(each.training for each in network.modules())
    layer = measured.get_submodule(first)
    torch.testing.assert_close(layer.running_mean, seen["measured"].mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert (new.get_submodule(first).running_mean == 0).all() and (new.get_submodule(first).running_var == 1).all()


def test_a_random_head_changes_cam_and_not_a_map_that_ignores_the_network(model, faces):
    found = cascade(model, faces.images, {"cam": cam, "sdd": divergence, "edges": edges}, draws=2)
    for by_stage in found.values(): assert list(by_stage) == list(stages(model)) and all(each.shape == (8,) for each in by_stage.values())
    for stage in stages(model):
        assert found["edges"][stage].tolist() == pytest.approx([1] * 8)
        assert found["cam"][stage].mean() < 0.6 and found["sdd"][stage].mean() < 0.6
    assert len(plot_cascade(found, faces.labels).axes[0].lines) == 4


def test_other_classes_give_other_maps(model, faces):
    maps, found = other_classes(model, faces.images, {"cam": cam, "edges": edges})
    assert set(found["cam"]) == {"second class", "random class"}
    assert found["edges"]["random class"].tolist() == pytest.approx([1] * 8) and found["cam"]["second class"].mean() < 0.999
    with torch.no_grad():
        features = model.features(model.preprocess(faces.images))
        order = model.head(features).argsort(1, descending=True)[:, :2]
        expected, _ = logit_maps(model.head, features, order)
    torch.testing.assert_close(maps["cam"], expected[:, 0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["cam"]["second class"], rank_correlation(expected[:, 0], expected[:, 1]), rtol=1e-2, atol=1e-2)


def test_one_person_has_no_other_class(faces):
    with pytest.raises(ValueError, match="knows 1 person"): other_classes(load_recognizer("packaged", ["only"]), faces.images, {"cam": cam})


def test_what_cannot_be_randomised_is_refused(pooled, faces):
    with pytest.raises(ValueError, match="statistics is 'x'"): next(randomised(pooled, faces.images, statistics="x"))
    with pytest.raises(ValueError, match="1 face to measure"): next(randomised(pooled, faces.images[:1]))
    with pytest.raises(ValueError, match="training mode"): next(randomised(FaceRecognizer("ir_tiny", PEOPLE), faces.images))


@pytest.fixture(scope="module")
def rows(pooled, faces) -> list[dict]:
    chosen = ("alpha: fixed point", "alpha: 1", "cut: 30 %", "random: pixels", "drop: relative", "change: against the truth", "faces: recognised ones")
    return readings(pooled, faces, {name: READINGS[name] for name in chosen}, draws=1)


def find(rows: list[dict], reading: str, name: str = "sdd", scheme: str = "deletion", metric: str = "confidence_drop") -> dict:
    return next(row for row in rows if (row["reading"], row["map"], row["scheme"], row["metric"]) == (reading, name, scheme, metric))


def test_alpha_moves_nothing_and_the_cut_does(rows):
    for row in rows:
        if row["reading"].startswith("alpha"): assert row["shift"] == pytest.approx(0, abs=1e-2)
        if row["reading"] == "random: pixels" and row["map"] == "sdd": assert row["shift"] == pytest.approx(0, abs=1e-2)
        assert row["shift"] == pytest.approx(row["value"] - row["default"], abs=1e-2) and row["ci_low"] - 1e-6 <= row["shift"] <= row["ci_high"] + 1e-6
    assert abs(find(rows, "cut: 30 %")["shift"]) > 1e-3


def test_shifts_are_those_of_two_evaluations(rows, pooled, faces):
    a, b = evaluate(pooled, faces, draws=1), evaluate(pooled, faces, draws=1, cut=0.3)
    for scheme in ("deletion", "retention"):
        row = find(rows, "cut: 30 %", "difference", scheme)
        gap = [100 * (each.drop(scheme, "sdd") - each.drop(scheme, "random")).mean().item() for each in (a, b)]
        assert (row["default"], row["value"]) == pytest.approx(gap, abs=1e-3)
    right = a.predicted == a.labels
    assert find(rows, "drop: relative")["value"] == pytest.approx(100 * a.drop("deletion", "sdd", relative=True).mean().item(), abs=1e-3)
    assert find(rows, "change: against the truth", metric="prediction_change")["value"] == pytest.approx(100 * a.changed("deletion", "sdd", "truth").mean().item(), abs=1e-3)
    if right.any(): assert find(rows, "faces: recognised ones")["value"] == pytest.approx(100 * a.drop("deletion", "sdd")[right].mean().item(), abs=1e-3)


def test_the_figure_has_a_panel_for_each_number_of_the_tables(rows):
    figure = plot_readings(rows)
    assert [axis.get_title().splitlines()[0] for axis in figure.axes] == list(COLUMNS.values())
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(dict.fromkeys(row["reading"] for row in rows))


def test_an_unknown_way_of_counting_is_refused(pooled, faces):
    with pytest.raises(ValueError, match="count is 'x'"): readings(pooled, faces, {"odd": {"count": "x"}}, draws=1)


def test_another_network_is_a_reading_too(pooled, faces):
    other = copy.deepcopy(pooled)
    with torch.no_grad(): other.head.classifier.weight.mul_(-1)
    row = find(readings(pooled, faces, {"other": {"model": other}}, draws=1), "other")
    expected = [100 * evaluate(each, faces, draws=1).drop("deletion", "sdd").mean().item() for each in (pooled, other)]
    assert (row["default"], row["value"]) == pytest.approx(expected, abs=1e-3) and row["shift"] == pytest.approx(expected[1] - expected[0], abs=1e-2)
