"""The maps of a pair add up to its cosine, and what holds no face is refused."""
import pytest
import torch
from test_heads import randomized
from test_model import REAL, needs_real_faces, real_faces

from sdd_face.model import FaceRecognizer, load_recognizer
from sdd_face.pairs import explain_pair, gallery_maps, plot_pairs
from sdd_face.sdd import sdd


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("arch", ["ir_tiny", "mobilefacenet", "mobilefacenet_96"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_the_means_of_both_maps_and_their_constants_are_the_cosine(arch, dtype, tolerance):
    model = randomized(arch, "pool", "linear", dtype)
    a, b = images(4), images(4, seed=1)
    pairs = explain_pair(model, a, b, gallery=images(6, seed=2))
    torch.testing.assert_close(pairs.cosine, (model.embed(a) * model.embed(b)).sum(1))
    for side in (pairs.a, pairs.b):
        assert (side.map.mean((1, 2)) + side.constant - pairs.cosine).abs().max() < tolerance


@needs_real_faces
@pytest.mark.parametrize("file, color", [("mobilefacenet_y1.npz", ""), ("mobilefacenet_068.ckpt", "rgb")])
def test_pairs_are_exact_on_real_weights_and_faces(file, color):
    faces, _ = real_faces(step=50)
    pairs = explain_pair(load_recognizer(REAL / "weights" / file, color=color), faces[:-1], faces[1:])
    for side in (pairs.a, pairs.b): assert (side.map.mean((1, 2)) + side.constant - pairs.cosine).abs().max() < 1e-5


def test_a_map_is_what_changes_when_a_place_is_taken_away():
    """Zero one place of the feature maps: the inner product falls by what the map says of it."""
    model = randomized("ir_tiny", "pool", "linear", torch.float64)
    a, b = images(1), images(1, seed=1)
    pair, features = explain_pair(model, a, b), model.features(model.preprocess(a))
    without = features.clone()
    without[:, :, 2, 5] = 0
    with torch.no_grad(): before, after = (model.backbone.output_layer(each) for each in (features, without))
    fall, length = ((before - after) * model.embed(b)).sum(), before.norm()
    torch.testing.assert_close(pair.a.map[0, 2, 5] / 49, fall / length)


def test_exchanging_the_images_exchanges_the_sides():
    model = randomized("ir_tiny", "pool", "linear", torch.float64)
    a, b = images(3), images(3, seed=1)
    one, other = explain_pair(model, a, b), explain_pair(model, b, a)
    torch.testing.assert_close(one.a.map, other.b.map)
    torch.testing.assert_close(one.b.constant, other.a.constant)


def test_sdd_compares_with_the_most_similar_of_the_gallery():
    model = randomized("ir_tiny", "pool", "linear", torch.float64)
    a, b, gallery = images(2), images(2, seed=1), images(9, seed=2)
    side = explain_pair(model, a, b, gallery, top_k=4).a
    cosines, order = model.similarity(a, gallery).sort(1, descending=True)
    assert torch.equal(side.rivals, order[:, :3])
    torch.testing.assert_close(side.rival_cosines, cosines[:, :3])
    maps = torch.stack([explain_pair(model, a[:1], each[None]).a.map[0] for each in [b[0], *gallery[order[0, :3]]]])
    torch.testing.assert_close(side.sdd.map[0], sdd(maps[None]).map[0])


def test_neither_the_model_nor_the_run_of_random_numbers_is_changed():
    model = randomized("ir_tiny", "pool", "linear", torch.float32)
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    explain_pair(model, images(1), images(1, seed=1), images(5, seed=2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_pairs_need_no_people_but_an_evaluation():
    model = FaceRecognizer("ir_tiny", []).eval()
    pair = explain_pair(model, images(1), images(1, seed=1))
    assert pair.a.sdd is None and pair.a.rivals.shape == (1, 0)
    assert len(plot_pairs(pair, images(1), images(1, seed=1)).axes) == 4
    with pytest.raises(ValueError, match="training mode"): explain_pair(model.train(), images(1), images(1))


def test_what_is_no_pair_of_faces_is_refused():
    model = FaceRecognizer("ir_tiny", []).eval()
    one, two = images(1), images(2)
    blank = torch.tensor([0, 128, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 112, 112)
    wrong = [
        ((two, blank), "image 0 of b is of one colour: there is no face in it"),
        ((one, one, torch.cat([images(4), blank[:1]])), "image 4 of the gallery is of one colour"),
        ((two, one), "2 images a and 1 images b"),
        ((one, one, two), "top_k is 5; expected 2 to 3"),
        ((one[..., :90], one), "expected .B, 3, 112, 112."),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message): explain_pair(model, *arguments)
    torch.testing.assert_close(explain_pair(model, one, one).cosine, torch.ones(1))


@pytest.mark.parametrize("arch, count", [("ir_tiny", 34), ("mobilefacenet_96", 3)])  # 32 go through at once
def test_maps_towards_embeddings_add_up_to_the_cosines(arch, count):
    model, shown = randomized(arch, "pool", "linear", torch.float64), images(count)
    towards = torch.nn.functional.normalize(torch.randn(3, count, model.backbone.embedding).double(), dim=2)
    maps, constants = gallery_maps(model, shown, *towards)
    assert maps.shape == (count, 3, *model.backbone.feature_shape[1:]) and not maps.requires_grad
    torch.testing.assert_close(maps.mean((2, 3)) + constants, torch.einsum("ne,sne->ns", model.embed(shown), towards))
    alone, _ = gallery_maps(model, shown[-2:], towards[2, -2:], towards[0, -2:])  # whatever else is asked for
    torch.testing.assert_close(alone, maps[-2:, [2, 0]])


def test_a_map_towards_the_other_image_is_the_pairs():
    model = randomized("ir_tiny", "pool", "linear", torch.float64)
    a, b = images(3), images(3, seed=1)
    maps, constants = gallery_maps(model, a, model.embed(b))
    side = explain_pair(model, a, b).a
    torch.testing.assert_close(maps[:, 0], side.map)
    torch.testing.assert_close(constants[:, 0], side.constant)
    towards = model.embed(b)
    model.backbone.train()
    with pytest.raises(ValueError, match="training mode"): gallery_maps(model, a, towards)
