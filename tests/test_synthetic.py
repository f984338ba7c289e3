"""Drawn people: the same everywhere, with masks that fit, and twins that differ in one part."""
import pytest
import torch

from sdd_face.paint import PALETTES, PARTS
from sdd_face.synthetic import TRAITS, draw_faces, make_people, twin

TWINNED = [part for part in TRAITS if part]


def test_a_seed_names_the_same_people_on_every_machine():
    people = make_people(3, seed=0)
    assert people["face_width"].tolist() == pytest.approx([37.6093, 36.1578, 34.1232], abs=1e-3)
    assert people["hair_style"].tolist() == [5, 0, 0]


def test_more_people_begin_with_the_same_ones():
    few, many = make_people(5, seed=3), make_people(50, seed=3)
    assert all(torch.equal(value, many[trait][:5]) for trait, value in few.items())
    assert not torch.equal(make_people(5, seed=4)["face_width"], few["face_width"])


def test_the_pixels_are_the_same_everywhere_to_one_grey_level():
    """Double precision stands for another device: it differs from single precision by more than devices do."""
    people = make_people(6, seed=1)
    single = draw_faces(people, images=3, seed=2)
    double = draw_faces({trait: value.double() for trait, value in people.items()}, images=3, seed=2)
    assert (single.images.int() - double.images.int()).abs().max() <= 1
    assert torch.equal(single.images, draw_faces(people, images=3, seed=2, batch_size=7).images)
    assert single.images.float().mean().item() == pytest.approx(123.74, abs=0.05)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator on this machine")
def test_another_device_draws_the_same():
    people, device = make_people(6, seed=1), torch.accelerator.current_accelerator()
    here, there = draw_faces(people, images=3), draw_faces(people, images=3, device=device)
    assert (here.images.int() - there.images.cpu().int()).abs().max() <= 1


def test_every_pixel_belongs_to_one_part_and_parts_lie_where_they_should():
    drawing = draw_faces(make_people(40, seed=5), images=3, seed=6)
    assert drawing.images.shape == (120, 3, 112, 112) and drawing.images.dtype == torch.uint8
    assert drawing.people.tolist() == [i // 3 for i in range(120)]
    assert int(drawing.parts.max()) < len(PARTS)
    y, _ = torch.meshgrid(torch.arange(112.0), torch.arange(112.0), indexing="ij")
    masks = {part: drawing.parts == PARTS.index(part) for part in PARTS}
    height = {part: (y * mask).sum() / mask.sum() for part, mask in masks.items()}
    assert height["brows"] < height["eyes"] < height["nose"] < height["mouth"]
    for part in ("face", "eyes", "nose", "mouth", "brows"):
        assert (masks[part].sum((1, 2)) > 0).float().mean() > 0.95, part


def test_people_share_features():
    """No single trait names a person: among a hundred people, each value has close neighbours."""
    people = make_people(100, seed=0)
    for trait, value in people.items():
        gaps = (value[:, None] - value[None]).abs().fill_diagonal_(torch.inf).min(1).values
        span = float(value.max() - value.min())
        assert gaps.median() < 0.02 * span, trait


@pytest.mark.parametrize("part", TWINNED)
def test_a_twin_differs_in_one_part_and_there_visibly(part):
    people = make_people(12, seed=8)
    twins = twin(people, part)
    for trait, value in people.items():
        assert torch.equal(value, twins[trait]) == (trait not in TRAITS[part]), trait
    a, b = draw_faces(people, images=2, seed=9), draw_faces(twins, images=2, seed=9)
    difference = (a.images.float() - b.images.float()).square().sum(1)
    index = PARTS.index(part)
    mask = ((a.parts == index) | (b.parts == index)).float()[:, None]
    mask = torch.nn.functional.max_pool2d(mask, 7, stride=1, padding=3)[:, 0]
    inside = (difference * mask).sum((1, 2)) / difference.sum((1, 2)).clamp(min=1)
    visible = difference.sum((1, 2)) > 2000
    hidden = part in ("ears", "mole")  # ears may be under hair, a mole may move from none to none
    assert visible.float().mean() > (0.2 if hidden else 0.9)
    assert inside[visible].median() > 0.9


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="no part is called 'chin'"): twin(make_people(1), "chin")
    with pytest.raises(ValueError, match="expected 1 or more"): make_people(0)


def test_colors_stay_natural():
    """No hue outside warm skin, hair and muted backdrops: green or violet faces would be a bug."""
    drawing = draw_faces(make_people(30, seed=2), images=1, seed=3)
    skin = (drawing.parts == PARTS.index("face"))[:, None].expand_as(drawing.images)
    for image, where in zip(drawing.images.float(), skin):
        red, green, blue = image[where].view(3, -1).mean(1)
        assert red > green > blue
    assert all(0 <= level <= 255 for colors in PALETTES.values() for color in colors for level in color)
