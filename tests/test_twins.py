"""The twin game against known answers: truth scores 1, a map without an opinion gets chance, twins differ nowhere else."""
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from conftest import ROOT
from sdd_face.alignment import TEMPLATE
from sdd_face.cam import logit_maps
from sdd_face.data import load_faces, split_faces
from sdd_face.finetune import predict
from sdd_face.inpainting import REGIONS, class_decision, detected_landmarks, flagged, gallery, gallery_decision, gallery_maps, inpainting_game, paint_over, paint_triplets, playable, region_mask
from sdd_face.localisation import coarse_truth, localisation_auc, mass, pointing, widened
from sdd_face.methods import attribute, method_options
from sdd_face.model import FaceRecognizer
from sdd_face.paint import PARTS
from sdd_face.synthetic import draw_faces
from sdd_face.twins import LEVEL, SCORES, TWIN_PARTS, decisions, difference_model, draw_family_faces, draw_game, explain_decisions, make_families, prepare_twins, rivals, score_maps, score_rows, twins_markdown
from test_heads import randomised

PEOPLE, ALIGNED = 2, ROOT.parent / "shared/real/facescrub12/aligned"


@pytest.fixture(scope="module")
def people() -> dict[str, torch.Tensor]: return make_families(PEOPLE, seed=3)


@pytest.fixture(scope="module")
def game(people): return draw_game(people, images=2, seed=4)


@pytest.fixture(scope="module")
def model() -> FaceRecognizer:
    torch.manual_seed(0)
    return FaceRecognizer("ir_tiny", [f"p{i}" for i in range(PEOPLE * (1 + len(TWIN_PARTS)))]).eval()


def some_truth(count: int = 6, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.nn.functional.interpolate(torch.rand(count, 1, 14, 14, generator=random), (112, 112))[:, 0] > 0.8


@pytest.mark.parametrize("score", [pointing, mass, localisation_auc])
def test_the_truth_scores_one_and_its_opposite_zero(score):
    truth = some_truth()
    assert (score(truth.float(), truth) == 1).all()
    assert (score(-truth.float(), truth, **{"tolerance": 0} if score is pointing else {}) == 0).all()


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-30, 1e30, 0.1])
def test_a_constant_map_gets_exactly_chance(value):
    truth, flat = some_truth(), torch.full((6, 7, 7), value)
    torch.testing.assert_close(mass(flat, truth), truth.float().mean((1, 2)))
    torch.testing.assert_close(pointing(flat, truth, 5), widened(truth, 5).float().mean((1, 2)))
    assert (localisation_auc(flat, truth) == 0.5).all()


def test_random_maps_get_chance_on_average():
    truth, maps = some_truth(1).expand(400, -1, -1), torch.rand(400, 7, 7, generator=torch.Generator().manual_seed(0))
    assert abs(localisation_auc(maps, truth).mean() - 0.5) < 0.02
    assert abs(mass(maps, truth).mean() - truth[0].float().mean()) < 0.02


def test_shift_and_scale_change_nothing_and_order_is_all_the_area_needs():
    truth, maps = some_truth(), torch.randn(6, 7, 7, generator=torch.Generator().manual_seed(1))
    for score in (pointing, mass, localisation_auc):
        torch.testing.assert_close(score(maps * 100 - 7, truth), score(maps, truth), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(score(maps.double(), truth), score(maps, truth))
    full = torch.randn(6, 112, 112, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(localisation_auc(full.sinh(), truth), localisation_auc(full, truth))


def test_ties_do_not_depend_on_position():
    truth = torch.zeros(2, 8, 8, dtype=torch.bool)
    truth[0, 0, 0] = truth[1, 7, 7] = True
    maps = torch.zeros(2, 8, 8)
    maps[:, 0, 0] = maps[:, 7, 7] = 1   # two peaks, one of them right
    assert pointing(maps, truth, 0).tolist() == [0.5, 0.5]
    areas = localisation_auc(maps, truth)
    assert areas[0] == areas[1] == pytest.approx((62 + 0.5) / 63)


def test_the_area_is_that_of_sklearn():
    metrics = pytest.importorskip("sklearn.metrics")
    truth, maps = some_truth(), torch.randint(0, 9, (6, 112, 112), generator=torch.Generator().manual_seed(5)).float()
    for heat, inside, area in zip(maps, truth, localisation_auc(maps, truth)):
        assert metrics.roc_auc_score(inside.flatten().numpy(), heat.flatten().numpy()) == pytest.approx(area.item(), abs=1e-6)


def test_the_tolerance_is_a_distance():
    truth = torch.zeros(1, 41, 41, dtype=torch.bool)
    truth[0, 20, 20] = True
    assert widened(truth, 3).sum() == sum(x * x + y * y <= 9 for x in range(-3, 4) for y in range(-3, 4))
    with pytest.raises(ValueError, match="tolerance is -1"): widened(truth, -1)


def test_a_finer_map_has_a_higher_ceiling(game):
    seen = game[game.visible]
    scores = [localisation_auc(coarse_truth(seen.changed, (n, n)), seen.changed).mean() for n in (7, 14, 112)]
    assert scores[0] < scores[1] < scores[2] == 1


@pytest.mark.parametrize("score", [pointing, mass, localisation_auc])
def test_bad_maps_and_truths_are_refused(score):
    truth, maps = some_truth(), torch.zeros(6, 7, 7)
    for wrong, reason in (((maps[:5], truth), "as many"), ((maps[0], truth), "expected"), ((maps, truth.float()), "bool"), ((maps, truth[:, :0]), "expected|pixel"),
                          ((maps + torch.nan, truth), "NaN"), ((maps, truth & False), "no pixel"), ((maps, truth | True), "every pixel")):
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
    assert number == int(game.own[k]) + (1 + int(game.part[k])) * PEOPLE
    part = game.parts[game.part[k]]
    drawing = draw_faces({trait: value[number - int(game.own[k]) :][:PEOPLE] for trait, value in people.items()}, 2, seed=4)
    assert torch.equal(drawing.images[game.face[k]], game.twins[k])
    assert game.region[k][drawing.parts[game.face[k]] == PARTS.index(part)].all()
    assert game[game.part == 1].part.unique().tolist() == [1]


def test_a_part_that_does_not_exist_is_refused(people):
    with pytest.raises(ValueError, match="no part is called 'tail'"): make_families(2, ("tail",))
    with pytest.raises(ValueError, match="no parts"): make_families(2, ())
    with pytest.raises(ValueError, match="times as many"): draw_game(people, ("nose", "ears"), 1)


@pytest.mark.parametrize("name, options", [("sdd", {}), ("gradcam", {}), ("saliency", {}), ("deeplift", {}), ("rise", {"masks": 6, "seed": 2}), ("occlusion", {"window": 56, "stride": 56}), ("scorecam", {}), ("lime", {"samples": 6})])
def test_every_method_explains_decisions(model, game, name, options):
    """As pair by pair; masks are seen once for all twins of a face."""
    some = game[game.visible & (game.part < 3)]
    maps = explain_decisions(model, some, name, **options)
    assert maps.shape == (len(some), 112, 112)
    decide = difference_model(model, some.own, some.twin)
    score = {"score": "logit"} if "score" in method_options(name) else {}
    for k in (0, len(some) // 2, len(some) - 1):
        image = some.faces[some.face[k]][None]
        alone = attribute(model, image, int(some.own[k]), name, against=some.twin[k : k + 1, None]) if name == "sdd" else attribute(decide, image, k, name, **options | score)
        torch.testing.assert_close(maps[k], alone[0], rtol=1e-3, atol=1e-4 * float(alone.abs().max()))


def test_chance_is_what_a_flat_map_gets_also_on_a_narrow_network(game):
    some = game[game.visible]
    for size in ((7, 7), (7, 6)):
        scores = score_maps(some, {"flat": torch.zeros(len(some), *size)})
        for score in SCORES: torch.testing.assert_close(scores["flat", score], scores["chance", score])


def test_a_decision_is_a_logit_of_the_difference_model(model, game):
    for classifier in ("linear", "cosine"):
        for head in ("pool", "own"):
            torch.manual_seed(1)
            net = FaceRecognizer("ir_tiny", model.names, head=head, classifier=classifier).eval()
            before = {name: value.clone() for name, value in net.state_dict().items()}
            pairs = difference_model(net, game.own, game.twin)
            logits = predict(net, game.faces)
            expected = logits[:, game.own] - logits[:, game.twin]
            torch.testing.assert_close(predict(pairs, game.faces), expected, rtol=1e-3, atol=1e-4 * float(logits.abs().max()))
            features = net.features(net.preprocess(game.faces))
            maps, constant = logit_maps(pairs.head, features, torch.arange(len(game)))
            torch.testing.assert_close(maps.mean((2, 3)) + constant, expected, rtol=1e-3, atol=1e-4 * float(logits.abs().max()))
            assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_any_method_explains_a_decision(model, game):
    pairs = difference_model(model, game.own, game.twin)
    some = torch.tensor([0, 9, 30])
    for method in ("saliency", "guided_backprop", "deeplift", "layercam"):
        assert attribute(pairs, game.faces[game.face[some]], some, method).isfinite().all()


def test_rivals_begin_with_the_question():
    logits = torch.tensor([[5.0, 1, 9, 3, 7], [5.0, 1, 9, 3, 7]])
    own, twin = torch.tensor([3, 2]), torch.tensor([1, 4])
    assert rivals(logits, own, twin, 4).tolist() == [[3, 1, 2, 4], [2, 4, 0, 3]]
    assert rivals(logits, own, None, 3).tolist() == [[3, 2, 4], [2, 4, 0]]
    assert rivals(logits, own, twin, 5).sort(1).values.tolist() == [list(range(5))] * 2
    for count in (1, 6):
        with pytest.raises(ValueError, match=f"count is {count}"): rivals(logits, own, twin, count)


def test_the_table_knows_chance_and_one_person_has_no_interval(game):
    seen = game[game.visible]
    scores = score_maps(seen, {"truth": seen.changed.float(), "flat": torch.zeros(len(seen), 7, 7)})
    for score in SCORES: torch.testing.assert_close(scores["flat", score], scores["chance", score], check_dtype=False)
    rows = score_rows(seen, scores)
    best = next(row for row in rows if row["map"] == "truth" and row["part"] == "all" and row["score"] == "area")
    assert best["value"] == best["ci_low"] == best["ci_high"] == 1 and best["people"] == PEOPLE and best["pairs"] == len(seen)
    assert "| truth | 1.000 [1.000, 1.000]" in twins_markdown(rows, "")
    alone = seen[seen.own == 0]
    rows = score_rows(alone, score_maps(alone, {"flat": torch.zeros(len(alone), 7, 7)}))
    assert all(row["ci_low"] != row["ci_low"] for row in rows) and all(row["value"] == row["value"] for row in rows)
    with pytest.raises(ValueError, match="one for each pair"): score_maps(seen, {"few": torch.zeros(3, 7, 7)})
    with pytest.raises(ValueError, match="no score is called .beauty."): score_maps(seen, {}, which=("beauty",))
    with pytest.raises(ValueError, match="truth is 'nose'"): score_maps(seen, {}, truth="nose")


def test_twins_are_learnt_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    people = make_families(2, ("hair", "glasses"), seed=1)
    options = {"images": 6, "recipe": {"epochs": 40, "learning_rate": 0.05, "step_size": 30, "gamma": 0.1, "batch_size": 16, "layers": "head"}}
    model = prepare_twins(people, "try", device="cpu", **options)
    game = draw_game(people, ("hair", "glasses"), 3, seed=9)
    assert decisions(model, game).float().mean() > 0.8
    written = (tmp_path / "runs/try/twins.safetensors").stat().st_mtime_ns
    again = prepare_twins(people, "try", device="cpu", **options)
    assert (tmp_path / "runs/try/twins.safetensors").stat().st_mtime_ns == written
    torch.testing.assert_close(predict(again, game.faces), predict(model, game.faces))
    prepare_twins(make_families(2, ("hair", "glasses"), seed=2), "try", device="cpu", **options)
    assert (tmp_path / "runs/try/twins.safetensors").stat().st_mtime_ns != written
    assert len(draw_family_faces(people, 2)) == 12


def test_flags_keep_to_the_rate_and_break_ties_by_the_seed():
    truth, flat = some_truth(4), torch.zeros(4, 7, 7)
    masks = flagged(flat, truth, (0.0, 0.01, 0.3, 1.0), seed=1)
    for rate, mask in zip((0.0, 0.01, 0.3), masks):
        alarms = (mask & ~truth).flatten(1).sum(1) / (~truth).flatten(1).sum(1)
        assert (alarms <= rate + 1e-9).all() and (alarms > rate - 0.001).all()
        assert abs(mask[truth].float().mean() - rate) < 0.03
    assert masks[3].all()
    assert torch.equal(masks, flagged(flat, truth, (0.0, 0.01, 0.3, 1.0), seed=1)) and not torch.equal(masks, flagged(flat, truth, (0.0, 0.01, 0.3, 1.0), seed=2))
    assert flagged(truth.float(), truth, (0.0,))[0].equal(truth)
    for wrong in ((flat[:2], truth), (flat + torch.nan, truth), (flat, truth & False)):
        with pytest.raises(ValueError): flagged(*wrong)
    with pytest.raises(ValueError, match="rates"): flagged(flat, truth, (1.5,))


def test_the_truth_turns_every_probe_and_its_opposite_none(game):
    """A judge who looks at the changed pixels alone."""
    fair = game[game.visible]
    probes, near = fair.faces[fair.face], lambda images, index: ((images == fair.twins[index]).all(1) & fair.changed[index]).flatten(1).sum(1) * 2 > fair.changed[index].flatten(1).sum(1)
    assert playable(probes, fair.twins, near).all()
    maps = {"truth": fair.changed.float(), "wrong": -fair.changed.float(), "flat": torch.zeros(len(fair), 7, 7)}
    played = inpainting_game(probes, fair.twins, fair.changed, maps, near, rates=(0.0, 0.3, 1.0), batch_size=7)
    assert played["truth"].turned.all() and (played["truth"].hits == 1).all()
    assert not played["wrong"].turned[:2].any() and (played["wrong"].hits[:2] == 0).all()
    assert not played["flat"].turned[0].any() and played["flat"].turned[2].all() and abs(played["flat"].hits[1].mean() - 0.3) < 0.05
    with pytest.raises(ValueError, match="expected the same"): inpainting_game(probes, fair.twins[:1], fair.changed, {}, near)


def test_the_greater_of_two_logits_decides(model, game):
    wins = class_decision(model, game.own, game.twin)(game.twins, torch.arange(len(game)))
    assert wins.equal(decisions(model, game)[1])
    assert class_decision(model, game.twin, game.own)(game.faces[game.face], torch.arange(len(game))).equal(decisions(model, game)[0])


def test_galleries_decide_and_their_maps_are_exact():
    model = randomised("ir_tiny", "pool", "linear", torch.float64)
    images = torch.randint(0, 256, (6, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 2
    mates, others = (gallery(model, each, labels)[labels] for each in (images, images.flip(0)))
    torch.testing.assert_close(mates.norm(dim=1), torch.ones(6, dtype=torch.float64))
    maps, constants = gallery_maps(model, images, mates, others)
    cosines = torch.stack([(model.embed(images) * each).sum(1) for each in (mates, others)], 1)
    torch.testing.assert_close(maps.mean((2, 3)) + constants, cosines)
    assert gallery_decision(model, mates, others)(images, torch.arange(6)).equal(cosines[:, 1] > cosines[:, 0])


@pytest.mark.parametrize("name", REGIONS)
def test_painting_over_touches_nothing_else(name):
    mask = region_mask(name)
    assert 0.02 < mask.float().mean() < 0.1
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    painted = paint_over(images, mask)
    assert torch.equal(painted[..., ~mask], images[..., ~mask]) and not torch.equal(painted, images)
    flat = torch.full((1, 3, 112, 112), 77, dtype=torch.uint8)
    assert torch.equal(paint_over(flat, mask), flat)


def test_regions_follow_the_landmarks_of_each_face():
    moved = torch.as_tensor(TEMPLATE) + torch.tensor([5, -3])
    for name in REGIONS: assert torch.equal(region_mask(name, moved).roll((3, -5), (0, 1))[20:100, 10:100], region_mask(name)[20:100, 10:100])
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    masks = torch.stack([region_mask("nose"), region_mask("nose", moved)])
    painted = paint_over(images, masks)
    for k in range(2): assert torch.equal(painted[k, :, ~masks[k]], images[k, :, ~masks[k]]) and (painted[k].float() - paint_over(images[k : k + 1], masks[k])[0]).abs().max() <= 1
    with pytest.raises(ValueError, match="the nose of a face with the landmarks .* lie outside"): region_mask("nose", moved + 200)


def test_triplets_take_the_landmarks_that_are_found(drawn_sides):
    model, (train, _, test) = randomised("ir_tiny", "pool", "linear", torch.float64), drawn_sides
    moved = torch.as_tensor(TEMPLATE) + torch.tensor([2, 4])
    triplets = paint_triplets(model, train, test, regions=("nose",), landmarks=lambda images: moved.expand(len(images), 5, 2))
    assert (triplets.truth == region_mask("nose", moved)).all() and not torch.equal(triplets.nonmates, paint_triplets(model, train, test, regions=("nose",)).nonmates)


@pytest.mark.skipif(not ALIGNED.exists(), reason="no real faces beside the checkout: ../shared/real/facescrub12")
def test_landmarks_of_photographs_are_found_near_the_template():
    pytest.importorskip("mtcnnruntime")
    files = sorted(ALIGNED.glob("*/*.jpg"))[::140]
    points = detected_landmarks(torch.stack([pil_to_tensor(Image.open(file).convert("RGB")) for file in files]))
    distance = (points - torch.as_tensor(TEMPLATE)).norm(dim=2)
    assert points.shape == (len(files), 5, 2) and distance.median() < 6 and distance.max() < 20 and (distance > 0).any(1).float().mean() > 0.7


def test_where_no_face_is_found_the_template_serves_and_it_is_said(capsys):
    pytest.importorskip("mtcnnruntime")
    points = detected_landmarks(torch.full((2, 3, 112, 112), 128, dtype=torch.uint8))
    assert torch.equal(points, torch.as_tensor(TEMPLATE).expand(2, 5, 2)) and "no landmarks found in 2 of 2 faces" in capsys.readouterr().out


def test_unknown_regions_are_refused():
    with pytest.raises(ValueError, match="no region is called 'chin'"): region_mask("chin")
    for mask in (torch.zeros(112, 112, dtype=torch.bool), torch.ones(112, 112, dtype=torch.bool)):
        with pytest.raises(ValueError, match="no pixel, or every"): paint_over(torch.zeros(1, 3, 112, 112, dtype=torch.uint8), mask)


@pytest.fixture(scope="module")
def drawn_sides(): return split_faces(load_faces(people=3, images_per_person=6, seed=2))


def test_triplets_hold_every_probe_against_its_own_galleries(drawn_sides):
    model = randomised("ir_tiny", "pool", "linear", torch.float64)
    train, _, test = drawn_sides
    triplets = paint_triplets(model, train, test, images=2, probes=4, regions=("mouth", "brows"))
    assert len(triplets) == 2 * len(test) == 6 and triplets.region.tolist() == [0] * 3 + [1] * 3 and triplets.galleries.shape[0] == 3
    for number, name in enumerate(("mouth", "brows")):
        these, mask = triplets[triplets.region == number], region_mask(name)
        assert these.probes.equal(test.images) and these.people.equal(test.labels) and these.painted.equal(paint_over(test.images, mask)) and (these.truth == mask).all()
        for k, who in enumerate(these.people.tolist()):
            images = train.images[train.labels == who][:2]
            torch.testing.assert_close(these.mates[k], gallery(model, images, torch.zeros(2, dtype=torch.long))[0])
            torch.testing.assert_close(these.nonmates[k], gallery(model, paint_over(images, mask), torch.zeros(2, dtype=torch.long))[0])
    assert len(triplets[torch.zeros(6, dtype=torch.bool)]) == 0


def test_triplets_need_a_gallery_and_a_probe(drawn_sides):
    model, (train, _, test) = randomised("ir_tiny", "pool", "linear", torch.float64), drawn_sides
    with pytest.raises(ValueError, match=f"{train.names[1]} has no image for the gallery"): paint_triplets(model, train[train.labels != 1], test)
    with pytest.raises(ValueError, match="no probes"): paint_triplets(model, train, test[:0])
    with pytest.raises(ValueError, match="show other people"): paint_triplets(model, train, replace(test, names=test.names[::-1]))


def test_maps_of_several_galleries_are_those_of_each(drawn_sides):
    model, (_, _, test) = randomised("ir_tiny", "pool", "linear", torch.float64), drawn_sides
    some = torch.nn.functional.normalize(torch.randn(3, len(test), model.embed(test.images).shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=2)
    maps, constants = gallery_maps(model, test.images, *some)
    torch.testing.assert_close(maps.mean((2, 3)) + constants, torch.stack([(model.embed(test.images) * each).sum(1) for each in some], 1))
    torch.testing.assert_close(maps[:, :2], gallery_maps(model, test.images, *some[:2])[0])


def test_maps_of_a_narrow_network_lie_over_the_centre():
    truth = some_truth()
    heat = truth[:, :, 8:104].float()
    assert (localisation_auc(heat, truth) == 1).all() and (mass(heat, truth) == 1).all() and (pointing(heat, truth) == 1).all()
    flags = flagged(heat, truth, (0.0,))[0]
    assert flags.shape == truth.shape and torch.equal(flags[:, :, 8:104], truth[:, :, 8:104]) and not flags[:, :, :8].any() and not flags[:, :, 104:].any()
    outside = torch.zeros(1, 112, 112, dtype=torch.bool).index_fill(2, torch.tensor([2]), True)
    with pytest.raises(ValueError, match="marks no pixel"): localisation_auc(heat[:1], outside)
