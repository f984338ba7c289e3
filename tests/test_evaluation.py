"""Deletion and retention against known answers."""
import csv

import pytest
import torch

from sdd_face.data import Faces
from sdd_face.evaluation import Evaluation, evaluate, table_markdown, table_rows, write_table
from sdd_face.intervals import bootstrap
from sdd_face.masks import centred_map, filling, pass_size, random_masks, top_mask
from sdd_face.model import FaceRecognizer
from sdd_face.sdd import explain


@pytest.fixture(scope="module")
def model() -> FaceRecognizer:
    torch.manual_seed(0)
    return FaceRecognizer("ir_tiny", [f"p{i}" for i in range(6)], color="bgr").eval()


@pytest.fixture(scope="module")
def faces() -> Faces:
    images = torch.randint(0, 256, (9, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(9) % 3
    return Faces(images, labels, [f"p{i}" for i in range(6)], torch.arange(9), [f"p{i}" for i in range(9)])


def test_the_top_pixels_are_the_top_pixels():
    torch.manual_seed(0)
    heat = torch.rand(4, 112, 112)
    mask = top_mask(heat)
    assert (mask.sum((1, 2)) == 2509).all()
    for m, h in zip(mask, heat): assert h[m].min() >= h[~m].max()
    assert (top_mask(torch.zeros(1, 112, 112)).sum() == 2509).all()
    threshold = top_mask(heat, rule="threshold")
    assert torch.equal(threshold, heat >= 0.8 * heat.amax((1, 2), keepdim=True))
    dilated = top_mask(torch.rand(50, 7, 7), rule="dilated").float().mean((1, 2))
    assert dilated.min() > 0.3 and dilated.max() < 0.7


@pytest.mark.parametrize("kind", ["rolled", "fixed_offset", "map", "pixels"])
def test_random_masks_are_as_large_as_their_mask(kind):
    mask = top_mask(torch.rand(5, 7, 7))
    drawn = random_masks(mask, kind, 4, torch.Generator().manual_seed(1))
    assert drawn.shape == (4, 5, 112, 112) and (drawn.sum((2, 3)) == 2509).all()
    if kind != "fixed_offset": assert not torch.equal(drawn[0], drawn[1])


def test_a_rolled_mask_is_its_mask_rolled():
    mask = torch.zeros(20, 112, 112, dtype=torch.bool)
    mask[:, 3, 5] = True
    mask[:, 4, 5] = True
    drawn = random_masks(mask, "rolled", 3, torch.Generator().manual_seed(0))
    places = {tuple(m.nonzero()[0].tolist()) for d in drawn for m in d}
    assert len(places) > 50  # each has an offset of its own
    for m in drawn.flatten(0, 1):
        first, second = sorted(m.nonzero().tolist())
        assert first[1] == second[1] and (second[0] - first[0]) % 112 in (1, 111)


def test_offsets_cover_the_torus_evenly():
    mask = torch.zeros(2000, 112, 112, dtype=torch.bool)
    mask[:, 0, 0] = True
    places = random_masks(mask, "rolled", 1, torch.Generator().manual_seed(0))[0].nonzero()[:, 1:].float()
    assert places.mean(0).tolist() == pytest.approx([55.5, 55.5], abs=3)
    assert places.min() == 0 and places.max() == 111


def test_covering_is_what_it_says(model, faces):
    """By hand, face by face: delete the top 20 % in the uint8 image, and show nothing else."""
    result = evaluate(model, faces, draws=1, batch_size=4)
    explanation = explain(model, faces.images)
    masks = top_mask(explanation.sdd.divergence)
    for scheme, keep in (("deletion", ~masks), ("retention", masks)):
        with torch.no_grad(): after = model(model.preprocess(faces.images * keep[:, None])).softmax(1)
        expected = after.gather(1, explanation.classes[:, :1])
        torch.testing.assert_close(result.masked_confidence[scheme, "sdd"], expected, rtol=1e-3, atol=1e-5)
        assert torch.equal(result.masked_prediction[scheme, "sdd"][:, 0], after.argmax(1))
    torch.testing.assert_close(result.confidence, explanation.probabilities[:, 0], rtol=1e-3, atol=1e-5)


def test_ties_are_broken_by_chance_and_only_ties():
    constant = torch.full((3, 7, 7), 0.3)
    mask = top_mask(constant, seed=4)
    assert (mask.sum((1, 2)) == 2509).all() and torch.equal(mask, top_mask(constant, seed=4))
    assert torch.equal(mask[1], top_mask(constant[:1], seed=5)[0])  # the i-th map takes seed + i, in whatever batch
    rows = mask.float().mean((0, 2))
    assert rows.max() < 0.35 and rows.min() > 0.08  # no place is preferred: 0.2, give or take 0.022
    agree = (mask[0] & mask[1]).sum() / 2509
    assert 0.15 < agree < 0.25
    half = torch.zeros(1, 112, 112)
    half[:, 56:] = 1  # all of the chosen lie in the lower half, evenly
    chosen = top_mask(half)[0]
    assert not chosen[:56].any() and abs(chosen[56:, :56].sum() - 1254.5) < 100
    heat = torch.rand(4, 112, 112, generator=torch.Generator().manual_seed(0)).flatten(1).argsort(1).view(4, 112, 112).float()  # all different
    assert torch.equal(top_mask(heat, seed=1), top_mask(heat, seed=2)) and torch.equal(top_mask(heat), heat >= 12544 - 2509)


@pytest.mark.parametrize("wrong, message", [
    ({"heat": torch.full((2, 7, 7), torch.nan)}, "map 0 holds NaN or infinity"), ({"heat": torch.tensor([0.0, torch.inf]).view(2, 1, 1).expand(2, 7, 7)}, "map 1 holds NaN or infinity"),
    ({"heat": torch.rand(7, 7)}, r"the maps are \(7, 7\); expected \(B, h, w\)"), ({"cut": 1e-5}, "a mask of nothing"), ({"cut": 1 - 1e-5}, "a mask of everything"),
    ({"rule": "dilated", "cut": 0.99}, "a mask of everything"), ({"rule": "threshold", "heat": torch.ones(2, 7, 7)}, "a mask of everything"),
    ({"rule": "threshold", "heat": -1 - torch.rand(2, 7, 7)}, "a mask of nothing")])
def test_a_map_that_makes_no_mask_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message): top_mask(**{"heat": torch.rand(2, 7, 7)} | wrong)


@pytest.mark.parametrize("maps, message", [
    ({}, "at least one"), ({"random": None}, "none called 'random'"), ({"a": torch.rand(8, 7, 7)}, r"map 'a' is \(8, 7, 7\); expected \(9, h, w\)"), ({"a": torch.rand(7)}, "map 'a' is"),
    ({"a": torch.rand(9, 1, 1, 7, 7)}, "map 'a' is"), ({"a": torch.rand(9, 0, 7, 7)}, "map 'a' is"),
    ({"a": torch.rand(9, 7, 14)}, "map 'a' is 7 x 14, another shape than the images of 112 x 112; expected 7 x 7 or a multiple"), ({"a": torch.rand(50, 112)}, "map 'a' is 50 x 112"), ({"a": torch.rand(9, 2, 112, 96)}, "map 'a' is 112 x 96"), ({"a": [[1.0]]}, "map 'a' is of the type list"),
    ({"sdd": None, "a": torch.rand(9, 7, 7).index_fill(0, torch.tensor([6]), torch.nan)}, "'a', faces 4 to 7: map 2 holds NaN")])
def test_maps_that_do_not_fit_are_refused(model, faces, maps, message):
    with pytest.raises(ValueError, match=message): evaluate(model, faces, maps, batch_size=4)


def test_the_keyword_maps_is_an_option_of_sdd(model, faces):
    assert evaluate(model, faces, draws=0, maps="relu").options["maps"] == "relu"
    with pytest.raises(ValueError, match="third argument"): evaluate(model, faces, maps={"sdd": None})


def test_options_of_sdd_without_sdd_are_refused(model, faces):
    with pytest.raises(ValueError, match="top_k given, but no map is SDD's own"): evaluate(model, faces, {"a": torch.rand(9, 7, 7)}, top_k=3)


def test_any_map_is_measured_as_sdd_is(model, faces):
    divergence = explain(model, faces.images, batch_size=4).sdd.divergence
    maps = {"sdd": None, "given": 4 * divergence, "twice": torch.stack([divergence, -divergence], 1), "disc": centred_map(), "small": torch.rand(9, 7, 7)}
    result = evaluate(model, faces, maps, draws=2, batch_size=4)
    assert result.maps == [*maps, "random"] and result.passes == 1 + 2 * (1 + 1 + 2 + 1 + 1 + 2)
    default = evaluate(model, faces, draws=2, batch_size=4)
    for scheme in ("deletion", "retention"):
        for name in ("sdd", "random"): torch.testing.assert_close(result.masked_confidence[scheme, name], default.masked_confidence[scheme, name], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(result.masked_confidence[scheme, "given"], result.masked_confidence[scheme, "sdd"], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(result.masked_confidence[scheme, "twice"][:, :1], result.masked_confidence[scheme, "sdd"], rtol=1e-3, atol=1e-5)
        alone = evaluate(model, faces, {"small": maps["small"]}, draws=0)
        torch.testing.assert_close(result.drop(scheme, "small"), alone.drop(scheme, "small"), rtol=1e-3, atol=1e-5)
    assert alone.maps == ["small"]


def test_a_constant_map_does_not_depend_on_the_batch_size(model, faces):
    maps = {"all": torch.ones(7, 7), "each": torch.ones(9, 7, 7), "draws": torch.ones(9, 2, 7, 7)}
    a, b, c = (evaluate(model, faces, maps, draws=0, batch_size=size, seed=seed) for size, seed in ((4, 0), (9, 0), (9, 100)))
    for name in maps:
        torch.testing.assert_close(a.masked_confidence["retention", name], b.masked_confidence["retention", name], rtol=1e-3, atol=1e-5)
        assert not torch.allclose(b.masked_confidence["retention", name], c.masked_confidence["retention", name], rtol=1e-3, atol=1e-5)
    assert not torch.equal(*b.masked_confidence["retention", "draws"].T)


def test_every_face_passes_once_bare_and_once_for_each_mask_in_full_batches(model, faces, monkeypatch):
    seen, features = [], FaceRecognizer.features
    monkeypatch.setattr(FaceRecognizer, "features", lambda self, x: (seen.append(len(x)), features(self, x))[1])
    evaluate(model, faces, {"sdd": None, "disc": centred_map(), "two": torch.rand(9, 2, 7, 7)}, draws=3, batch_size=8)
    assert seen == [8] + 14 * [8] + [1] + [8, 6]  # 14 masks of the first eight faces, and of the ninth


def test_mean_and_noise(model, faces):
    mean = filling(model, faces.images, "mean")
    torch.testing.assert_close(mean[:, :, 3, 5], model.preprocess(faces.images).mean((2, 3)), rtol=1e-4, atol=1e-4)
    assert (mean == mean[:, :, :1, :1]).all()
    noise = filling(model, faces.images, "noise")
    assert noise.shape[0] == 1 and torch.equal(noise, filling(model, faces.images[:2], "noise")) and not torch.equal(noise, filling(model, faces.images, "noise", seed=1))
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 0.577) < 0.01  # uniform on [-1, 1]
    a, b = (evaluate(model, faces, fill="noise", draws=0, batch_size=size) for size in (4, 9))
    torch.testing.assert_close(a.drop("deletion", "sdd"), b.drop("deletion", "sdd"), rtol=1e-3, atol=1e-5)
    narrow = FaceRecognizer("mobilefacenet_96", ["a", "b"]).eval()
    for fill in ("black", "grey", "mean", "blur", "noise"): assert filling(narrow, faces.images, fill).shape[1:] == (3, *narrow.backbone.size)


def test_black_is_black_and_grey_is_zero_for_the_network(model, faces):
    assert torch.equal(filling(model, faces.images, "black"), model.preprocess(torch.zeros_like(faces.images[:1])))
    assert (filling(model, faces.images, "grey") == 0).all()
    assert filling(model, faces.images, "blur").std() < 0.2 * model.preprocess(faces.images).std()


def test_random_masks_do_not_depend_on_the_batch_size_and_do_on_the_seed(model, faces):
    for kind in ("rolled", "map", "pixels"):
        a, b, c = (evaluate(model, faces, random=kind, draws=2, batch_size=size, seed=seed) for size, seed in ((3, 0), (9, 0), (9, 1)))
        torch.testing.assert_close(a.masked_confidence["deletion", "random"], b.masked_confidence["deletion", "random"], rtol=1e-3, atol=1e-5)
        assert not torch.allclose(b.masked_confidence["deletion", "random"], c.masked_confidence["deletion", "random"], rtol=1e-3, atol=1e-5)


def test_a_cover_that_changes_nothing_drops_nothing(model, faces):
    black = Faces(torch.zeros_like(faces.images), faces.labels, faces.names, faces.groups, faces.files)
    result = evaluate(model, black, draws=2)
    for scheme in ("deletion", "retention"):
        for name in result.maps:
            torch.testing.assert_close(result.drop(scheme, name), torch.zeros(9), atol=1e-5, rtol=0)
            assert (result.changed(scheme, name) == 0).all()


def toy() -> Evaluation:
    """Two people, four faces; SDD drops 0.5, 0.3 | 0.1, 0.1 and random 0.1 everywhere."""
    confidence = torch.tensor([0.9, 0.8, 0.6, 0.5])
    after = {(s, "sdd"): (confidence - torch.tensor([0.5, 0.3, 0.1, 0.1]))[:, None] for s in ("deletion", "retention")}
    after |= {(s, "random"): (confidence - 0.1)[:, None].expand(4, 2) for s in ("deletion", "retention")}
    said = {key: torch.zeros(4, value.shape[1], dtype=torch.long) for key, value in after.items()}
    said["deletion", "sdd"] = torch.tensor([[1], [0], [0], [0]])
    return Evaluation(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]), confidence, after, said, {"cut": 0.2})


def test_the_arithmetic_of_a_table():
    result = toy()
    rows = {(row["metric"], row["map"]): row for row in table_rows(result, "deletion")}
    assert rows["confidence_drop", "sdd"]["value"] == pytest.approx(25)
    assert rows["confidence_drop", "random"]["value"] == pytest.approx(10)
    assert rows["confidence_drop", "sdd"]["ci_low"] == pytest.approx(10) and rows["confidence_drop", "sdd"]["ci_high"] == pytest.approx(40)
    assert rows["confidence_drop", "difference"]["value"] == pytest.approx(15)
    assert rows["prediction_change", "sdd"]["value"] == pytest.approx(50)  # faces 0 (said 1, was 0) and 3 (said 0, was 1)
    assert rows["confidence_drop", "sdd"]["paper"] == 62.33 and rows["prediction_change", "random"]["paper"] == 29.73
    assert result.drop("deletion", "sdd", relative=True)[0].item() == pytest.approx(0.5 / 0.9)
    assert result.changed("deletion", "random", of="truth").tolist() == [0, 0, 1, 1]


def test_one_person_has_no_interval():
    values = bootstrap(torch.rand(2, 5), torch.zeros(5, dtype=torch.long))
    assert values[:, 0].isfinite().all() and values[:, 1:].isnan().all()


def test_the_interval_of_clusters_holds_what_it_promises():
    """Of 200 experiments with strong clusters, about 95 % of the intervals hold the true mean; drawing faces instead of people would hold far fewer."""
    generator, held = torch.Generator().manual_seed(0), 0
    for i in range(200):
        person = torch.randn(40, 1, generator=generator)
        values = (person + 0.3 * torch.randn(40, 10, generator=generator)).flatten()[None]
        _, low, high = bootstrap(values, torch.arange(40).repeat_interleave(10), rounds=1000, seed=i)[0].tolist()
        held += low <= 0 <= high
    assert 0.89 <= held / 200 <= 0.99


def test_the_files_have_the_columns_that_were_promised(tmp_path):
    write_table(toy(), "deletion", tmp_path / "table1")
    with open(tmp_path / "table1.csv", newline="") as file: rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["metric", "map", "value", "ci_low", "ci_high", "paper"]
    assert [(row["metric"], row["map"]) for row in rows] == [(m, n) for m in ("confidence_drop", "prediction_change") for n in ("sdd", "random")]
    text = (tmp_path / "table1.md").read_text()
    assert "25.00 [10.00, 40.00]" in text and "62.33" in text and "cut = 0.2" in text and text == table_markdown(toy(), "deletion")


@pytest.mark.parametrize("wrong, message", [
    ({"cut": 0}, "cut is 0"), ({"cut": 1.2}, "cut is 1.2"), ({"rule": "x"}, "rule is 'x'"), ({"fill": "x"}, "fill is 'x'"), ({"random": "x"}, "random is 'x'"), ({"batch_size": 0}, "batch_size is 0"), ({"top_k": 7}, "top_k is 7; the model knows 6 people")])
def test_what_cannot_be_measured_is_refused(model, faces, wrong, message):
    with pytest.raises(ValueError, match=message): evaluate(model, faces, **wrong)


def test_no_faces_and_no_evaluation_mode_are_refused(model, faces):
    with pytest.raises(ValueError, match="no faces"): evaluate(model, faces[:0])
    with pytest.raises(ValueError, match="training mode"): evaluate(FaceRecognizer("ir_tiny", ["a", "b"]), faces)


def test_a_narrow_network_is_measured_with_the_centre_of_a_map(faces):
    torch.manual_seed(0)
    narrow, maps = FaceRecognizer("mobilefacenet_96", [f"p{i}" for i in range(6)]).eval(), torch.rand(3, 112, 112)
    result = evaluate(narrow, faces[:3], {"whole": maps, "seen": narrow.crop(maps)}, draws=0)
    for scheme in ("deletion", "retention"): assert torch.equal(result.masked_confidence[scheme, "whole"], result.masked_confidence[scheme, "seen"])


@pytest.mark.parametrize("fill", ["black", "grey", "mean", "blur", "noise"])
def test_bytes_and_shares_are_covered_alike(model, faces, fill):
    torch.testing.assert_close(filling(model, faces.images[:2] / 255, fill), filling(model, faces.images[:2], fill), rtol=1e-4, atol=1e-4)


def test_a_cpu_gets_small_passes():
    assert [pass_size(size, torch.device("cpu")) for size in (8, 256)] == [8, 32] and pass_size(256, torch.device("cuda")) == 256
