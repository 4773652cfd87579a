"""Ranges that follow and intervals that are learned, against numpy and autograd in float64."""

import math

import numpy as np
import pytest
import torch

from zsq.quantizers.grids import FakeQuantizer
from zsq.quantizers.intervals import IntervalActivation, IntervalWeight, interval_levels
from zsq.quantizers.observers import Observer
from zsq.quantizers.running import CurrentMinMax, RunningMinMax, straight_through


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def published(x, low, high, bits):
    """GDFQ's formula, in float64: q = round(scale x - zp), clipped to the signed range."""
    scale = (2**bits - 1) / (high - low)
    zero = np.rint(scale * low) + 2 ** (bits - 1)
    q = np.clip(np.rint(scale * x - zero), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (q + zero) / scale


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_current_ranges_are_the_published_formula_of_each_channel(bits):
    weight = draw(5, 3, 3, 3)
    quantizer = CurrentMinMax(bits)
    for current in (weight, 3 * weight + 0.1):
        rows = current.double().numpy().reshape(5, -1)
        expected = np.stack([published(row, row.min(), row.max(), bits) for row in rows])
        found = quantizer(current)
        np.testing.assert_allclose(found.numpy().reshape(5, -1), expected, atol=1e-5)
        settled = quantizer.settled(current)
        assert isinstance(settled, FakeQuantizer) and settled.num_scales == 5
        torch.testing.assert_close(settled(current), found, rtol=0, atol=1e-6)


def test_the_straight_through_gradient_is_one_also_outside():
    x = torch.tensor([-9.0, -0.2, 0.3, 9.0], requires_grad=True)
    straight_through(x, torch.tensor(0.1), torch.tensor(8.0), 4).sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 1]


def test_running_ranges_are_the_mean_without_bias():
    quantizer = RunningMinMax(4, decay=0.9)
    batches = [draw(20, seed=seed) * (1 + seed) for seed in range(6)]
    for batch in batches:
        quantizer(batch)
    shares = 0.9 ** np.arange(5, -1, -1)
    for found, extreme in ((quantizer.low, torch.min), (quantizer.high, torch.max)):
        values = np.array([extreme(batch).item() for batch in batches])
        assert found.item() == pytest.approx((shares * values).sum() / shares.sum(), rel=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 21])
def test_a_constant_input_is_its_own_range_at_every_step(steps):
    quantizer = RunningMinMax(8, decay=0.9)
    for _ in range(steps):
        quantizer(torch.ones(3))
    assert quantizer.high.item() == pytest.approx(1, abs=1e-6)


def test_a_range_that_no_longer_follows_stays_and_clips():
    quantizer = RunningMinMax(4, decay=0.9)
    quantizer(torch.tensor([0.0, 1.0]))
    quantizer.following = False
    assert quantizer(torch.tensor([5.0, -5.0])).tolist() == pytest.approx([1.0, 0.0])
    torch.testing.assert_close(quantizer.settled()(torch.tensor([0.4])), quantizer(torch.tensor([0.4])))


def levels64(x, low, high, bits):
    return np.rint((2**bits - 1) * np.clip((x - low) / (high - low), 0, 1)) / (2**bits - 1)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_interval_levels_are_the_formula_with_at_most_2_to_the_bits_values(bits):
    x = draw(500)
    found = interval_levels(x, torch.tensor(-0.7), torch.tensor(1.1), bits)
    np.testing.assert_allclose(found.numpy(), levels64(x.double().numpy(), -0.7, 1.1, bits), atol=1e-6)
    assert len(found.round(decimals=4).unique()) == 2**bits


def test_gradients_of_an_interval_are_those_of_the_clipped_line():
    """Rounding counts as the identity: inside, with v in [0, 1], d/dx = 1 / (u - l), d/dl = (v - 1) / (u - l)
    and d/du = -v / (u - l)."""
    x = draw(200).double().requires_grad_()
    low, high = (torch.tensor(value, requires_grad=True) for value in (-0.5, 0.8))
    upstream = draw(200, seed=1)
    interval_levels(x, low, high, 3).backward(upstream)
    values, up = x.detach().numpy(), upstream.numpy()
    inside = (values > -0.5) & (values < 0.8)
    unit = (values + 0.5) / 1.3
    np.testing.assert_allclose(x.grad.numpy(), up * inside / 1.3, rtol=1e-4, atol=1e-6)
    assert low.grad.item() == pytest.approx((up * inside * (unit - 1)).sum() / 1.3, rel=1e-3)
    assert high.grad.item() == pytest.approx((-up * inside * unit).sum() / 1.3, rel=1e-3)


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("bits", [2, 4])
def test_interval_weights_are_symmetric_without_zero(search, bits):
    weight = draw(8, 4, 3, 3) * 0.2
    quantizer = IntervalWeight(weight, bits, search)
    values = quantizer(weight).detach()
    unique = quantizer(torch.linspace(-9, 9, 1001)).detach().unique()
    torch.testing.assert_close(unique, -unique.flip(0))
    assert len(unique) == 2**bits and unique.abs().min() > 0
    assert quantizer.signed and quantizer.num_scales == 1
    if not search:
        assert quantizer.high.item() == pytest.approx(3 * weight.std(correction=0).item(), rel=1e-4)
        assert values.abs().mean().item() == pytest.approx(weight.abs().mean().item(), rel=1e-4)


def test_the_searched_interval_is_the_best_uniform_step_of_a_gaussian():
    """Max 1960: at 2 bits levels at +-0.498 and +-1.494 standard deviations."""
    quantizer = IntervalWeight(draw(200_000), 2, search=True)
    assert quantizer.high.item() == pytest.approx(1.494, rel=0.03)


def observed(values):
    observer = Observer("x")
    observer(values)
    return observer.histogram()


def test_interval_activations_start_at_the_published_place():
    positive = draw(100_000).clamp(min=0).abs() + 0.0
    half_normal = draw(100_000).abs() * 2
    quantizer = IntervalActivation(observed(half_normal), 4, search=False)
    assert quantizer.high.item() == pytest.approx(6, rel=0.02), "3 sigma of the Gaussian behind it"
    assert quantizer(half_normal).mean().item() == pytest.approx(half_normal.mean().item(), rel=0.01)
    signed = IntervalActivation(observed(draw(100_000) + 1), 4, search=False)
    assert (signed.low.item(), signed.high.item()) == pytest.approx((-2, 4), abs=0.1) and signed.signed
    searched = IntervalActivation(observed(positive), 4, search=True)
    assert searched.low.item() == 0 and not searched.signed
    errors = [
        (IntervalActivation(observed(positive), 2, search)(positive) - positive).square().mean()
        for search in (True, False)
    ]
    assert errors[0] < errors[1]


def test_an_interval_cannot_turn_over():
    quantizer = IntervalWeight(draw(10), 4, True)
    with torch.no_grad():
        quantizer.high.fill_(-5)
    quantizer.keep_order()
    assert quantizer.high > quantizer.low and math.isfinite(quantizer(draw(10)).sum().item())


def test_an_interval_s_ends_pass_the_gradient_of_what_lies_on_them():
    """Half of a tensor behind a ReLU is its interval's low end."""
    x = torch.tensor([0.0, 0.0, 0.5, 1.0]).requires_grad_()
    interval_levels(x, torch.tensor(0.0), torch.tensor(1.0), 2).sum().backward()
    assert torch.equal(x.grad, torch.ones(4))
