"""The search: its cost, what it finds when the answer is known, and what it refuses."""
import pytest
import torch

from sdd_face.maps import standardized
from sdd_face.model import FaceRecognizer
from sdd_face.search import (
    Proposals,
    best_of_proposals,
    search_windows,
    searched_map,
    smooth_fit,
    smooth_variations,
    window_evidence,
)

CLASSES = torch.tensor([1, 0, 2])


@pytest.fixture(scope="module")
def model() -> FaceRecognizer:
    torch.manual_seed(0)
    return FaceRecognizer("ir_tiny", [f"p{i}" for i in range(4)]).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class OnePlace(FaceRecognizer):
    "A recogniser whose first class is the brightness of one square; it counts what it is asked."
    asked = 0

    def forward(self, x):
        self.asked += len(x)
        bright = x[:, :, 40:56, 64:80].mean((1, 2, 3)) * 4
        return torch.stack([bright, -bright, -bright], 1)


@pytest.fixture
def one_place() -> FaceRecognizer:
    return OnePlace("ir_tiny", ["a", "b", "c"]).eval()


def test_sixty_passes_find_the_one_place(one_place):
    images = torch.full((2, 3, 112, 112), 250, dtype=torch.uint8)
    found = searched_map(one_place, images)
    assert one_place.asked == 2 * 60 and found.shape == (2, 28, 28)
    truth = torch.zeros(28, 28, dtype=torch.bool)
    truth[10:14, 16:20] = True
    assert truth.flatten()[found.flatten(1).argmax(1)].all()
    assert found[:, truth].mean() > found[:, ~truth].mean() + 2


def test_windows_are_whole_and_few():
    masks = search_windows((112, 112))
    area = masks.sum((1, 2))
    assert len(masks) == 41 and (area == 48 * 48).sum() == 9 and (area == 112 * 112 - 32 * 32).sum() == 32
    assert len(search_windows((112, 96))) < 41
    assert (~masks[:32]).any(0)[16:-16, 16:-16].all()


def test_the_fit_is_the_posterior_mean_and_linear():
    masks = search_windows((112, 112))
    answers = torch.randn(2, len(masks))
    fit = smooth_fit(answers, masks)
    torch.testing.assert_close(smooth_fit(3 * answers + 5, masks), 3 * fit, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(smooth_fit(answers[1:], masks), fit[1:])
    shown = torch.nn.functional.avg_pool2d(masks[None].float(), 4)[0].flatten(1)
    answers = (shown - shown.mean(0)) @ smooth_variations(2, (28, 28)).flatten(1).T  # what some map would answer
    agreed = (shown - shown.mean(0)) @ smooth_fit(answers.T, masks, noise=1e-6).flatten(1).T
    torch.testing.assert_close(agreed, answers - answers.mean(0), rtol=0.02, atol=0.05 * float(answers.std()))


def test_nothing_depends_on_the_batch(model, images):
    together = searched_map(model, images, CLASSES, batch_size=50)
    alone = torch.cat([searched_map(model, images[i : i + 1], CLASSES[i : i + 1], batch_size=7) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(searched_map(model, images, CLASSES), together, rtol=1e-3, atol=1e-3)


def test_proposals_never_make_it_worse(one_place):
    images = torch.full((1, 3, 112, 112), 250, dtype=torch.uint8)
    start = torch.zeros(1, 28, 28)
    start[:, 10:14, 16:20] = 1
    kept = best_of_proposals(one_place, images, torch.tensor([0]), start, proposals=Proposals(rounds=1, count=1))
    torch.testing.assert_close(kept, standardized(start))
    drawn = smooth_variations(3, (28, 28), seed=4)
    assert torch.equal(drawn, smooth_variations(3, (28, 28), seed=4))
    assert not torch.equal(drawn, smooth_variations(3, (28, 28), seed=5))


@pytest.mark.parametrize("prior", [torch.zeros(7, 7), torch.zeros(2, 28, 28)])
def test_a_prior_of_the_wrong_size_is_refused(model, images, prior):
    with pytest.raises(ValueError, match="prior is"): searched_map(model, images, CLASSES, prior=prior)


def test_bad_options_are_refused(model, images):
    with pytest.raises(ValueError, match="positive"):
        smooth_fit(torch.zeros(1, 41), search_windows((112, 112)), noise=0)
    with pytest.raises(ValueError, match="cut"):
        best_of_proposals(model, images, CLASSES, torch.rand(3, 28, 28), proposals=Proposals(cut=1))
    with pytest.raises(ValueError, match="target is"): window_evidence(model, images, CLASSES[:2])
    with pytest.raises(ValueError, match="fill"): window_evidence(model, images, CLASSES, fill="white")
