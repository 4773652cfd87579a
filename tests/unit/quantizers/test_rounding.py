"""Soft rounding against numpy and closed forms; random dropping of quantization."""

import numpy as np
import pytest
import torch
from torch import nn

from zsq.quantizers.grids import FakeQuantizer, affine_grid
from zsq.quantizers.rounding import (
    Dropped,
    SoftRounding,
    mixed,
    random_bytes,
    rounding_penalty,
    soft_bits,
    variables_of,
)

BITS, TOP = 3, 7


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def weight():
    return torch.randn(5, 4, 3, 3, generator=generator())


@pytest.fixture
def grid(weight):
    """Per channel over 0.8 of the range, so that some weights are clipped."""
    rows = weight.flatten(1)
    step, zero = affine_grid(0.8 * rows.amin(1), 0.8 * rows.amax(1), BITS)
    return step.view(-1, 1, 1, 1), zero.view(-1, 1, 1, 1)


@pytest.fixture
def soft(weight, grid):
    return SoftRounding(weight, *grid, 0, TOP)


def inside(weight, grid):
    """Both neighbours of the weight are on the grid."""
    step, zero = (part.double().numpy() for part in grid)
    low = np.floor(weight.double().numpy() / step) + zero
    return (low >= 0) & (low + 1 <= TOP)


def test_soft_bits_equal_the_rectified_sigmoid_and_their_inverse_undoes_them():
    variables = torch.linspace(-8, 8, 101)
    x = variables.double().numpy()
    expected = np.clip(1.2 / (1 + np.exp(-x)) - 0.1, 0, 1)
    np.testing.assert_allclose(soft_bits(variables).numpy(), expected, atol=1e-6)
    bits = torch.linspace(0, 0.999, 50)
    torch.testing.assert_close(soft_bits(variables_of(bits)), bits, atol=1e-6, rtol=0)


def test_penalty_equals_float64_and_is_zero_once_decided():
    variables = torch.randn(200, generator=generator())
    h = np.clip(1.2 / (1 + np.exp(-variables.double().numpy())) - 0.1, 0, 1)
    for beta in (20.0, 7.5, 2.0):
        expected = (1 - np.abs(2 * h - 1) ** beta).sum()
        assert rounding_penalty(variables, torch.tensor(beta)).item() == pytest.approx(expected, rel=1e-5)
    assert rounding_penalty(torch.tensor([-9.0, 9.0]), torch.tensor(2.0)).item() == 0


def test_starts_at_the_weight_where_nothing_is_clipped(weight, grid, soft):
    free = torch.from_numpy(inside(weight, grid))
    assert 0.3 < free.float().mean() < 1
    out = soft(weight)
    torch.testing.assert_close(out[free], weight[free], atol=1e-5, rtol=0)
    assert not torch.equal(out[~free], weight[~free])


def test_undecided_rounding_hardens_to_nearest(weight, grid, soft):
    step, zero = grid
    expected = step * ((weight / step).round().clamp(-zero, TOP - zero))
    torch.testing.assert_close(soft.hardened()[0], expected, atol=1e-6, rtol=0)


def test_integers_are_the_floor_or_one_more_and_the_grid_keeps_them(weight, grid, soft):
    step = grid[0].double().numpy()
    with torch.no_grad():
        soft.variables.copy_(torch.randn(weight.shape, generator=generator(1)))
    hard, quantizer = soft.hardened()
    integers = hard.double().numpy() / step
    np.testing.assert_allclose(integers, np.rint(integers), atol=1e-4)
    up = np.rint(integers) - np.floor(weight.double().numpy() / step)
    free = inside(weight, grid)
    assert set(np.unique(up[free])) == {0, 1}
    np.testing.assert_array_equal(up[free] == 1, (soft.variables >= 0).numpy()[free])
    assert torch.equal(quantizer(hard), hard), "rounding again must not move it"


def test_gradients_of_step_and_rounding_are_the_closed_forms(weight, grid, soft):
    step, zero = (part.double().numpy() for part in grid)
    upstream = torch.randn(weight.shape, generator=generator(2))
    with torch.no_grad():
        soft.variables.add_(torch.randn(weight.shape, generator=generator(3)))
    (soft(weight) * upstream).sum().backward()
    x = soft.variables.detach().double().numpy()
    sigmoid = 1 / (1 + np.exp(-x))
    h = np.clip(1.2 * sigmoid - 0.1, 0, 1)
    integers = np.floor(weight.double().numpy() / step) + h
    clipped = np.clip(integers, -zero, TOP - zero)
    g = upstream.double().numpy()
    expected_step = (g * clipped).sum((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(soft.step.grad.numpy(), expected_step, rtol=1e-4, atol=1e-4)
    moves = (clipped == integers) & (h > 0) & (h < 1)
    expected_v = g * step * 1.2 * sigmoid * (1 - sigmoid) * moves
    np.testing.assert_allclose(soft.variables.grad.numpy(), expected_v, rtol=1e-3, atol=1e-5)


def test_base_does_not_move_with_the_step(weight, soft):
    before = soft.base.clone()
    with torch.no_grad():
        soft.step.mul_(1.7)
    soft(weight)
    assert torch.equal(soft.base, before) and not soft.base.requires_grad


def test_random_bytes_are_uniform_reproducible_and_channels_last():
    drawn = random_bytes((32, 5, 7, 9), generator())
    assert drawn.shape == (32, 5, 7, 9) and drawn.dtype == torch.uint8
    assert drawn.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(drawn, random_bytes((32, 5, 7, 9), generator()))
    counts = torch.bincount(random_bytes((1 << 18,), generator()).int(), minlength=256).double()
    # 4 standard deviations of a chi-square with 255 degrees of freedom.
    chi2 = ((counts - 1024) ** 2 / 1024).sum()
    assert abs(chi2 - 255) < 4 * (2 * 255) ** 0.5
    assert random_bytes((3,), generator()).shape == (3,)


@pytest.mark.parametrize("keep", [0.0, 0.25, 0.5, 1.0])
def test_mixing_keeps_the_asked_share_and_averages_to_both(keep):
    ones, zeros = torch.ones(1 << 16), torch.zeros(1 << 16)
    out = mixed(ones, zeros, random_bytes(ones.shape, generator()), keep)
    assert set(out.unique().tolist()) <= {0.0, 1.0}
    assert out.mean().item() == pytest.approx(keep, abs=0.01)


def test_dropped_quantizer_is_elementwise_and_passes_gradients_of_what_it_keeps():
    quantizer = FakeQuantizer(torch.tensor(0.5), torch.tensor(0.0), 0, 3, "activation", learned=True)
    dropped = Dropped(quantizer, 0.5, (6,))
    x = (torch.rand(40, 6, generator=generator()) * 3).requires_grad_()
    dropped.noise = random_bytes((40, 6), generator(1))
    out = dropped(x)
    kept = dropped.noise < 128
    expected = torch.where(kept, quantizer(x), x)
    assert torch.equal(out, expected) and 0.3 < kept.float().mean() < 0.7
    out.sum().backward()
    beyond = x.detach() / 0.5 > 3
    torch.testing.assert_close(x.grad, torch.where(kept & beyond, 0.0, 1.0))


def test_zero_range_channels_stay_finite():
    weight = torch.zeros(2, 3)
    soft = SoftRounding(weight, torch.zeros(2, 1), torch.zeros(2, 1), 0, TOP)
    assert torch.isfinite(soft(weight)).all() and isinstance(soft, nn.Module)
    assert torch.equal(soft.hardened()[0], weight)
