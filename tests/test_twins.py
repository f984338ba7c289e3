"""The twin game against known answers: truth scores 1, a map without an opinion gets chance."""
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_heads import randomized
from torchvision.transforms.v2.functional import pil_to_tensor

from sdd_face.alignment import TEMPLATE
from sdd_face.cam import logit_maps
from sdd_face.classes import compared_classes
from sdd_face.data import load_faces, split_faces
from sdd_face.finetune import Recipe
from sdd_face.inpainting import (
    class_decision,
    gallery,
    gallery_decision,
    inpainting_game,
    measured_game,
    paint_triplets,
    playable,
    top_at_false_alarm_rate,
)
from sdd_face.localisation import coarse_truth, dilated, localisation_auc, mass_inside, pointing
from sdd_face.methods import attribute, method_options
from sdd_face.model import FaceRecognizer, predict
from sdd_face.paint import PARTS
from sdd_face.pairs import gallery_maps
from sdd_face.regions import REGIONS, detected_landmarks, paint_over, region_mask
from sdd_face.synthetic import draw_faces
from sdd_face.twins import (
    LEVEL,
    LOCALISATION_SCORES,
    TWIN_PARTS,
    TwinGame,
    decisions,
    difference_model,
    draw_family_faces,
    draw_game,
    explain_decisions,
    make_families,
    open_twins,
    part_rows,
    parts_markdown,
    score_maps,
)

PEOPLE, ALIGNED = 2, ROOT.parent / "shared/real/facescrub12/aligned"


@pytest.fixture(scope="module")
def people() -> dict[str, torch.Tensor]: return make_families(PEOPLE, seed=3)


@pytest.fixture(scope="module")
def game(people) -> TwinGame: return draw_game(people, images=2, seed=4)


@pytest.fixture(scope="module")
def model() -> FaceRecognizer:
    torch.manual_seed(0)
    return FaceRecognizer("ir_tiny", [f"p{i}" for i in range(PEOPLE * (1 + len(TWIN_PARTS)))]).eval()


@pytest.fixture(scope="module")
def double() -> FaceRecognizer: return randomized("ir_tiny", "pool", "linear", torch.float64)


def bytes_of(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 112, 112), dtype=torch.uint8, generator=generator)


def some_truth(count: int = 6, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.nn.functional.interpolate(torch.rand(count, 1, 14, 14, generator=random), (112, 112))[:, 0] > 0.8


@pytest.mark.parametrize("score", [pointing, mass_inside, localisation_auc])
def test_the_truth_scores_one_and_its_opposite_zero(score):
    truth = some_truth()
    assert (score(truth.float(), truth) == 1).all()
    assert (score(-truth.float(), truth, **{"tolerance": 0} if score is pointing else {}) == 0).all()


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-30, 1e30, 0.1])
def test_a_constant_map_gets_exactly_chance(value):
    truth, flat = some_truth(), torch.full((6, 7, 7), value)
    torch.testing.assert_close(mass_inside(flat, truth), truth.float().mean((1, 2)))
    torch.testing.assert_close(pointing(flat, truth, tolerance=5), dilated(truth, tolerance=5).float().mean((1, 2)))
    assert (localisation_auc(flat, truth) == 0.5).all()


def test_random_maps_get_chance_on_average():
    truth, maps = some_truth(1).expand(400, -1, -1), torch.rand(400, 7, 7, generator=torch.Generator().manual_seed(0))
    assert abs(localisation_auc(maps, truth).mean() - 0.5) < 0.02
    assert abs(mass_inside(maps, truth).mean() - truth[0].float().mean()) < 0.02


def test_shift_and_scale_change_nothing_and_order_is_all_the_area_needs():
    truth, maps = some_truth(), torch.randn(6, 7, 7, generator=torch.Generator().manual_seed(1))
    for score in (pointing, mass_inside, localisation_auc):
        torch.testing.assert_close(score(maps * 100 - 7, truth), score(maps, truth), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(score(maps.double(), truth), score(maps, truth))
    full = torch.randn(6, 112, 112, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(localisation_auc(full.sinh(), truth), localisation_auc(full, truth))


def test_ties_do_not_depend_on_position():
    truth = torch.zeros(2, 8, 8, dtype=torch.bool)
    truth[0, 0, 0] = truth[1, 7, 7] = True
    maps = torch.zeros(2, 8, 8)
    maps[:, 0, 0] = maps[:, 7, 7] = 1   # two peaks, one of them right
    assert pointing(maps, truth, tolerance=0).tolist() == [0.5, 0.5]
    areas = localisation_auc(maps, truth)
    assert areas[0] == areas[1] == pytest.approx((62 + 0.5) / 63)


def test_the_area_is_that_of_sklearn():
    metrics = pytest.importorskip("sklearn.metrics")
    truth, maps = some_truth(), torch.randint(0, 9, (6, 112, 112), generator=torch.Generator().manual_seed(5)).float()
    for heat, inside, area in zip(maps, truth, localisation_auc(maps, truth)):
        expected = metrics.roc_auc_score(inside.flatten().numpy(), heat.flatten().numpy())
        assert expected == pytest.approx(area.item(), abs=1e-6)


def test_the_tolerance_is_a_distance():
    truth = torch.zeros(1, 41, 41, dtype=torch.bool)
    truth[0, 20, 20] = True
    assert dilated(truth, tolerance=3).sum() == sum(x * x + y * y <= 9 for x in range(-3, 4) for y in range(-3, 4))
    with pytest.raises(ValueError, match="tolerance is -1"): dilated(truth, tolerance=-1)


def test_a_finer_map_has_a_higher_ceiling(game):
    seen = game[game.visible]
    scores = [localisation_auc(coarse_truth(seen.changed, (n, n)), seen.changed).mean() for n in (7, 14, 112)]
    assert scores[0] < scores[1] < scores[2] == 1


@pytest.mark.parametrize("score", [pointing, mass_inside, localisation_auc])
def test_bad_maps_and_truths_are_refused(score):
    truth, maps = some_truth(), torch.zeros(6, 7, 7)
    refused = [
        ((maps[:5], truth), "as many"), ((maps[0], truth), "expected"), ((maps, truth.float()), "bool"),
        ((maps, truth[:, :0]), "expected|pixel"), ((maps + torch.nan, truth), "NaN"),
        ((maps, truth & False), "no pixel"), ((maps, truth | True), "every pixel")]
    for wrong, reason in refused:
        with pytest.raises(ValueError, match=reason): score(*wrong)


def test_twins_differ_nowhere_else(people, game):
    """What is not marked as changed differs by less than the level; far from the part it is equal, byte by byte."""
    difference = (game.faces[game.face].int() - game.twins.int()).abs().amax(1)
    assert difference[~game.changed].max() < LEVEL and (difference[game.changed] >= LEVEL).all()
    for part in ("brows", "mouth", "mole", "nose"):
        these = game.part == game.parts.index(part)
        if these.any(): assert difference[these, :20].max() == 0 or part == "brows"
        assert difference[these].flatten(1).amax(0).view(112, 112)[100:, :10].max() == 0


def test_pairs_are_those_that_were_drawn(people, game):
    assert len(game) == PEOPLE * 2 * len(TWIN_PARTS) and len(game.faces) == PEOPLE * 2
    k = 17
    number = int(game.twin[k])
    person = int(game.target[k])
    assert number == person + (1 + int(game.part[k])) * PEOPLE
    part = game.parts[game.part[k]]
    twins = {trait: value[number - person :][:PEOPLE] for trait, value in people.items()}
    drawing = draw_faces(twins, images=2, seed=4)
    assert torch.equal(drawing.images[game.face[k]], game.twins[k])
    assert game.region[k][drawing.parts[game.face[k]] == PARTS.index(part)].all()
    assert game[game.part == 1].part.unique().tolist() == [1]


def test_a_part_that_does_not_exist_is_refused(people):
    with pytest.raises(ValueError, match="no part is called 'tail'"): make_families(2, parts=("tail",))
    with pytest.raises(ValueError, match="no parts"): make_families(2, parts=())
    with pytest.raises(ValueError, match="times as many"): draw_game(people, parts=("nose", "ears"), images=1)


@pytest.mark.parametrize("name, options", [
    ("sdd", {}), ("gradcam", {}), ("saliency", {}), ("deeplift", {}), ("rise", {"masks": 6, "seed": 2}),
    ("occlusion", {"window": 56, "stride": 56}), ("scorecam", {}), ("lime", {"samples": 6})])
def test_every_method_explains_decisions(model, game, name, options):
    """As pair by pair; masks are seen once for all twins of a face."""
    some = game[game.visible & (game.part < 3)]
    maps = explain_decisions(model, some, name, **options)
    assert maps.shape == (len(some), 112, 112)
    decide = difference_model(model, some.target, some.twin)
    score = {"score": "logit"} if "score" in method_options(name) else {}
    for k in (0, len(some) // 2, len(some) - 1):
        image, twin = some.faces[some.face[k]][None], some.twin[k : k + 1, None]
        if name == "sdd": alone = attribute(model, image, target=int(some.target[k]), method=name, against=twin)
        else: alone = attribute(decide, image, target=k, method=name, **options | score)
        # single precision, alone and in company, which is rounded otherwise
        torch.testing.assert_close(maps[k], alone[0], rtol=1e-3, atol=1e-3 * float(alone.abs().max()))


def test_chance_is_what_a_flat_map_gets_also_on_a_narrow_network(game):
    some = game[game.visible]
    for size in ((7, 7), (7, 6)):
        scores = score_maps(some, {"flat": torch.zeros(len(some), *size)})
        assert scores.maps == ["chance", "flat"] and scores.people.equal(some.target)
        for score in LOCALISATION_SCORES:
            torch.testing.assert_close(scores.values[score, "flat"], scores.values[score, "chance"])


@pytest.mark.parametrize("head", ["pool", "own"])
@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_a_decision_is_a_logit_of_the_difference_model(model, game, head, classifier):
    torch.manual_seed(1)
    net = FaceRecognizer("ir_tiny", model.names, head=head, classifier=classifier).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pairs = difference_model(net, game.target, game.twin)
    logits = predict(net, game.faces)
    expected = logits[:, game.target] - logits[:, game.twin]
    close = {"rtol": 1e-3, "atol": 1e-4 * float(logits.abs().max())}
    torch.testing.assert_close(predict(pairs, game.faces), expected, **close)
    features = net.features(net.preprocess(game.faces))
    maps, constant = logit_maps(pairs.head, features, torch.arange(len(game)))
    torch.testing.assert_close(maps.mean((2, 3)) + constant, expected, **close)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_any_method_explains_a_decision(model, game):
    pairs = difference_model(model, game.target, game.twin)
    some = torch.tensor([0, 9, 30])
    for method in ("saliency", "guided_backprop", "deeplift", "layercam"):
        assert attribute(pairs, game.faces[game.face[some]], target=some, method=method).isfinite().all()


def test_rivals_begin_with_the_question():
    logits = torch.tensor([[5.0, 1, 9, 3, 7], [5.0, 1, 9, 3, 7]])
    person, twin = torch.tensor([3, 2]), torch.tensor([[1], [4]])
    assert compared_classes(logits, person, against=twin, top_k=4).tolist() == [[3, 1, 2, 4], [2, 4, 0, 3]]
    assert compared_classes(logits, person, top_k=3).tolist() == [[3, 2, 4], [2, 4, 0]]
    everybody = compared_classes(logits, person, against=twin, top_k=5)
    assert everybody.sort(1).values.tolist() == [list(range(5))] * 2
    assert compared_classes(logits, person, against=twin, top_k=1).tolist() == [[3, 1], [2, 4]]  # the question stays
    with pytest.raises(ValueError, match="top_k is 6"): compared_classes(logits, person, against=twin, top_k=6)


def test_the_table_knows_chance_and_one_person_has_no_interval(game):
    seen = game[game.visible]
    scores = score_maps(seen, {"truth": seen.changed.float(), "flat": torch.zeros(len(seen), 7, 7)})
    for score in LOCALISATION_SCORES:
        chance = scores.values[score, "chance"]
        torch.testing.assert_close(scores.values[score, "flat"], chance, check_dtype=False)
    rows = part_rows(seen, scores)
    found = {(row["map"], row["part"], row["measure"]): row for row in rows}
    best = found["truth", "all", "area"]
    assert best["value"] == best["ci_low"] == best["ci_high"] == 1
    assert best["people"] == PEOPLE and best["pairs"] == len(seen) and best["chance"] == 0.5
    nose = seen[seen.part == seen.parts.index("nose")]
    assert found["flat", "nose", "mass"]["pairs"] == len(nose)
    assert found["flat", "nose", "mass"]["chance"] == pytest.approx(float(nose.changed.float().mean()))
    text = parts_markdown(rows)
    assert text.startswith("| Map | Area | Pointing | Mass |") and "| truth | 1.000 [1.000, 1.000]" in text
    assert [line.split(" | ")[0] for line in text.splitlines()[2:]] == ["| truth", "| chance", "| flat"]  # best first
    alone = seen[seen.target == 0]
    rows = part_rows(alone, score_maps(alone, {"flat": torch.zeros(len(alone), 7, 7)}))
    assert all(row["ci_low"] != row["ci_low"] and row["value"] == row["value"] for row in rows)


def test_what_cannot_be_scored_is_refused(game):
    with pytest.raises(ValueError, match="one for each pair"): score_maps(game, {"few": torch.zeros(3, 7, 7)})
    with pytest.raises(ValueError, match="no score is called .beauty.; expected some of area, pointing, mass"):
        score_maps(game, {}, which=("beauty",))
    with pytest.raises(ValueError, match="truth is 'nose'"): score_maps(game, {}, truth="nose")


def test_twins_are_learnt_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/quick").mkdir(parents=True)
    parts = ("hair", "glasses")
    recipe = Recipe(epochs=40, learning_rate=0.05, step_size=30, batch_size=16, layers="head", augmentation="none")
    people = make_families(2, parts=parts, seed=1)
    options = {"images": 6, "recipe": recipe, "device": "cpu"}
    model = open_twins(people, run="quick", **options)
    game = draw_game(people, parts=parts, images=3, seed=9)
    assert decisions(model, game).float().mean() > 0.8
    written = (tmp_path / "runs/quick/twins.safetensors").stat().st_mtime_ns
    again = open_twins(people, run="quick", **options)
    assert (tmp_path / "runs/quick/twins.safetensors").stat().st_mtime_ns == written
    torch.testing.assert_close(predict(again, game.faces), predict(model, game.faces))
    with pytest.raises(ValueError, match="twins.safetensors was made from something else"):
        open_twins(make_families(2, parts=parts, seed=2), run="quick", **options)
    assert (tmp_path / "runs/quick/twins.safetensors").stat().st_mtime_ns == written
    assert len(draw_family_faces(people, images=2)) == 12


def test_flags_keep_to_the_rate_and_break_ties_by_the_seed():
    truth, flat = some_truth(4), torch.zeros(4, 7, 7)
    masks = top_at_false_alarm_rate(flat, truth, rates=(0.0, 0.01, 0.3, 1.0), seed=1)
    for rate, mask in zip((0.0, 0.01, 0.3), masks):
        alarms = (mask & ~truth).flatten(1).sum(1) / (~truth).flatten(1).sum(1)
        assert (alarms <= rate + 1e-9).all() and (alarms > rate - 0.001).all()
        assert abs(mask[truth].float().mean() - rate) < 0.03
    assert masks[3].all()
    again, other = (top_at_false_alarm_rate(flat, truth, rates=(0.0, 0.01, 0.3, 1.0), seed=seed) for seed in (1, 2))
    assert torch.equal(masks, again) and not torch.equal(masks, other)
    assert top_at_false_alarm_rate(truth.float(), truth, rates=(0.0,))[0].equal(truth)
    for wrong in ((flat[:2], truth), (flat + torch.nan, truth), (flat, truth & False)):
        with pytest.raises(ValueError): top_at_false_alarm_rate(*wrong)
    with pytest.raises(ValueError, match="rates"): top_at_false_alarm_rate(flat, truth, rates=(1.5,))


def test_the_truth_turns_every_probe_and_its_opposite_none(game):
    """A judge who looks at the changed pixels alone."""
    fair = game[game.visible]
    probes = fair.faces[fair.face]

    def near(images, index):
        changed = fair.changed[index]
        of_twin = (images == fair.twins[index]).all(1) & changed
        return of_twin.flatten(1).sum(1) * 2 > changed.flatten(1).sum(1)

    assert playable(probes, fair.twins, near).all()
    maps = {"truth": fair.changed.float(), "wrong": -fair.changed.float(), "flat": torch.zeros(len(fair), 7, 7)}
    played = inpainting_game(probes, fair.twins, fair.changed, maps, near, rates=(0.0, 0.3, 1.0), batch_size=7)
    assert played["truth"].turned.all() and (played["truth"].hits == 1).all()
    assert not played["wrong"].turned[:2].any() and (played["wrong"].hits[:2] == 0).all()
    flat = played["flat"]
    assert not flat.turned[0].any() and flat.turned[2].all() and abs(flat.hits[1].mean() - 0.3) < 0.05
    measured = measured_game(played, fair.target)
    assert measured.maps == list(maps) and measured.people.equal(fair.target)
    assert measured.values["turned at 30%", "flat"].equal(flat.turned[1].float())
    assert measured.values["flagged at 0%", "truth"].tolist() == [1] * len(fair) and measured.rows()[0]["value"] == 100
    with pytest.raises(ValueError, match="expected the same"):
        inpainting_game(probes, fair.twins[:1], fair.changed, {}, near)


def test_the_greater_of_two_logits_decides(model, game):
    everyone, right = torch.arange(len(game)), decisions(model, game)
    assert class_decision(model, game.target, game.twin)(game.twins, everyone).equal(right[1])
    assert class_decision(model, game.twin, game.target)(game.faces[game.face], everyone).equal(right[0])


def test_galleries_decide_and_their_maps_are_exact(double):
    model, images, people = double, bytes_of(6), torch.arange(6) % 2
    mates, others = (gallery(model, each, people)[people] for each in (images, images.flip(0)))
    torch.testing.assert_close(mates.norm(dim=1), torch.ones(6, dtype=torch.float64))
    maps, constants = gallery_maps(model, images, mates, others)
    cosines = torch.stack([(model.embed(images) * each).sum(1) for each in (mates, others)], 1)
    torch.testing.assert_close(maps.mean((2, 3)) + constants, cosines)
    assert gallery_decision(model, mates, others)(images, torch.arange(6)).equal(cosines[:, 1] > cosines[:, 0])


@pytest.mark.parametrize("name", REGIONS)
def test_painting_over_touches_nothing_else(name):
    mask = region_mask(name)
    assert 0.02 < mask.float().mean() < 0.1
    images = bytes_of(2)
    painted = paint_over(images, mask)
    assert torch.equal(painted[..., ~mask], images[..., ~mask]) and not torch.equal(painted, images)
    flat = torch.full((1, 3, 112, 112), 77, dtype=torch.uint8)
    assert torch.equal(paint_over(flat, mask), flat)


def test_regions_follow_the_landmarks_of_each_face():
    moved = torch.as_tensor(TEMPLATE) + torch.tensor([5, -3])
    for name in REGIONS:
        back = region_mask(name, moved).roll((3, -5), (0, 1))
        assert torch.equal(back[20:100, 10:100], region_mask(name)[20:100, 10:100])
    images, masks = bytes_of(2), torch.stack([region_mask("nose"), region_mask("nose", moved)])
    painted = paint_over(images, masks)
    for image, after, mask in zip(images, painted, masks):
        assert torch.equal(after[:, ~mask], image[:, ~mask])
        assert (after.float() - paint_over(image[None], mask)[0]).abs().max() <= 1
    with pytest.raises(ValueError, match="the nose of a face with the landmarks .* lie outside"):
        region_mask("nose", moved + 200)


def test_triplets_take_the_landmarks_that_are_found(double, drawn_sides):
    train, _, test = drawn_sides
    moved = torch.as_tensor(TEMPLATE) + torch.tensor([2, 4])
    def find(images): return moved.expand(len(images), 5, 2)
    triplets = paint_triplets(double, train, test, regions=("nose",), landmarks=find)
    assert (triplets.truth == region_mask("nose", moved)).all()
    plain = paint_triplets(double, train, test, regions=("nose",))
    assert not torch.equal(triplets.nonmates, plain.nonmates)


@pytest.mark.skipif(not ALIGNED.exists(), reason="no real faces beside the checkout: ../shared/real/facescrub12")
def test_landmarks_of_photographs_are_found_near_the_template():
    pytest.importorskip("mtcnnruntime")
    files = sorted(ALIGNED.glob("*/*.jpg"))[::140]
    points = detected_landmarks(torch.stack([pil_to_tensor(Image.open(file).convert("RGB")) for file in files]))
    distance = (points - torch.as_tensor(TEMPLATE)).norm(dim=2)
    assert points.shape == (len(files), 5, 2) and distance.median() < 6 and distance.max() < 20
    assert (distance > 0).any(1).float().mean() > 0.7


def test_where_no_face_is_found_the_template_serves_and_it_is_said(capsys):
    pytest.importorskip("mtcnnruntime")
    points = detected_landmarks(torch.full((2, 3, 112, 112), 128, dtype=torch.uint8))
    assert torch.equal(points, torch.as_tensor(TEMPLATE).expand(2, 5, 2))
    assert "no landmarks found in 2 of 2 faces" in capsys.readouterr().out


def test_unknown_regions_are_refused():
    with pytest.raises(ValueError, match="no region is called 'chin'"): region_mask("chin")
    for mask in (torch.zeros(112, 112, dtype=torch.bool), torch.ones(112, 112, dtype=torch.bool)):
        with pytest.raises(ValueError, match="no pixel, or every"):
            paint_over(torch.zeros(1, 3, 112, 112, dtype=torch.uint8), mask)


@pytest.fixture(scope="module")
def drawn_sides(): return split_faces(load_faces(people=3, images_per_person=6, seed=2))


def test_triplets_hold_every_probe_against_its_own_galleries(double, drawn_sides):
    train, _, test = drawn_sides
    triplets = paint_triplets(double, train, test, images=2, probes=4, regions=("mouth", "brows"))
    assert len(triplets) == 2 * len(test) == 6 and triplets.region.tolist() == [0] * 3 + [1] * 3
    assert triplets.galleries.shape[0] == 3 and len(triplets[torch.zeros(6, dtype=torch.bool)]) == 0
    one = torch.zeros(2, dtype=torch.long)
    for number, name in enumerate(("mouth", "brows")):
        these, mask = triplets[triplets.region == number], region_mask(name)
        assert these.probes.equal(test.images) and these.people.equal(test.labels)
        assert these.painted.equal(paint_over(test.images, mask)) and (these.truth == mask).all()
        for k, who in enumerate(these.people.tolist()):
            images = train.images[train.labels == who][:2]
            torch.testing.assert_close(these.mates[k], gallery(double, images, one)[0])
            torch.testing.assert_close(these.nonmates[k], gallery(double, paint_over(images, mask), one)[0])


def test_triplets_need_a_gallery_and_a_probe(double, drawn_sides):
    train, _, test = drawn_sides
    with pytest.raises(ValueError, match=f"{train.names[1]} has no image for the gallery"):
        paint_triplets(double, train[train.labels != 1], test)
    with pytest.raises(ValueError, match="no probes"): paint_triplets(double, train, test[:0])
    other = replace(test, names=test.names[::-1])
    with pytest.raises(ValueError, match="show other people"): paint_triplets(double, train, other)


def test_maps_of_several_galleries_are_those_of_each(double, drawn_sides):
    _, _, test = drawn_sides
    size, generator = double.embed(test.images).shape[1], torch.Generator().manual_seed(1)
    some = torch.randn(3, len(test), size, dtype=torch.float64, generator=generator)
    some = torch.nn.functional.normalize(some, dim=2)
    maps, constants = gallery_maps(double, test.images, *some)
    cosines = torch.stack([(double.embed(test.images) * each).sum(1) for each in some], 1)
    torch.testing.assert_close(maps.mean((2, 3)) + constants, cosines)
    torch.testing.assert_close(maps[:, :2], gallery_maps(double, test.images, *some[:2])[0])


def test_maps_of_a_narrow_network_lie_over_the_centre():
    truth = some_truth()
    heat = truth[:, :, 8:104].float()
    for score in (localisation_auc, mass_inside, pointing): assert (score(heat, truth) == 1).all()
    flags = top_at_false_alarm_rate(heat, truth, rates=(0.0,))[0]
    assert flags.shape == truth.shape and torch.equal(flags[:, :, 8:104], truth[:, :, 8:104])
    assert not flags[:, :, :8].any() and not flags[:, :, 104:].any()
    outside = torch.zeros(1, 112, 112, dtype=torch.bool).index_fill(2, torch.tensor([2]), True)
    with pytest.raises(ValueError, match="marks no pixel"): localisation_auc(heat[:1], outside)
