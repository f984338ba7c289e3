"""Sanity checks against known answers: other weights, other classes."""
import pytest
import torch
from scipy.stats import spearmanr

from sdd_face.cam import logit_maps
from sdd_face.data import Faces
from sdd_face.maps import rank_correlation
from sdd_face.model import FaceRecognizer, load_recognizer
from sdd_face.sanity import cascade, other_classes, plot_cascade, randomized, stages
from sdd_face.sdd import explain

PEOPLE = [f"p{i}" for i in range(6)]


@pytest.fixture(scope="module", params=[("pool", "linear"), ("own", "cosine")], ids="-".join)
def model(request) -> FaceRecognizer:
    head, classifier = request.param
    return load_recognizer("packaged", PEOPLE, head=head, classifier=classifier)


@pytest.fixture(scope="module")
def pooled() -> FaceRecognizer: return load_recognizer("packaged", PEOPLE)


@pytest.fixture(scope="module")
def faces() -> Faces:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 14, 14), dtype=torch.uint8, generator=generator).float()
    images = torch.nn.functional.interpolate(images, (112, 112), mode="bicubic").clamp(0, 255).byte()
    return Faces(images, torch.arange(8) % 4, PEOPLE, torch.arange(8), [f"{i}" for i in range(8)])


def cam(model, images, classes): return explain(model, images, top_k=1, target=classes, size=None).cams[:, 0]


def divergence(model, images, classes):
    return explain(model, images, top_k=5, target=classes, size=None).sdd.divergence


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
    (torch.rand(2, 3, 3), torch.rand(2, 3, 4), "the maps are"), (torch.rand(3, 3), torch.rand(3, 3), "the maps are"),
    (torch.rand(1, 3, 3), torch.full((1, 3, 3), torch.nan), "NaN")])
def test_maps_that_cannot_be_compared_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message): rank_correlation(a, b)


def test_stages_cover_all_that_makes_logits(model):
    changed = [name for names in stages(model).values() for name in names]
    untouched = [name for name in model.state_dict() if not any(name.startswith(each) for each in changed)]
    assert all(name.startswith("backbone.output_layer") for name in untouched)
    assert (not untouched) == (model.record["head"] == "own")
    assert list(stages(model)) == ["head", *(f"block {i}" for i in range(8, 0, -1)), "input"]
    for i, (_, block) in enumerate(model.backbone.body.named_children(), 1):
        assert model.get_submodule(*stages(model)[f"block {i}"]) is block


def test_the_model_is_unchanged_and_the_copy_changes_from_the_top(model, faces):
    before, last = state(model), None
    for stage, network in randomized(model, faces.images, seed=0, statistics="new"):
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
        _, network = next(randomized(model, faces.images, seed=seed))
        assert not torch.allclose(network.head.classifier.weight, model.head.classifier.weight, atol=1e-3)


def test_random_weights_follow_from_the_seed(pooled, faces):
    def weights(seed: int) -> dict:
        *_, (_, network) = randomized(pooled, faces.images, seed=seed)
        return state(network)
    a, b, c = (weights(seed) for seed in (0, 0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a) and any(not torch.equal(a[name], c[name]) for name in a)


def test_new_batch_norms_measure_what_they_see(pooled, faces):
    *_, (_, measured) = randomized(pooled, faces.images, statistics="measured")
    *_, (_, new) = randomized(pooled, faces.images, statistics="new")
    seen, first = {}, "backbone.input_layer.1"
    for name, network in (("measured", measured), ("new", new)):
        layer = network.get_submodule(first)
        with torch.no_grad(): seen[name] = network.backbone.input_layer[0](network.preprocess(faces.images))
        momenta = {each.momentum for each in network.modules() if isinstance(each, torch.nn.BatchNorm2d)}
        assert momenta == {0.1} and not any(each.training for each in network.modules())
    layer = measured.get_submodule(first)
    torch.testing.assert_close(layer.running_mean, seen["measured"].mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert (new.get_submodule(first).running_mean == 0).all() and (new.get_submodule(first).running_var == 1).all()
    two = [cascade(pooled, faces, {"cam": cam}, draws=1, statistics=each) for each in ("measured", "new")]
    assert not torch.equal(*(each.values["input", "cam"] for each in two))


def test_a_random_head_changes_cam_and_not_a_map_that_ignores_the_network(model, faces):
    found = cascade(model, faces, {"cam": cam, "sdd": divergence, "edges": edges}, draws=2)
    assert found.measures == ["trained", *stages(model)] and found.maps == ["cam", "sdd", "edges"]
    assert found.people.equal(faces.labels) and all(each.shape == (8,) for each in found.values.values())
    for stage in stages(model):
        assert found.values[stage, "edges"].tolist() == pytest.approx([1] * 8)
        assert found.values[stage, "cam"].mean() < 0.6 and found.values[stage, "sdd"].mean() < 0.6
    assert all((found.values["trained", name] == 1).all() for name in found.maps)
    axis = plot_cascade(found).axes[0]
    assert len(axis.lines) == 4
    assert [label.get_text() for label in axis.get_xticklabels()] == found.measures


def test_other_classes_give_other_maps(model, faces):
    maps, found = other_classes(model, faces, {"cam": cam, "edges": edges})
    assert found.measures == ["second class", "random class"] and found.people.equal(faces.labels)
    assert found.values["random class", "edges"].tolist() == pytest.approx([1] * 8)
    assert found.values["second class", "cam"].mean() < 0.999
    with torch.no_grad():
        features = model.features(model.preprocess(faces.images))
        order = model.head(features).argsort(1, descending=True)[:, :2]
        expected, _ = logit_maps(model.head, features, order)
    torch.testing.assert_close(maps["cam"], expected[:, 0], rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    correlation = rank_correlation(expected[:, 0], expected[:, 1])
    torch.testing.assert_close(found.values["second class", "cam"], correlation, rtol=1e-2, atol=1e-2)


def test_one_person_has_no_other_class(faces):
    alone = load_recognizer("packaged", ["only"])
    with pytest.raises(ValueError, match="knows 1 person"): other_classes(alone, faces, {"cam": cam})


def test_what_cannot_be_randomised_is_refused(pooled, faces):
    with pytest.raises(ValueError, match="statistics is 'x'"): next(randomized(pooled, faces.images, statistics="x"))
    with pytest.raises(ValueError, match="1 face to measure"): next(randomized(pooled, faces.images[:1]))
    with pytest.raises(ValueError, match="training mode"):
        next(randomized(FaceRecognizer("ir_tiny", PEOPLE), faces.images))
