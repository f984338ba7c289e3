"""Deletion and retention against known answers."""
import csv
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from sdd_face.data import Faces
from sdd_face.evaluation import SCHEMES, Evaluation, Masking, evaluate
from sdd_face.intervals import bootstrap
from sdd_face.maps import centred_map
from sdd_face.masks import fill_for, random_masks, top_mask
from sdd_face.model import FaceRecognizer
from sdd_face.published import paper_markdown, paper_rows
from sdd_face.sdd import explain
from sdd_face.tables import write_table

# In double precision batches of other sizes agree on every processor to far more than this; what is kept is float32.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
METRICS = ("confidence_drop", "prediction_change")


@pytest.fixture(scope="module")
def single() -> FaceRecognizer:
    """A network in single precision: to blur takes long in double."""
    torch.manual_seed(0)
    return FaceRecognizer("ir_tiny", [f"p{i}" for i in range(6)], color="bgr").eval()


@pytest.fixture(scope="module")
def model(single) -> FaceRecognizer: return deepcopy(single).double()


@pytest.fixture(scope="module")
def faces() -> Faces:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (9, 3, 112, 112), dtype=torch.uint8, generator=generator)
    labels = torch.arange(9) % 3
    return Faces(images, labels, [f"p{i}" for i in range(6)], torch.arange(9), [f"p{i}" for i in range(9)])


def seeded(seed: int) -> torch.Generator: return torch.Generator().manual_seed(seed)


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
    drawn = random_masks(mask, kind=kind, draws=4, generator=seeded(1))
    assert drawn.shape == (4, 5, 112, 112) and (drawn.sum((2, 3)) == 2509).all()
    if kind != "fixed_offset": assert not torch.equal(drawn[0], drawn[1])


def test_a_rolled_mask_is_its_mask_rolled():
    mask = torch.zeros(20, 112, 112, dtype=torch.bool)
    mask[:, 3, 5] = True
    mask[:, 4, 5] = True
    drawn = random_masks(mask, kind="rolled", draws=3, generator=seeded(0))
    places = {tuple(m.nonzero()[0].tolist()) for d in drawn for m in d}
    assert len(places) > 50  # each has an offset of its own
    for m in drawn.flatten(0, 1):
        first, second = sorted(m.nonzero().tolist())
        assert first[1] == second[1] and (second[0] - first[0]) % 112 in (1, 111)


def test_offsets_cover_the_torus_evenly():
    mask = torch.zeros(2000, 112, 112, dtype=torch.bool)
    mask[:, 0, 0] = True
    places = random_masks(mask, kind="rolled", draws=1, generator=seeded(0))[0].nonzero()[:, 1:].float()
    assert places.mean(0).tolist() == pytest.approx([55.5, 55.5], abs=3)
    assert places.min() == 0 and places.max() == 111


def test_covering_is_what_it_says(model, faces):
    """By hand, face by face: delete the top 20 % in the uint8 image, and show nothing else."""
    result = evaluate(model, faces, masking=Masking(draws=1), batch_size=4)
    explanation = explain(model, faces.images)
    masks = top_mask(explanation.sdd.divergence)
    for scheme, keep in (("deletion", ~masks), ("retention", masks)):
        with torch.no_grad(): after = model(model.preprocess(faces.images * keep[:, None])).softmax(1)
        expected = after.gather(1, explanation.classes[:, :1]).float()
        torch.testing.assert_close(result.masked_confidence[scheme, "sdd"], expected, **CLOSE)
        assert torch.equal(result.masked_prediction[scheme, "sdd"][:, 0], after.argmax(1))
    torch.testing.assert_close(result.confidence, explanation.probabilities[:, 0].float(), **CLOSE)


def test_ties_are_broken_by_chance_and_only_ties():
    constant = torch.full((3, 7, 7), 0.3)
    mask = top_mask(constant, seed=4)
    assert (mask.sum((1, 2)) == 2509).all() and torch.equal(mask, top_mask(constant, seed=4))
    assert torch.equal(mask[1], top_mask(constant[:1], seed=5)[0])  # the i-th map takes seed + i, in whatever batch
    rows = mask.float().mean((0, 2))
    assert rows.max() < 0.35 and rows.min() > 0.08  # no place is preferred: 0.2, give or take 0.022
    common = (mask[0] & mask[1]).sum() / 2509
    assert 0.15 < common < 0.25
    half = torch.zeros(1, 112, 112)
    half[:, 56:] = 1  # all of the chosen lie in the lower half, evenly
    chosen = top_mask(half)[0]
    assert not chosen[:56].any() and abs(chosen[56:, :56].sum() - 1254.5) < 100
    order = torch.rand(4, 112, 112, generator=seeded(0)).flatten(1).argsort(1)
    heat = order.view(4, 112, 112).float()  # all different
    assert torch.equal(top_mask(heat, seed=1), top_mask(heat, seed=2))
    assert torch.equal(top_mask(heat), heat >= 12544 - 2509)


@pytest.mark.parametrize("wrong, message", [
    ({"heat": torch.full((2, 7, 7), torch.nan)}, "map 0 holds NaN or infinity"),
    ({"heat": torch.tensor([0.0, torch.inf]).view(2, 1, 1).expand(2, 7, 7)}, "map 1 holds NaN or infinity"),
    ({"heat": torch.rand(7, 7)}, r"the maps are \(7, 7\); expected \(B, h, w\)"),
    ({"cut": 1e-5}, "a mask of nothing"), ({"cut": 1 - 1e-5}, "a mask of everything"),
    ({"rule": "dilated", "cut": 0.99}, "a mask of everything"),
    ({"rule": "threshold", "heat": torch.ones(2, 7, 7)}, "a mask of everything"),
    ({"rule": "threshold", "heat": -1 - torch.rand(2, 7, 7)}, "a mask of nothing")])
def test_a_map_that_makes_no_mask_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message): top_mask(**{"heat": torch.rand(2, 7, 7)} | wrong)


@pytest.mark.parametrize("maps, message", [
    ({}, "at least one"), ({"random": None}, "none called 'random'"),
    ({"a": torch.rand(8, 7, 7)}, r"map 'a' is \(8, 7, 7\); expected \(9, h, w\)"),
    ({"a": torch.rand(7)}, "map 'a' is"), ({"a": torch.rand(9, 1, 1, 7, 7)}, "map 'a' is"),
    ({"a": torch.rand(9, 0, 7, 7)}, "map 'a' is"),
    ({"a": torch.rand(9, 7, 14)},
     "map 'a' is 7 x 14, another shape than the images of 112 x 112; expected 7 x 7 or a multiple"),
    ({"a": torch.rand(50, 112)}, "map 'a' is 50 x 112"), ({"a": torch.rand(9, 2, 112, 96)}, "map 'a' is 112 x 96"),
    ({"a": [[1.0]]}, "map 'a' is of the type list"),
    ({"sdd": None, "a": torch.rand(9, 7, 7).index_fill(0, torch.tensor([6]), torch.nan)}, "map 'a' holds NaN")])
def test_maps_that_do_not_fit_are_refused(model, faces, maps, message):
    with pytest.raises(ValueError, match=message): evaluate(model, faces, maps, batch_size=4)


def test_a_map_that_makes_no_mask_is_named_with_its_faces(model, faces):
    flat = torch.rand(9, 7, 7).index_fill(0, torch.tensor([6]), 0.5)
    with pytest.raises(ValueError, match="'a', faces 4 to 7: .* a mask of everything out of map 2"):
        evaluate(model, faces, {"a": flat}, masking=Masking(rule="threshold"), batch_size=4)


def test_how_maps_are_prepared_is_an_option_of_sdd(model, faces):
    assert evaluate(model, faces, masking=Masking(draws=0), prepare="relu").options["prepare"] == "relu"
    assert evaluate(model, faces, maps={"sdd": None}, masking=Masking(draws=0)).maps == ["sdd"]


def test_options_of_sdd_without_sdd_are_refused(model, faces):
    with pytest.raises(ValueError, match="top_k given, but no map is SDD's own"):
        evaluate(model, faces, {"a": torch.rand(9, 7, 7)}, top_k=3)


def test_any_map_is_measured_as_sdd_is(model, faces):
    divergence = explain(model, faces.images, batch_size=4).sdd.divergence
    twice, small = torch.stack([divergence, -divergence], 1), torch.rand(9, 7, 7)
    maps = {"sdd": None, "given": 4 * divergence, "twice": twice, "disc": centred_map(), "small": small}
    result = evaluate(model, faces, maps, masking=Masking(draws=2), batch_size=4)
    assert result.maps == [*maps, "random"] and result.passes == 1 + 2 * (1 + 1 + 2 + 1 + 1 + 2)
    default = evaluate(model, faces, masking=Masking(draws=2), batch_size=4)
    alone = evaluate(model, faces, {"small": small}, masking=Masking(draws=0), batch_size=4)
    for scheme in SCHEMES:
        found = {name: after for (kind, name), after in result.masked_confidence.items() if kind == scheme}
        for name in ("sdd", "random"):
            torch.testing.assert_close(found[name], default.masked_confidence[scheme, name], **CLOSE)
        torch.testing.assert_close(found["given"], found["sdd"], **CLOSE)
        torch.testing.assert_close(found["twice"][:, :1], found["sdd"], rtol=0, atol=1e-3)  # ties are drawn otherwise
        torch.testing.assert_close(result.drop(scheme, "small"), alone.drop(scheme, "small"), **CLOSE)
    assert alone.maps == ["small"]


def test_a_constant_map_does_not_depend_on_the_batch_size(model, faces):
    maps = {"all": torch.ones(7, 7), "each": torch.ones(9, 7, 7), "draws": torch.ones(9, 2, 7, 7)}
    a, b, c = (
        evaluate(model, faces, maps, masking=Masking(draws=0, seed=seed), batch_size=size).masked_confidence
        for size, seed in ((4, 0), (9, 0), (9, 100)))
    for name in maps:
        key = "retention", name
        torch.testing.assert_close(a[key], b[key], **CLOSE)
        assert not torch.allclose(b[key], c[key], **CLOSE)
    assert not torch.equal(*b["retention", "draws"].T)


def test_every_face_passes_once_bare_and_once_for_each_mask_in_full_batches(model, faces, monkeypatch):
    seen, features = [], FaceRecognizer.features
    monkeypatch.setattr(FaceRecognizer, "features", lambda self, x: (seen.append(len(x)), features(self, x))[1])
    maps = {"sdd": None, "disc": centred_map(), "two": torch.rand(9, 2, 7, 7)}
    evaluate(model, faces, maps, masking=Masking(draws=3), batch_size=8)
    assert seen == [8] + 14 * [8] + [1] + [8, 6]  # 14 masks of the first eight faces, and of the ninth


def test_mean_and_noise(single, model, faces):
    mean = fill_for(single, faces.images, fill="mean")
    torch.testing.assert_close(mean[:, :, 3, 5], single.preprocess(faces.images).mean((2, 3)), rtol=1e-4, atol=1e-4)
    assert (mean == mean[:, :, :1, :1]).all()
    noise = fill_for(single, faces.images, fill="noise")
    assert noise.shape[0] == 1 and torch.equal(noise, fill_for(single, faces.images[:2], fill="noise"))
    assert not torch.equal(noise, fill_for(single, faces.images, fill="noise", seed=1))
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 0.577) < 0.01  # uniform on [-1, 1]
    masking = Masking(fill="noise", draws=0)
    a, b = (evaluate(model, faces, masking=masking, batch_size=size) for size in (4, 9))
    torch.testing.assert_close(a.drop("deletion", "sdd"), b.drop("deletion", "sdd"), **CLOSE)
    narrow = FaceRecognizer("mobilefacenet_96", ["a", "b"]).eval()
    for fill in ("black", "grey", "mean", "blur", "noise"):
        assert fill_for(narrow, faces.images, fill=fill).shape[1:] == (3, *narrow.backbone.size)


def test_black_is_black_and_grey_is_zero_for_the_network(single, faces):
    black = single.preprocess(torch.zeros_like(faces.images[:1]))
    assert torch.equal(fill_for(single, faces.images, fill="black"), black)
    assert (fill_for(single, faces.images, fill="grey") == 0).all()
    assert fill_for(single, faces.images, fill="blur").std() < 0.2 * single.preprocess(faces.images).std()


def test_random_masks_do_not_depend_on_the_batch_size_and_do_on_the_seed(model, faces):
    for kind in ("rolled", "map", "pixels"):
        a, b, c = (
            evaluate(model, faces, masking=Masking(random=kind, draws=2, seed=seed), batch_size=size)
            for size, seed in ((3, 0), (9, 0), (9, 1)))
        a, b, c = (each.masked_confidence["deletion", "random"] for each in (a, b, c))
        torch.testing.assert_close(a, b, **CLOSE)
        assert not torch.allclose(b, c, **CLOSE)


def test_a_cover_that_changes_nothing_drops_nothing(model, faces):
    black = replace(faces, images=torch.zeros_like(faces.images))
    result = evaluate(model, black, masking=Masking(draws=2))
    for scheme in SCHEMES:
        for name in result.maps:
            torch.testing.assert_close(result.drop(scheme, name), torch.zeros(9), rtol=0, atol=1e-6)
            assert (result.changed(scheme, name) == 0).all()


def toy() -> Evaluation:
    """Two people, four faces; SDD drops 0.5, 0.3 | 0.1, 0.1 and random 0.1 everywhere."""
    confidence = torch.tensor([0.9, 0.8, 0.6, 0.5])
    after = {(s, "sdd"): (confidence - torch.tensor([0.5, 0.3, 0.1, 0.1]))[:, None] for s in SCHEMES}
    after |= {(s, "random"): (confidence - 0.1)[:, None].expand(4, 2) for s in SCHEMES}
    said = {key: torch.zeros(4, value.shape[1], dtype=torch.long) for key, value in after.items()}
    said["deletion", "sdd"] = torch.tensor([[1], [0], [0], [0]])
    people, predicted = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1])
    return Evaluation(people, predicted, confidence, after, said, {"cut": 0.2})


def test_what_was_measured_is_in_percent_and_merits_have_a_sign():
    measured, merits = toy().measured(), toy().merits()
    assert measured.measures == ["deletion_drop", "deletion_change", "retention_drop", "retention_change"]
    assert measured.maps == ["sdd", "random"] and measured.options == {"cut": 0.2}
    assert measured.people.equal(toy().people)
    means = {(row["measure"], row["map"]): row["value"] for row in measured.rows()}
    assert means["deletion_drop", "sdd"] == pytest.approx(25) and means["deletion_change", "sdd"] == pytest.approx(50)
    assert merits.measures == list(SCHEMES) and merits.maps == measured.maps
    signs = {"deletion": 1, "retention": -1}
    for (scheme, name), each in merits.values.items():
        torch.testing.assert_close(each, signs[scheme] * measured.values[f"{scheme}_drop", name])
    relative, truth = toy().measured(relative=True), toy().measured(of="truth")
    assert relative.values["deletion_drop", "sdd"][0].item() == pytest.approx(0.5 / 0.9)
    assert truth.values["deletion_change", "random"].tolist() == [0, 0, 1, 1] and truth.rows()[3]["value"] == 50
    assert merits.against("random")[0]["value"] == pytest.approx(15) and measured.scale == merits.scale == 100


def test_the_arithmetic_of_a_table():
    result = toy()
    rows = {(row["metric"], row["map"]): row for row in paper_rows(result, "deletion")}
    drop, change = ({name: rows[metric, name] for name in ("sdd", "random", "difference")} for metric in METRICS)
    assert [row["value"] for row in drop.values()] == pytest.approx([25, 10, 15])
    assert drop["sdd"]["ci_low"] == pytest.approx(10) and drop["sdd"]["ci_high"] == pytest.approx(40)
    assert change["sdd"]["value"] == pytest.approx(50)  # faces 0 (said 1, was 0) and 3 (said 0, was 1)
    assert drop["sdd"]["paper"] == 62.33 and change["random"]["paper"] == 29.73 and drop["difference"]["paper"] == 19.83
    assert len(rows) == 6 and paper_rows(result, "retention")[0]["paper"] == 69.43
    assert result.drop("deletion", "sdd", relative=True)[0].item() == pytest.approx(0.5 / 0.9)
    assert result.changed("deletion", "random", of="truth").tolist() == [0, 0, 1, 1]


def test_one_person_has_no_interval():
    values = bootstrap(torch.rand(2, 5), torch.zeros(5, dtype=torch.long))
    assert values[:, 0].isfinite().all() and values[:, 1:].isnan().all()


def test_the_interval_of_clusters_holds_what_it_promises():
    """Of 200 experiments with strong clusters, about 95 % of the intervals hold the true mean.

    Drawing faces instead of people would hold far fewer."""
    generator, held = seeded(0), 0
    for i in range(200):
        person = torch.randn(40, 1, generator=generator)
        values = (person + 0.3 * torch.randn(40, 10, generator=generator)).flatten()[None]
        _, low, high = bootstrap(values, torch.arange(40).repeat_interleave(10), rounds=1000, seed=i)[0].tolist()
        held += low <= 0 <= high
    assert 0.89 <= held / 200 <= 0.99


def test_the_files_have_the_columns_that_were_promised(tmp_path):
    rows = [row for row in paper_rows(toy(), "deletion") if row["map"] != "difference"]
    write_table(rows, tmp_path / "table1", text=paper_markdown(toy(), "deletion"))
    with open(tmp_path / "table1.csv", newline="") as file: rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["metric", "map", "value", "ci_low", "ci_high", "paper"]
    assert [(row["metric"], row["map"]) for row in rows] == [(m, n) for m in METRICS for n in ("sdd", "random")]
    text = (tmp_path / "table1.md").read_text()
    assert "25.00 [10.00, 40.00]" in text and "62.33" in text and "cut = 0.2" in text
    assert text == paper_markdown(toy(), "deletion") and "relative drop" in text
    assert "| Metric, % | SDD CAM | Random CAM | SDD - random | Paper: SDD | Paper: random |" in text
    assert paper_markdown(toy(), "retention").startswith("**Table 2: retention.** 4 test faces of 2 people;")


@pytest.mark.parametrize("wrong, message", [
    ({"cut": 0}, "cut is 0"), ({"cut": 1.2}, "cut is 1.2"), ({"rule": "x"}, "rule is 'x'"),
    ({"fill": "x"}, "fill is 'x'"), ({"random": "x"}, "random is 'x'"), ({"draws": -1}, "draws is -1")])
def test_a_masking_that_cannot_be_is_refused(model, faces, wrong, message):
    with pytest.raises(ValueError, match=message): evaluate(model, faces, masking=Masking(**wrong))


@pytest.mark.parametrize("wrong, message", [
    ({"batch_size": 0}, "batch_size is 0"),
    ({"top_k": 7}, "top_k is 7; expected 1 to 6, the people that the model knows")])
def test_what_cannot_be_measured_is_refused(model, faces, wrong, message):
    with pytest.raises(ValueError, match=message): evaluate(model, faces, **wrong)


def test_no_faces_and_no_evaluation_mode_are_refused(model, faces):
    with pytest.raises(ValueError, match="no faces"): evaluate(model, faces[:0])
    with pytest.raises(ValueError, match="training mode"): evaluate(FaceRecognizer("ir_tiny", ["a", "b"]), faces)


def test_a_narrow_network_is_measured_with_the_centre_of_a_map(faces):
    torch.manual_seed(0)
    narrow, maps = FaceRecognizer("mobilefacenet_96", [f"p{i}" for i in range(6)]).eval(), torch.rand(3, 112, 112)
    both = {"whole": maps, "seen": narrow.crop(maps)}
    after = evaluate(narrow, faces[:3], both, masking=Masking(draws=0)).masked_confidence
    # the same pictures, each in a place of its own in the batch, where float32 may be rounded otherwise
    for scheme in SCHEMES:
        torch.testing.assert_close(after[scheme, "whole"], after[scheme, "seen"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fill", ["black", "grey", "mean", "blur", "noise"])
def test_bytes_and_shares_are_covered_alike(single, faces, fill):
    shares, pixels = (fill_for(single, images, fill=fill) for images in (faces.images[:2] / 255, faces.images[:2]))
    torch.testing.assert_close(shares, pixels, rtol=1e-4, atol=1e-4)
