"""Faces are changed as AdaFace changes them, by numbers that a seed decides."""
import conftest
import pytest
import torch

from sdd_face.augmentation import CHANCES, augment, in_a_box, in_fewer_pixels


@pytest.fixture
def noise() -> torch.Tensor: return conftest.noise(3)


def numbers(count: int, **given: float) -> torch.Tensor:
    """Make a table that changes nothing, but for the given columns."""
    table = torch.ones(count, CHANCES)
    for column, value in given.items(): table[:, int(column[1:])] = value
    return table


def test_no_chance_no_change(noise):
    assert torch.equal(augment(noise, numbers(len(noise))), noise)


def test_a_mirrored_face(noise):
    assert torch.equal(augment(noise, numbers(len(noise), u0=0.4)), noise.flip(3))


@pytest.mark.parametrize("area, aspect, shape", [(0.25, 0.5, (56, 56)), (0.25, 1.0, (48, 65)), (0.25, 0.0, (65, 48))])
def test_a_box_keeps_its_share_and_the_rest_is_black(noise, area, aspect, shape):
    bright = noise.clamp(min=1)
    table = numbers(len(noise), u1=0.1, u2=(area - 0.2) / 0.8, u3=aspect, u4=0.5, u5=0.5)
    changed = augment(bright, table)
    kept = (changed > 0).all(1)
    assert torch.equal(changed, bright * kept[:, None])
    rows, columns = kept.any(2).sum(1), kept.any(1).sum(1)
    assert (abs(rows - shape[0]) <= 1).all() and (abs(columns - shape[1]) <= 1).all()


def test_a_box_of_everything_and_one_that_is_too_wide():
    images, one = torch.ones(1, 3, 20, 20), torch.ones(1)
    assert in_a_box(images, one, one, torch.rand(1, 2)).sum() == images.sum()
    assert in_a_box(images, one, 4 * one, torch.zeros(1, 2))[0, 0].sum(1).bool().sum() == 10


def test_fewer_pixels_keep_the_mean_and_lose_detail():
    images = torch.rand(2, 3, 112, 112)
    coarse = in_fewer_pixels(images, torch.tensor([0.2, 1.0]))
    torch.testing.assert_close(coarse.mean((2, 3)), images.mean((2, 3)), rtol=0, atol=0.01)
    torch.testing.assert_close(coarse[1], images[1], rtol=0, atol=1e-5)
    assert coarse[0].var() < 0.1 * images[0].var()


def test_batch_and_order_do_not_matter(noise):
    many = noise[:1].expand(64, -1, -1, -1)
    table = torch.rand(64, CHANCES, generator=torch.Generator().manual_seed(3))
    whole, order = augment(many, table), torch.randperm(64)
    assert torch.equal(whole[order], augment(many, table[order]))
    assert whole.dtype == torch.uint8 and len(whole.flatten(1).unique(dim=0)) > 30


def test_shares_are_the_published_ones(noise):
    table = torch.rand(4000, CHANCES, generator=torch.Generator().manual_seed(4))
    small = noise[:1, :, :16, :16].clamp(1, 254).expand(len(table), -1, -1, -1)
    changed = augment(small, table)
    untouched = ((changed == small) | (changed == small.flip(3))).flatten(1).all(1).float().mean()
    assert abs(untouched - 0.8**3) < 0.04
    assert abs((changed == 0).all(1).flatten(1).any(1).float().mean() - 0.2) < 0.04
