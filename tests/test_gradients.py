"""Gradients by hand: through the head, and down to the pixels."""
import pytest
import torch

from sdd_face.gradients import (
    class_gradient,
    deep_lift,
    gradient_weighted,
    guided_backprop,
    guided_grad_cam,
    head_gradient,
    integrated_gradients,
    predicted_classes,
    saliency,
    send_back,
)
from sdd_face.model import FaceRecognizer

TARGET = torch.tensor([2, 0])
PIXELS = {"saliency": saliency, "guided_backprop": guided_backprop, "guided_grad_cam": guided_grad_cam}
PIXELS |= {"deep_lift": deep_lift}


@pytest.fixture(scope="module")
def model() -> FaceRecognizer:
    torch.manual_seed(0)
    return FaceRecognizer("ir_tiny", ["a", "b", "c"]).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def seen(model: FaceRecognizer, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute features and logits."""
    with torch.no_grad():
        features = model.features(model.preprocess(images))
        return features, model.head(features)


def test_under_a_pooling_head_the_gradient_is_the_weights(model, images):
    features, logits = seen(model, images)
    weights = model.head.classifier.weight.detach()
    expected = (weights[TARGET] / 49)[:, :, None, None].expand_as(features)
    torch.testing.assert_close(class_gradient(model, features, logits, TARGET), expected)
    wanted = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.5, 2.0]])
    expected = (wanted @ weights / 49)[:, :, None, None].expand_as(features)
    torch.testing.assert_close(head_gradient(model, features, wanted), expected)


def test_grad_cam_is_the_weighted_sum(model, images):
    features, logits = seen(model, images)
    gradient = class_gradient(model, features, logits, TARGET)
    expected = (gradient.mean((2, 3), keepdim=True) * features).sum(1)
    torch.testing.assert_close(gradient_weighted(gradient, features), expected)


def test_what_is_sent_back_is_the_derivative(images):
    torch.manual_seed(0)
    model = FaceRecognizer("ir_tiny", ["a", "b", "c"]).eval().double()
    x = model.preprocess(images)
    gradient, features, logits, target = send_back(model, x, TARGET)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(): up, down = (model(x + step * direction) for step in (1e-7, -1e-7))
    slope = (up - down).gather(1, TARGET[:, None])[:, 0] / 2e-7
    torch.testing.assert_close((gradient * direction).sum((1, 2, 3)), slope, rtol=1e-4, atol=1e-6)
    assert torch.equal(target, TARGET) and not (features.requires_grad or logits.requires_grad or x.requires_grad)
    torch.testing.assert_close(logits, model.head(features).detach())
    assert torch.equal(send_back(model, x, None)[3], logits.argmax(1))


@pytest.mark.parametrize("name", PIXELS)
def test_without_a_target_it_is_the_predicted_class(model, images, name):
    predicted = predicted_classes(model, model.preprocess(images))
    assert torch.equal(predicted, seen(model, images)[1].argmax(1))
    maps = PIXELS[name](model, images, None)
    assert maps.shape == (2, 112, 112) and not maps.requires_grad
    torch.testing.assert_close(maps, PIXELS[name](model, images, predicted))
    assert name == "deep_lift" or maps.min() >= 0


@pytest.mark.parametrize("fill", ["black", "mean", "blur"])
def test_a_face_that_is_its_own_baseline_has_no_contributions(model, fill):
    black = torch.zeros(1, 3, 112, 112, dtype=torch.uint8)
    assert deep_lift(model, black, TARGET[:1], fill=fill).abs().max() < 1e-6


def test_less_than_a_step_is_refused(model, images):
    pytest.importorskip("captum")
    with pytest.raises(ValueError, match="steps is 0; expected 1 or more"):
        integrated_gradients(model, images, TARGET, steps=0)


def test_a_network_that_the_rule_does_not_fit_is_refused(images):
    squeezed = FaceRecognizer("ir_se_50", ["a", "b"]).eval()
    with pytest.raises(ValueError, match="does not know what sigmoid sends back"):
        guided_backprop(squeezed, images[:1], torch.tensor([0]))
