"""Arithmetic on maps: known answers, ties, and what does not fit."""
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from sdd_face.maps import (
    centred_map,
    correlation,
    highest_places,
    highlighted_share,
    pixel_ranks,
    rank_correlation,
    read_maps,
    require_finite,
    resized,
    rolled,
    seen_maps,
    standardized,
    unit_range,
    visible_window,
)


def some_maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(112, 112), (112, 96), (10, 9), (3, 3)])
def test_resizing_stays_within_the_values(size):
    maps = some_maps(2, 3, 7, 7)
    large = resized(maps, size)
    assert large.shape == (2, 3, *size)
    assert (large.amax((2, 3)) <= maps.amax((2, 3))).all() and (large.amin((2, 3)) >= maps.amin((2, 3))).all()
    for value in (0.1, 1 / 3, 1e-30, 7e20):
        assert resized(torch.full((7, 6), value), size).unique().tolist() == [torch.tensor(value).item()]


def test_maps_of_the_right_size_are_left_alone():
    maps = some_maps(2, 7, 7)
    assert resized(maps, (7, 7)) is maps
    torch.testing.assert_close(resized(maps, (14, 14))[1], resized(maps[1], (14, 14)))


def test_unit_range_and_standardized():
    maps = some_maps(4, 7, 7) * 30 - 5
    unit, plain = unit_range(maps), standardized(maps)
    assert unit.amin((1, 2)).tolist() == [0] * 4 and unit.amax((1, 2)).tolist() == [1] * 4
    torch.testing.assert_close(plain.mean((1, 2)), torch.zeros(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(plain.std((1, 2), correction=0), torch.ones(4))
    for each in (unit, plain): assert torch.equal(each.flatten(1).argsort(1), maps.flatten(1).argsort(1))
    for constant in (torch.zeros(7, 7), torch.full((7, 7), 0.1), torch.full((7, 7), -3e8)):
        assert not unit_range(constant).any() and not standardized(constant).any()
    broken = maps.clone()
    broken[0, 0, 0] = torch.nan
    assert standardized(broken)[0].isnan().all() and standardized(broken)[1:].isfinite().all()


def test_highlighted_share_of_known_maps():
    ramp = torch.linspace(0, 1, 112).expand(112, 112)
    assert highlighted_share(ramp[None]).item() == pytest.approx(0.5, abs=0.01)
    spot = torch.zeros(2, 3, 112, 112)
    spot[..., :28, :28] = 5
    torch.testing.assert_close(highlighted_share(spot), torch.full((2, 3), 1 / 16))
    assert highlighted_share(-7 * ramp + 3) == highlighted_share(ramp)


def test_pixel_ranks_are_a_permutation_in_the_order_of_the_map():
    maps = some_maps(3, 20, 11)
    ranks = pixel_ranks(maps)
    assert ranks.dtype == torch.int32 and ranks.shape == maps.shape
    for heat, order in zip(maps.flatten(1), ranks.flatten(1).long()):
        assert order.sort().values.tolist() == list(range(220))
        assert (heat[order.argsort()].diff() < 0).all()


def test_equal_pixels_are_ranked_by_chance():
    flat = torch.zeros(2, 40, 40)
    ranks = pixel_ranks(flat, seed=3)
    assert torch.equal(ranks, pixel_ranks(flat, seed=3)) and not torch.equal(ranks, pixel_ranks(flat, seed=4))
    assert not torch.equal(ranks[0], ranks[1]) and torch.equal(pixel_ranks(flat[:1], seed=4)[0], ranks[1])
    assert abs(ranks[:, :20].float().mean() - 799.5) < 40, "the upper half comes neither first nor last"
    steps = some_maps(2, 30, 30).round()
    ranks = pixel_ranks(steps).flatten(1).long()
    assert (steps.flatten(1).gather(1, ranks.argsort(1)).diff(dim=1) <= 0).all()


@pytest.mark.parametrize("wrong, message", [
    (torch.full((2, 4, 4), torch.nan), "map 0 holds NaN or infinity"), (torch.zeros(4, 4), r"the maps are \(4, 4\)"),
    (torch.stack([torch.zeros(4, 4), torch.full((4, 4), torch.inf)]), "map 1 holds NaN or infinity")])
def test_maps_without_an_order_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message): pixel_ranks(wrong)


def test_the_first_broken_map_is_named():
    maps = torch.zeros(5, 3, 3)
    require_finite(maps)
    maps[3, 1, 1] = maps[4, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="map 3 holds NaN or infinity; expected finite numbers"): require_finite(maps)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.5, 1.0])
def test_highest_places_are_so_many_and_the_highest(share):
    for maps in (some_maps(3, 15, 14), some_maps(3, 15, 14).round(), torch.zeros(3, 15, 14)):
        chosen = highest_places(maps, share)
        assert (chosen.sum((1, 2)) == round(share * 210)).all()
        for heat, mask in zip(maps, chosen):
            if mask.any() and not mask.all(): assert heat[mask].min() >= heat[~mask].max()


def test_chance_decides_among_equal_places():
    flat = torch.zeros(2, 40, 40)
    chosen = highest_places(flat, 0.5, seed=1)
    assert torch.equal(chosen, highest_places(flat, 0.5, seed=1)) and not torch.equal(chosen[0], chosen[1])
    assert torch.equal(highest_places(flat[:1], 0.5, seed=2)[0], chosen[1])
    assert abs(chosen[:, :20].float().mean() - 0.5) < 0.1


@pytest.mark.parametrize("ours, theirs", [(correlation, pearsonr), (rank_correlation, spearmanr)])
def test_correlations_are_scipys(ours, theirs):
    a, b = some_maps(5, 7, 6), some_maps(5, 7, 6, seed=1).round()
    expected = [theirs(x.flatten().double(), y.flatten().double()).statistic for x, y in zip(a, b)]
    torch.testing.assert_close(ours(a, b), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(ours(a, a), torch.ones(5, dtype=torch.float64))
    assert ours(a, torch.zeros_like(a)).isnan().all()
    with pytest.raises(ValueError, match=r"expected \(N, h, w\) twice"): ours(a, b[:4])
    with pytest.raises(ValueError, match=r"expected \(N, h, w\) twice"): ours(a[0], b[0])
    with pytest.raises(ValueError, match="holds NaN"): ours(a, b / 0)


def test_rolled_maps_are_rolled():
    maps, chance = some_maps(3, 8, 6), torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(2))
    found = rolled(maps, chance)
    assert found.shape == (3, 4, 8, 6)
    for i in range(3):
        for j in range(4):
            down, right = int(chance[i, j, 0] * 8), int(chance[i, j, 1] * 6)
            assert torch.equal(found[i, j], maps[i].roll((down, right), (0, 1)))


@pytest.mark.parametrize("size", [(112, 112), (112, 96), (7, 7), (4, 9)])
def test_the_centred_map_falls_from_the_centre(size):
    heat = centred_map(size)
    assert heat.shape == size and torch.equal(heat, heat.flip(0)) and torch.equal(heat, heat.flip(1))
    assert heat.argmin() == 0 and heat[size[0] // 2, size[1] // 2] == heat.max()


@pytest.mark.parametrize("size, maps, window", [
    ((112, 112), (7, 7), (0, 112, 0, 112)), ((112, 112), (7, 6), (0, 112, 8, 104)),
    ((112, 96), (7, 6), (0, 112, 0, 96)), ((112, 112), (28, 24), (0, 112, 8, 104)),
    ((112, 112), (6, 7), (8, 104, 0, 112))])
def test_the_visible_window(size, maps, window):
    rows, columns = visible_window(size, maps)
    assert (rows.start, rows.stop, columns.start, columns.stop) == window


def test_maps_of_the_whole_face_are_cut_to_what_is_seen():
    whole = some_maps(2, 112, 112)
    assert torch.equal(seen_maps(whole, (112, 96)), whole[..., 8:104])
    assert torch.equal(seen_maps(whole, (112, 112)), whole)
    for shape in ((7, 6), (28, 24), (112, 96)): assert seen_maps(torch.zeros(shape), (112, 96)).shape == shape
    message = "the prior is 7 x 7, another shape than the images of 112 x 96; expected 7 x 6 or a multiple"
    with pytest.raises(ValueError, match=message): seen_maps(torch.zeros(7, 7), (112, 96), name="the prior")


def test_maps_are_read_however_they_are_given():
    maps = some_maps(3, 5, 28, 28)
    assert torch.equal(read_maps(maps, 3, (112, 112)), maps)
    assert torch.equal(read_maps(maps[:, 0], 3, (112, 112)), maps[:, :1])
    assert torch.equal(read_maps(maps[0, 0], 3, (112, 112)), maps[:1, :1])
    assert read_maps(torch.zeros(3, 112, 112), 3, (112, 96)).shape == (3, 1, 112, 96)


@pytest.mark.parametrize("wrong, message", [
    ([[1.0]], "the map is of the type list; expected a Tensor"),
    (torch.zeros(2, 7, 7), r"the map is \(2, 7, 7\); expected \(3, h, w\) or \(3, draws, h, w\) for these 3 faces, or"),
    (torch.zeros(7), "for these 3 faces"), (torch.zeros(3, 0, 7, 7), "for these 3 faces"),
    (torch.zeros(3, 1, 1, 7, 7), "for these 3 faces"), (torch.full((7, 7), torch.nan), "the map holds NaN or infinity"),
    (torch.zeros(3, 7, 6), "another shape than the images")])
def test_what_is_no_map_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message): read_maps(wrong, 3, (112, 112))
