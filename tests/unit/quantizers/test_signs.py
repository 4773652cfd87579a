"""Weights of one bit: values, gradients, and the grid that is left of them."""

import pytest
import torch

from zsq.quantizers.signs import BinaryWeight, bounded_sharpness, decayed_sign


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_each_filter_has_its_mean_magnitude():
    weight = draw(4, 3, 3, 3)
    binary = BinaryWeight(weight, "scale")(weight)
    expected = weight.abs().mean(dim=(1, 2, 3))
    for channel, magnitude in enumerate(expected):
        torch.testing.assert_close(binary[channel].abs(), magnitude.expand(3, 3, 3))
    torch.testing.assert_close(binary.abs().sum(dim=(1, 2, 3)), weight.abs().sum(dim=(1, 2, 3)))
    assert (binary.sign() == weight.sign()).all()


def test_the_published_rule_has_powers_of_two_and_no_mean():
    weight = draw(6, 5, 3, 3) * 0.02 + 0.01
    binary = BinaryWeight(weight, "ir")(weight)
    magnitudes = binary.flatten(1).abs()
    assert (magnitudes == magnitudes[:, :1]).all()
    assert torch.equal(magnitudes[:, 0].log2(), magnitudes[:, 0].log2().round())
    centred = weight.flatten(1) - weight.flatten(1).mean(dim=1, keepdim=True)
    assert torch.equal(binary.flatten(1) > 0, centred >= 0)
    assert 0.3 < (binary > 0).float().mean() < 0.7


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 4.0])
def test_the_gradient_is_that_of_a_tanh(sharpness):
    t = torch.tensor(sharpness).double()
    x = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    decayed_sign(x, t).sum().backward()
    step = 1e-6
    numeric = (torch.tanh(t * (x + step)) - torch.tanh(t * (x - step))) / (2 * step) / min(sharpness, 1.0)
    torch.testing.assert_close(x.grad, numeric.detach(), rtol=1e-5, atol=1e-7)
    assert decayed_sign(torch.zeros(1), t) == 1


def test_the_gradient_is_a_line_first_and_vanishes_in_the_end():
    x = torch.tensor([0.0, 0.9, -0.99, 0.7], requires_grad=True)
    decayed_sign(x, torch.tensor(0.1)).sum().backward()
    assert (x.grad - 1).abs().max() < 0.01
    x.grad = None
    decayed_sign(x, torch.tensor(10.0)).sum().backward()
    assert x.grad[0] == 10 and x.grad[1:].max() < 1e-3


def test_the_gradient_of_a_scale_is_the_gradient_times_the_sign():
    weight, grad = draw(2, 3, 2, 2), draw(2, 3, 2, 2, seed=1)
    grid = BinaryWeight(weight, "scale")
    grid(weight).backward(grad)
    torch.testing.assert_close(grid.scale.grad.flatten(), (grad * weight.sign()).sum(dim=(1, 2, 3)))


def test_balanced_weights_have_the_best_scale_of_what_is_left_without_the_mean():
    weight = draw(4, 3, 3, 3) + 0.7
    rows = weight.flatten(1) - weight.flatten(1).mean(dim=1, keepdim=True)
    binary = BinaryWeight(weight, "balanced")(weight).flatten(1)
    assert torch.equal(binary > 0, rows >= 0) and (weight > 0).float().mean() > 0.7
    torch.testing.assert_close(binary.abs(), rows.abs().mean(dim=1, keepdim=True).expand_as(rows))


def test_a_share_of_the_weights_keeps_its_gradient():
    x = draw(1000)
    for t in (0.1, 1.0, 10.0, 1000.0):
        bounded = bounded_sharpness(x, torch.tensor(t), 0.1)
        assert bounded <= t and (x.abs() <= 1 / bounded * 1.001).sum() >= 100
    assert bounded_sharpness(x, torch.tensor(0.1), 0.1) == torch.tensor(0.1)
    assert bounded_sharpness(x, torch.tensor(1000.0), 0.0) == 1000
    assert bounded_sharpness(torch.zeros(3), torch.tensor(7.0), 1.0) == 7


def test_the_values_of_a_weight_do_not_depend_on_sharpness():
    weight = draw(4, 3, 3, 3)
    for rule in ("scale", "balanced", "ir"):
        grid = BinaryWeight(weight, rule, retained=0.1)
        before = grid(weight)
        grid.sharpness.fill_(30)
        assert torch.equal(grid(weight), before)


@pytest.mark.parametrize("rule", ["scale", "balanced", "ir"])
@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (3, 2), (2, 4, 3, 3)])
def test_settled_weights_stay(rule, shape):
    """Also filters of one element, as of a depthwise 1x1, and dead ones."""
    weight = draw(*shape)
    weight[0] = 0
    grid = BinaryWeight(weight, rule)
    binary, basis = grid.settled(weight)
    assert binary.isfinite().all() and torch.equal(binary, grid(weight))
    assert torch.equal(basis(binary), binary)
    assert torch.equal(basis.values(basis.integers(binary)), binary)
