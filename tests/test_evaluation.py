"""Deletion and retention against known answers."""
import csv

import pytest
import torch

from sdd_face.data import Faces
from sdd_face.evaluation import Evaluation, bootstrap, evaluate, filling, random_masks, table_markdown, table_rows, top_mask, write_table
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
    ({"cut": 0}, "cut is 0"), ({"cut": 1.2}, "cut is 1.2"), ({"rule": "x"}, "rule is 'x'"), ({"fill": "x"}, "fill is 'x'"), ({"random": "x"}, "random is 'x'"), ({"top_k": 7}, "top_k is 7; the model knows 6 people")])
def test_what_cannot_be_measured_is_refused(model, faces, wrong, message):
    with pytest.raises(ValueError, match=message): evaluate(model, faces, **wrong)


def test_no_faces_and_no_evaluation_mode_are_refused(model, faces):
    with pytest.raises(ValueError, match="no faces"): evaluate(model, faces[:0])
    with pytest.raises(ValueError, match="training mode"): evaluate(FaceRecognizer("ir_tiny", ["a", "b"]), faces)
