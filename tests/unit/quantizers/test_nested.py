"""Nested weights: prefixes bit for bit, the middles of what was cut off, gradients, grids of files."""

import pytest
import torch

from zsq.quantizers.grids import FakeQuantizer, fake_quantize, integer_range
from zsq.quantizers.nested import LearnedNested, LearnedSteps, NestedWeight, middle, prefix

WIDTHS = range(2, 9)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers_at(grid, weight, bits):
    values, settled = grid.settled(weight, bits)
    return settled.integers(values)


def test_every_width_is_a_prefix_bit_for_bit_and_planes_make_the_whole():
    weight = draw(6, 5, 3, 3)
    grid = LearnedNested(weight, WIDTHS)
    whole = integers_at(grid, weight, 8).to(torch.int8)
    planes = []
    for bits in WIDTHS:
        own = integers_at(grid, weight, bits).to(torch.int8)
        assert torch.equal(whole >> (8 - bits), own)
        if bits < 8:
            planes.append(integers_at(grid, weight, bits + 1) - 2 * own)
            assert set(planes[-1].unique().tolist()) == {0, 1}
    rebuilt = integers_at(grid, weight, 2)
    for plane in planes:
        rebuilt = 2 * rebuilt + plane
    assert torch.equal(rebuilt.to(torch.int8), whole)
    # Rounding would not be a prefix.
    assert not torch.equal((whole / 16).round().to(torch.int8), whole >> 4)


def test_minus_one_is_minus_one_at_every_width():
    shifts = 2.0 ** torch.arange(7)
    assert (prefix(torch.tensor(-1.0), shifts) == -1).all()
    assert middle(8) == 0 and middle(2) == pytest.approx(0.5 - 1 / 128)


def test_the_error_is_half_a_step_of_the_width():
    weight = draw(4, 50)
    grid = LearnedNested(weight, WIDTHS)
    for bits in WIDTHS:
        values, settled = grid.settled(weight, bits)
        assert ((values - weight).abs() <= settled.scale * 0.5001).all()
        assert torch.equal(settled(values), values)
        assert bits == 8 or (values != 0).all()


def test_a_chosen_width_is_what_settles_and_gradients_are_those_of_the_formula():
    weight, grad = draw(3, 2, 3, 3).requires_grad_(), draw(3, 2, 3, 3, seed=1)
    grid = LearnedNested(weight, WIDTHS)
    grid.choose(2)
    values, _ = grid.settled(weight.detach(), 4)
    found = grid(weight)
    torch.testing.assert_close(found, values)
    found.backward(grad)
    assert torch.equal(weight.grad, grad)
    per_factor = grid.factor.grad.flatten(1)
    torch.testing.assert_close(per_factor[2], (grad * values).flatten(1).sum(dim=1))
    assert per_factor.abs().sum(dim=1).count_nonzero() == 1
    beyond = (2 * weight.detach()).requires_grad_()
    grid(beyond).sum().backward()
    assert 0 < (beyond.grad == 0).sum() < beyond.numel()


@pytest.mark.parametrize("signed", [False, True])
def test_activations_are_those_of_a_learned_step(signed):
    x, grad = draw(4, 3, 5, 5).requires_grad_(), draw(4, 3, 5, 5, seed=1)
    steps = (0.9, 0.3)
    grids = [
        FakeQuantizer(torch.tensor(step), torch.tensor(0.0), *integer_range(bits, signed), "activation")
        for step, bits in zip(steps, (2, 4), strict=True)
    ]
    ladder = LearnedSteps(grids, (2, 4))
    assert ladder.signed == signed
    for index, grid in enumerate(grids):
        ladder.choose(index)
        x.grad, ladder.factor.grad = None, None
        ladder(x).backward(grad)
        step, own = grid.step.clone().requires_grad_(), x.detach().clone().requires_grad_()
        expected = fake_quantize(own, step, grid.zero_point, *grid.bounds, grid.gradient_scale(x))
        expected.backward(grad)
        torch.testing.assert_close(ladder(x), expected)
        torch.testing.assert_close(x.grad, own.grad)
        torch.testing.assert_close(ladder.factor.grad[index], step.grad * steps[index])
        torch.testing.assert_close(ladder.settled((2, 4)[index])(x), expected)


def test_grids_of_hostile_files_are_refused():
    good = {"scale": torch.ones(3, 1)}
    assert NestedWeight.restored("weight", 4, (-8, 7), good).num_scales == 3
    for bounds, scale in (
        ((0, 15), torch.ones(3, 1)),
        ((-8, 7), torch.zeros(3, 1)),
        ((-8, 7), torch.ones(3, 2)),
        ((-8, 7), torch.tensor(1.0)),
        ((-8, 7), torch.ones(0, 1)),
    ):
        with pytest.raises(ValueError, match="scale"):
            NestedWeight.restored("weight", 4, bounds, {"scale": scale})
