"""What is above the threshold of the Inpainting Game, against its definition, one pixel after the other."""
import pytest
import torch
from torch.nn.functional import interpolate

from sdd_face.inpainting import top_at_false_alarm_rate

RATES = (0.0, 0.01, 0.05, 0.3, 1.0)


def step_by_step(maps: torch.Tensor, truth: torch.Tensor, seed: int) -> torch.Tensor:  # (R, N, H, W)
    """Shuffle the pixels by seed + i, sort them stably, and stop where the false alarms become too many."""
    heat = maps.double()
    if heat.shape != truth.shape: heat = interpolate(heat[:, None], truth.shape[1:], mode="bilinear")[:, 0]
    found = torch.zeros(len(RATES), *truth.shape, dtype=torch.bool)
    for i in range(len(maps)):
        outside = ~truth[i].flatten()
        shuffled = torch.randperm(len(outside), generator=torch.Generator().manual_seed(seed + i))
        order = shuffled[heat[i].flatten()[shuffled].argsort(descending=True, stable=True)]
        alarms = outside[order].cumsum(0)
        for rate, mask in zip(RATES, found[:, i]): mask.view(-1)[order[alarms <= rate * outside.sum()]] = True
    return found


@pytest.mark.parametrize("kind", ["random", "ties", "many ties", "constant", "as large as the image"])
@pytest.mark.parametrize("seed", [0, 7])
def test_the_same_pixels_as_step_by_step(kind, seed):
    chance = torch.Generator().manual_seed(1)
    maps = torch.randn(4, 7, 7, generator=chance)
    truth = torch.rand(4, 56, 56, generator=chance) < torch.tensor([0.02, 0.1, 0.5, 0.9])[:, None, None]
    if kind == "ties": maps = maps.round()
    if kind == "many ties": maps = maps.sign()
    if kind == "constant": maps = torch.full_like(maps, 0.3)
    if kind == "as large as the image": maps = torch.randint(0, 5, truth.shape, generator=chance).float()
    assert torch.equal(top_at_false_alarm_rate(maps, truth, rates=RATES, seed=seed), step_by_step(maps, truth, seed))


def test_a_narrow_network_is_scored_where_it_sees():
    chance = torch.Generator().manual_seed(2)
    maps = torch.randn(3, 7, 6, generator=chance).round()
    truth = torch.rand(3, 112, 112, generator=chance) < 0.1
    found = top_at_false_alarm_rate(maps, truth, rates=RATES)
    assert torch.equal(found[..., 8:104], step_by_step(maps, truth[..., 8:104], 0))
    assert not found[..., :8].any() and not found[..., 104:].any()
