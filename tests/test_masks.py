"""Masks that need no face: the top of a map, chance, windows."""
import pytest
import torch

from sdd_face.maps import highest_places
from sdd_face.masks import FIXED_OFFSET, random_masks, top_mask, window_masks

MAPS = torch.randn(4, 7, 7, generator=torch.Generator().manual_seed(0))


def test_the_top_of_a_map():
    mask = top_mask(MAPS, 0.2)
    assert mask.shape == (4, 112, 112) and mask.dtype == torch.bool and (mask.sum((1, 2)) == 2509).all()
    assert torch.equal(mask, top_mask(5 * MAPS - 3, 0.2))
    small = top_mask(MAPS, 0.2, size=(7, 7))
    assert torch.equal(small, highest_places(MAPS, 0.2)) and (small.sum((1, 2)) == 10).all()


def test_the_other_rules():
    threshold = top_mask(MAPS, 0.2, rule="threshold", size=(7, 7))
    assert torch.equal(threshold, MAPS >= 0.8 * MAPS.amax((1, 2), keepdim=True))
    dilated = top_mask(MAPS, 0.2, rule="dilated")
    whole = torch.repeat_interleave(torch.repeat_interleave(MAPS, 16, 1), 16, 2)  # averages of squares are the map
    assert torch.equal(top_mask(whole, 0.2, rule="dilated"), dilated)
    assert (dilated.sum((1, 2)) > 2509).all()


@pytest.mark.parametrize("options, message", [
    ({"cut": 0.0}, "cut is 0.0"), ({"cut": 1.0}, "cut is 1.0"), ({"rule": "best"}, "rule is 'best'; expected 'pixels'"),
    ({"heat": MAPS[0]}, r"the maps are \(7, 7\)"), ({"heat": MAPS / 0}, "map 0 holds NaN or infinity"),
    ({"cut": 1e-5}, "cut = 1e-05 with the rule 'pixels' makes a mask of nothing out of map 0; .* 12544 pixels"),
    ({"heat": torch.cat([MAPS, torch.ones(1, 7, 7)]), "rule": "threshold"}, "a mask of everything out of map 4")])
def test_what_makes_no_mask_is_refused(options, message):
    with pytest.raises(ValueError, match=message): top_mask(**{"heat": MAPS} | options)


@pytest.mark.parametrize("kind", ["rolled", "fixed_offset", "map", "pixels"])
def test_random_masks_are_as_large(kind):
    mask = top_mask(MAPS, 0.2)
    chance = [torch.Generator().manual_seed(1) for _ in range(2)]
    drawn, again = (random_masks(mask, kind=kind, draws=3, generator=each) for each in chance)
    assert drawn.shape == (3, 4, 112, 112) and torch.equal(drawn, again)
    assert (drawn.sum((2, 3)) == mask.sum((1, 2))).all() and not torch.equal(drawn[0], mask)
    assert random_masks(mask, kind=kind, draws=0).shape == (0, 4, 112, 112)
    if kind == "fixed_offset": assert torch.equal(drawn[2], mask.roll(FIXED_OFFSET, (1, 2)))
    else: assert not torch.equal(drawn[0], drawn[1])


def test_unknown_chance_is_refused():
    with pytest.raises(ValueError, match="random is 'luck'; expected 'rolled'"): random_masks(MAPS > 0, kind="luck")
    with pytest.raises(ValueError, match="draws is -1"): random_masks(MAPS > 0, draws=-1)


@pytest.mark.parametrize("size, window, stride, count", [
    ((112, 112), 32, 16, 36), ((112, 96), 32, 16, 30), ((112, 112), 50, 20, 25), ((112, 112), 112, 1, 1),
    ((7, 5), (3, 2), (2, 1), 12)])
def test_windows_cover_the_image_evenly(size, window, stride, count):
    masks = window_masks(size, window=window, stride=stride)
    height, width = window if isinstance(window, tuple) else (window, window)
    assert masks.shape == (count, *size) and masks.dtype == torch.bool and masks.any(0).all()
    assert (masks.sum((1, 2)) == height * width).all() and len(masks.flatten(1).unique(dim=0)) == count
    starts = masks.any(2).float().argmax(1).unique()
    assert starts[0] == 0 and starts[-1] == size[0] - height
    assert len(starts) < 2 or starts.diff().max() - starts.diff().min() <= 1


def test_windows_that_leave_gaps_are_refused():
    message = "window is 16 and stride is 20 for images of .* expected 1 <= stride <= window"
    with pytest.raises(ValueError, match=message):
        window_masks((112, 112), window=16, stride=20)
    with pytest.raises(ValueError, match="expected 1 <= stride"): window_masks((112, 96), window=100, stride=10)
