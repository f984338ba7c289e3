"""The rules for PReLU: by hand, complete, equal to Captum's where Captum is right, and a refusal of everything else."""
import copy
import threading
import warnings

import pytest
import torch
from torch import Tensor, nn

from sdd_face.backward_rules import BackwardRule
from sdd_face.networks import embedding_network


def sent_back(network: nn.Module, x: Tensor, rule: str = "", baseline: Tensor | None = None) -> Tensor:
    """Give what comes back to the inputs from the first output."""
    x = x.clone().requires_grad_()
    batch = x if baseline is None else torch.cat([x, baseline])
    if not rule: return torch.autograd.grad(network(batch)[: len(x), 0].sum(), x)[0]
    with BackwardRule(rule): y = network(batch)
    return torch.autograd.grad(y[: len(x), 0].sum(), x)[0]


def lifted(network: nn.Module, x: Tensor, baseline: Tensor) -> Tensor:
    """Give the contributions of DeepLIFT."""
    return (x - baseline) * sent_back(network, x, "rescale", baseline)


class Whole(nn.Module):
    """A face network with its own output layers, random statistics, and slopes of both signs."""

    def __init__(self, arch: str):
        super().__init__()
        torch.manual_seed(0)
        self.network = embedding_network(arch)
        for name, value in self.state_dict().items():
            if "running_var" in name: value.uniform_(0.5, 1.5)
            elif "running_mean" in name or name.endswith("bias"): value.normal_(0, 0.3)
        for each in self.modules():
            if isinstance(each, nn.PReLU): nn.init.uniform_(each.weight, -0.3, 0.6)
        self.eval()

    def forward(self, x: Tensor) -> Tensor: return self.network.output_layer(self.network.features(x))


def by_hand() -> nn.Module:
    """Build the network of the notebook, whose numbers are worked out there."""
    network = nn.Sequential(nn.Linear(2, 4, bias=False), nn.PReLU(4, init=0.25), nn.Linear(4, 1, bias=False)).double()
    network[0].weight.data = torch.tensor([[1.0, 1], [-1, 1], [1, -1], [1, -2]], dtype=torch.float64)
    network[2].weight.data = torch.tensor([[2.0, -1, 4, -4]], dtype=torch.float64)
    return network


def test_a_network_worked_by_hand():
    network = by_hand()
    x, x0 = torch.tensor([[1.0, 2]], dtype=torch.float64), torch.tensor([[0.0, -1]], dtype=torch.float64)
    assert network(x).item() == 7 and network(x0).item() == -4.25
    assert sent_back(network, x).tolist() == [[3, 2]]
    assert sent_back(network, x, "guided").tolist() == [[1, 4]]
    torch.testing.assert_close(lifted(network, x, x0), torch.tensor([[2.55, 8.7]], dtype=torch.float64))


@pytest.mark.parametrize("slope, below", [(0.25, [0, -0.25]), (0.0, [0, 0]), (-0.5, [-0.5, 0]), (1.0, [0, -1])])
def test_guided_signals_of_one_unit(slope, below):
    """What comes back for the signals 1 and -1, below zero and above."""
    def back(x: float, signal: float) -> float:
        x, layer = torch.tensor([[x]], requires_grad=True), nn.PReLU(1, init=slope)
        with BackwardRule("guided"): y = layer(x)
        y.backward(torch.tensor([[signal]]))
        return x.grad.item()

    assert [back(-2.0, 1.0), back(-2.0, -1.0)] == pytest.approx(below) and [back(2.0, 1.0), back(2.0, -1.0)] == [1, 0]


def test_a_slope_of_zero_is_relu():
    torch.manual_seed(0)
    x, x0 = torch.randn(2, 5, 8, dtype=torch.float64)
    first, last = nn.Linear(8, 6).double(), nn.Linear(6, 1).double()
    prelu, relu = (nn.Sequential(first, each, last) for each in (nn.PReLU(6, init=0.0).double(), nn.ReLU()))
    assert torch.equal(sent_back(prelu, x, "guided"), sent_back(relu, x, "guided"))
    assert torch.equal(lifted(prelu, x, x0), lifted(relu, x, x0))


@pytest.mark.parametrize("x, x0, multiplier", [
    (2, 2, 1), (-2, -2, 0.25), (0, 0, 0.25), (1e-30, -1e-30, 0.625), (0, 3, 1), (0, -3, 0.25), (3, 0, 1),
    (-1e-30, -1, 0.25), (4, -4, 0.625)])
def test_multipliers_are_finite_however_near_the_baseline(x, x0, multiplier):
    """Also for an input that is its own baseline, where the slope takes the place of 0 / 0."""
    layer = nn.PReLU(1, init=0.25).double()
    image, baseline = (torch.tensor([[float(value)]], dtype=torch.float64) for value in (x, x0))
    back = sent_back(layer, image, "rescale", baseline)
    assert back.item() == pytest.approx(multiplier)


@pytest.mark.parametrize("arch", ["ir_tiny", "mobilefacenet"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_contributions_sum_to_the_difference(arch, dtype, tolerance):
    network = Whole(arch).to(dtype)
    x, x0 = torch.randn(2, 1, 3, 112, 112, dtype=dtype)
    with torch.no_grad(): after, before = network(x)[0, 0], network(x0)[0, 0]
    found, difference, plain = lifted(network, x, x0), after - before, (x - x0) * sent_back(network, x)
    rounding = 4 * torch.finfo(dtype).eps * (after.abs() + before.abs())  # of outputs much larger than their difference
    assert (found.sum() - difference).abs() < tolerance * found.abs().sum() + rounding
    assert (plain.sum() - difference).abs() > 1e-3 * difference.abs(), "the plain gradient would have done"


def test_forward_is_not_changed():
    network, x = Whole("ir_tiny"), torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        plain = network(x)
        for rule in ("guided", "rescale"):
            with BackwardRule(rule): ruled = network(x)
            assert torch.equal(ruled, plain)


class TwoReLUs(nn.Module):
    """A PReLU for Captum; the copy because Captum replaces the gradient of a tensor, whoever else reads it."""

    def __init__(self, prelu: nn.PReLU):
        super().__init__()
        self.weight, self.up, self.down = prelu.weight, nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor: return self.up(x.clone()) - self.weight[:, None, None] * self.down(-x)


class OnItsOwn(nn.Module):
    """A layer that gets a copy of its input."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor: return self.layer(x.clone())


def rewritten(network: nn.Module, **makers) -> nn.Module:
    """Copy a network with other layers for those of some classes."""
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in makers: setattr(parent, name, makers[type(child).__name__](child))
    return network


def captum(name: str, network: nn.Module, x: Tensor, *baseline: Tensor) -> Tensor:
    """Let Captum explain the first output."""
    attr = pytest.importorskip("captum.attr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(attr, name)(network).attribute(x.clone(), *baseline, target=0).detach()


@pytest.mark.parametrize("layer", [lambda _: nn.ReLU(), TwoReLUs])
def test_equal_to_captum_where_captum_is_right(layer):
    """On a network of ReLUs, and on PReLUs that are rewritten for Captum alone."""
    x, x0 = torch.randn(2, 1, 3, 112, 112, dtype=torch.float64)
    prelu = Whole("ir_tiny").double()
    reference = rewritten(prelu, PReLU=layer, MaxPool2d=OnItsOwn)
    network = prelu if layer is TwoReLUs else reference
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(sent_back(network, x, "guided"), captum("GuidedBackprop", reference, x), **close)
    torch.testing.assert_close(lifted(network, x, x0), captum("DeepLift", reference, x, x0), **close)


def test_what_captum_makes_of_prelu():
    """If this fails, Captum has learned what a PReLU is, and our rules may go."""
    network = Whole("mobilefacenet").double()
    x, x0 = torch.randn(2, 1, 3, 112, 112, dtype=torch.float64)
    plain = sent_back(network, x)
    torch.testing.assert_close(captum("GuidedBackprop", network, x), plain)
    torch.testing.assert_close(captum("DeepLift", network, x, x0), (x - x0) * plain)


class Lambda(nn.Module):
    """A module whose `forward` calls functions: hooks on modules could not see them."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor: return self.function(x)


@pytest.mark.parametrize("function, name", [
    (torch.sigmoid, "sigmoid"), (lambda x: x * x, "mul"), (lambda x: x / x.norm(), "norm"),
    (nn.functional.normalize, "normalize"), (torch.abs, "abs"), (lambda x: x**2, "pow"), (nn.GELU(), "gelu"),
    (lambda x: nn.functional.leaky_relu(x), "leaky_relu"), (lambda x: x / x.mean(), "__truediv__|div"),
    (lambda x: x.softmax(1), "softmax"), (lambda x: x.data, "data"),
    (nn.Dropout(0.5), "dropout"), (lambda x: torch.dropout(x, 0.5, True), "dropout"),
    (lambda x: torch.dropout(x, p=0.5, train=True), "dropout"),
    (lambda x: nn.functional.batch_norm(x, None, None, training=True), "batch_norm"),
    (lambda x: torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False), "batch_norm")])
@pytest.mark.parametrize("rule", ["guided", "rescale"])
def test_what_has_no_rule_is_refused(rule, function, name):
    x = torch.randn(2, 3, 8, 8)
    message = f"the rule '{rule}' does not know what ({name}) sends back, in .*; expected a network of ReLU, PReLU"
    with pytest.raises(ValueError, match=message), BackwardRule(rule): Lambda(function)(x)


@pytest.mark.parametrize("function", [torch.relu, nn.functional.relu, lambda x: x.relu()])
def test_functions_are_seen_like_modules(function):
    x = torch.tensor([[1.0, -1, 2]], requires_grad=True)
    with BackwardRule("guided"): y = function(x)
    y.backward(torch.tensor([[-1.0, -1, 1]]))
    assert x.grad.tolist() == [[0, 0, 1]]


def test_a_refusal_names_the_layer():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Sigmoid()))
    x = torch.ones(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"in 1\.1 \(Sigmoid\);"), BackwardRule("guided"): network(x)


@pytest.mark.parametrize("relu", [nn.ReLU(inplace=True), torch.relu_, lambda x: x.relu_()])
def test_in_place_leaves_its_result_where_its_input_was(relu):
    x = torch.tensor([[1.0, -1, 2]], requires_grad=True)
    with BackwardRule("guided"):
        before = x.clone()
        y = relu(before)
        total = (before + y).sum()  # the same tensor twice
    assert before.tolist() == y.tolist() == [[1, 0, 2]]
    assert torch.autograd.grad(total, x)[0].tolist() == [[2, 0, 2]]


@pytest.mark.parametrize("pool", [
    nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1),
    lambda x: nn.functional.max_pool2d(x, kernel_size=3, stride=1, ceil_mode=True)])
def test_max_pooling_shares_a_difference_out_without_loss(pool):
    x, x0 = torch.randn(2, 2, 3, 9, 9, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    with BackwardRule("rescale"): y = pool(torch.cat([leaf, x0]))
    weights = torch.randn_like(y[:2])
    multiplier, = torch.autograd.grad((y[:2] * weights).sum(), leaf)
    torch.testing.assert_close((multiplier * (x - x0)).sum(), ((pool(x) - pool(x0)) * weights).sum())


def test_a_network_with_max_pooling_is_as_captum_has_it():
    """Its pooling gets a copy, which nobody else reads; otherwise Captum's contributions miss the difference."""
    torch.manual_seed(0)
    ends = nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(20, 2)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *ends).double().eval()
    x, x0 = torch.randn(2, 1, 3, 14, 14, dtype=torch.float64)
    torch.testing.assert_close(sent_back(network, x, "guided"), captum("GuidedBackprop", network, x))
    reference = rewritten(network, MaxPool2d=OnItsOwn)
    torch.testing.assert_close(lifted(network, x, x0), captum("DeepLift", reference, x, x0))


def test_the_shortcut_of_ir_resnet_is_linear():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    with BackwardRule("rescale"): y = nn.MaxPool2d(1, 2)(x)
    assert y.shape == (2, 3, 4, 4) and torch.autograd.grad(y.sum(), x)[0].sum() == y.numel()


def test_an_unknown_rule():
    message = "rule is 'deconvnet'; expected 'guided' or 'rescale'"
    with pytest.raises(ValueError, match=message): BackwardRule("deconvnet")


def test_it_ends_with_its_block_and_stays_in_its_thread():
    x, seen = torch.tensor([[1.0]], requires_grad=True), []
    with pytest.raises(ValueError), BackwardRule("guided"): torch.sigmoid(x)
    assert torch.autograd.grad(torch.relu(x), x, torch.tensor([[-1.0]]))[0].item() == -1
    with BackwardRule("guided"):
        other = threading.Thread(target=lambda: seen.append(torch.sigmoid(torch.zeros(1)).item()))
        other.start()
        other.join()
    assert seen == [0.5]


def test_a_slope_given_by_name_counts():
    for rule in ("guided", "rescale"):
        x, slope = torch.tensor([[-1.0], [-2.0]], requires_grad=True), torch.tensor([0.5])
        with BackwardRule(rule): y = nn.functional.prelu(x, weight=slope)
        assert y.tolist() == [[-0.5], [-1.0]]
        assert torch.autograd.grad(y, x, -torch.ones_like(y))[0].tolist() == [[-0.5], [-0.5]]


def test_layers_asleep_are_seen_however_the_flag_is_given():
    x, one, zero = torch.randn(2, 3, 8, 8), torch.ones(3), torch.zeros(3)
    with BackwardRule("guided"):
        asleep = [torch.dropout(x, 0.5, False), torch.dropout(x, p=0.5, train=False)]
        asleep.append(nn.functional.dropout(x, 0.5, False))
        asleep.append(torch.batch_norm(x, one, zero, zero, one, False, 0.1, 0.0, False))
    for each in asleep: torch.testing.assert_close(each, x)
