"""Thresholds between levels: fixed ones, and borders that are learned."""

import pytest
import torch

from zsq.quantizers.grids import FakeQuantizer
from zsq.quantizers.thresholds import LearnedBorders, Thresholds, temperature_at


def grid(step=0.5, zero=2.0, bits=3):
    return FakeQuantizer(torch.tensor(step), torch.tensor(zero), 0, 2**bits - 1, "activation", learned=True)


def borders(slope, bits=3, zero=2.0, axis=1):
    return LearnedBorders(grid(zero=zero, bits=bits), torch.tensor(slope), axis)


def test_no_borders_of_their_own_round_to_nearest_and_halves_down():
    x = torch.linspace(-3, 4, 4001)[None, :, None]
    plain, learned = grid(), borders([0.0])
    halves = ((x / 0.5) % 1 == 0.5).squeeze()
    assert halves.any()
    wanted, found = plain(x).squeeze(), learned(x).squeeze()
    assert torch.equal(found[~halves], wanted[~halves])
    exact = torch.tensor([[0.25, 0.75, -0.25]])
    assert torch.equal(borders([0.0])(exact), torch.tensor([[0.0, 0.5, -0.5]]))


def test_learned_borders_are_the_thresholds_that_they_become():
    x = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    learned = borders([0.1, -0.2, 0.3])
    with torch.no_grad():
        learned.border[0] = torch.tensor([0.1, 0.05, -0.3])
    fixed = learned.hardened()
    assert torch.equal(learned(x), fixed(x)) and not torch.equal(fixed(x), grid()(x))
    assert (fixed.thresholds.diff(dim=1) > 0).all() and set(fixed(x).unique().tolist()) <= {
        0.5 * (q - 2) for q in range(8)
    }
    for channel in range(3):
        counted = (x[:, channel, ..., None] / 0.5 + 2 > fixed.thresholds[channel]).sum(-1)
        assert torch.equal(fixed(x)[:, channel], (counted - 2) * 0.5)
    rows = x.movedim(1, -1).contiguous()
    last = Thresholds(fixed.step, fixed.zero_point, fixed.thresholds, torch.tensor(-1.0))
    assert torch.equal(last(rows), fixed(x).movedim(1, -1))


def test_one_weight_has_the_border_of_the_formula():
    """Of 1 that became 0.8, rounding up is better from 0.8 (n + 1/2) on: 0.4, 1.2; then at the clip."""
    u = torch.arange(0, 1.98, 0.01) + 0.005
    best = torch.stack([(0.8 * n - u).abs() for n in range(8)]).argmin(0)
    learned = LearnedBorders(grid(1.0, 0.0), torch.tensor([0.8 - 1]), 1)
    assert torch.equal(learned(u[None, None]).flatten(), best.float())
    torch.testing.assert_close(learned.hardened().thresholds[0, :4], torch.tensor([0.4, 1.2, 2.05, 3.05]))


def test_gradients_are_those_of_lsq_and_of_the_sigmoid():
    x = torch.tensor([[[-3.0, 0.3, 0.6, 9.0]]], requires_grad=True)
    learned, plain = borders([0.0]), grid()
    (learned(x).sum()).backward()
    own, x.grad = x.grad, None
    plain(x).sum().backward()
    assert torch.equal(own, x.grad)
    # One channel of four elements: LSQ counts features of one image.
    torch.testing.assert_close(learned.step.grad, plain.step.grad)
    inside = torch.tensor([0.6, 0.2])
    soft = torch.sigmoid((inside - 0.5) / learned.temperature)
    wanted = -(0.5 * soft * (1 - soft) / learned.temperature).sum()
    torch.testing.assert_close(learned.border.grad[0, 0], wanted)


def test_the_temperature_falls_to_its_end():
    assert temperature_at(0) == 0.5 and abs(temperature_at(1) - 0.02) < 1e-9


@pytest.mark.parametrize(
    "change",
    [
        {"step": torch.tensor(-1.0)},
        {"axis": torch.tensor(2.0)},
        {"zero_point": torch.tensor(0.5)},
        {"thresholds": torch.ones(1, 7)},
        {"thresholds": torch.arange(3.0)[None]},
        {"thresholds": torch.arange(7.0)},
    ],
)
def test_hostile_tensors_are_refused(change):
    tensors = dict(borders([0.0]).hardened().state_dict())
    assert Thresholds.restored("activation", 3, (0, 7), tensors).bounds == (0, 7)
    with pytest.raises(ValueError):
        Thresholds.restored("activation", 3, (0, 7), tensors | change)
