"""Basis grids: levels, thresholds, and the alternation that fits a basis."""

import pytest
import torch

from zsq.quantizers.basis import (
    RIDGE,
    LearnedBasis,
    SignedBasis,
    UnsignedBasis,
    added,
    codes,
    fitted_basis,
    level_index,
    level_sums,
    searched_basis,
    sorted_levels,
    squared_error,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("lowest", [-1, 0])
@pytest.mark.parametrize("with_counts", [False, True])
def test_counts_and_sums_give_what_the_matrix_gives(lowest, with_counts):
    x, basis = draw(2, 50), torch.tensor([[0.3, 0.5], [0.8, 0.9]])
    counts = torch.randint(1, 5, (50,)).float() if with_counts else None
    levels, code = sorted_levels(basis, lowest)
    index = level_index(x, levels)
    found = fitted_basis(x, index, code, basis, counts, ridge=0.0)
    for channel in range(2):
        matrix = code[channel][index[channel]].double()
        scale = torch.ones(50).double() if counts is None else counts.double()
        wanted = torch.linalg.solve(
            matrix.T @ (scale[:, None] * matrix), matrix.T @ (scale * x[channel].double())
        )
        torch.testing.assert_close(found[:, channel].double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("values", [None, [0.5, -2.0, 1.25, 4.0, 3.0]])
def test_a_gpu_adds_what_a_cpu_counts(values):
    index = torch.tensor([2, 0, 2, 5, 0])
    given = None if values is None else torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(added(index, given, 7), level_sums(index, given, 7), rtol=0, atol=0)


def test_neither_half_of_an_alternation_makes_the_error_larger():
    x, basis = draw(3, 200, seed=1), torch.tensor([[0.2], [0.9], [0.5]]).expand(3, 3)
    start = squared_error(x, basis, -1)
    levels, code = sorted_levels(basis, -1)
    index = level_index(x, levels)
    found = fitted_basis(x, index, code, basis, None, ridge=0.0)
    refitted = (
        ((code.gather(1, index[:, :, None].expand(-1, -1, 3)) @ found.T[:, :, None]).squeeze(2) - x)
        .square()
        .sum(1)
    )
    assert (refitted <= start).all() and (squared_error(x, found, -1) <= refitted + 1e-5).all()


@pytest.mark.parametrize(("lowest", "basis"), [(-1, [0.4, 1.0]), (0, [0.5, 1.3])])
def test_a_basis_grid_is_recovered(lowest, basis):
    values = (codes(2, lowest) @ torch.tensor(basis)).repeat(8)[None]
    found = searched_basis(values, 2, lowest)
    torch.testing.assert_close(found[:, 0].sort().values, torch.tensor(basis), rtol=1e-3, atol=1e-3)


def test_evenly_spread_values_get_powers_of_two():
    found = searched_basis(torch.linspace(0, 1, 4001)[None], 3, 0)[:, 0]
    torch.testing.assert_close(found / found[0], torch.tensor([1.0, 2.0, 4.0]), rtol=0.05, atol=0)


def test_a_code_that_never_fires_leaves_the_basis_finite():
    x = torch.full((1, 20), 0.5)
    grid = LearnedBasis(torch.tensor([[0.5], [9.0]]), "activation", 0, decay=0.5)
    for _ in range(20):
        grid(x)
    assert grid.basis.isfinite().all() and grid(x).isfinite().all()
    zeros = LearnedBasis(searched_basis(torch.zeros(1, 5), 2, -1), "weight", -1, 0.9)
    assert zeros(torch.zeros(1, 5)).isfinite().all()


def test_a_negative_entry_gives_what_its_sorted_twin_gives():
    x = draw(1, 100)
    basis = torch.tensor([[0.4], [-1.1]])
    torch.testing.assert_close(SignedBasis(basis, "weight")(x), SignedBasis(basis.abs().flip(0), "weight")(x))


def test_thresholds_are_strict_and_gradients_end_at_the_top():
    grid = UnsignedBasis(torch.tensor([[1.0], [2.0]]), "activation")
    x = torch.tensor([0.5, 0.5001, -1.0, 3.0, 3.2], requires_grad=True)
    y = grid(x)
    assert y.tolist() == [0, 1, 0, 3, 3]
    y.sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 1, 0]


def test_products_of_codes_give_the_product_of_the_values():
    """As XNOR and popcount compute it: one pass for each pair of bits."""
    weight, activation = (
        SignedBasis(torch.tensor([[0.3], [0.7]]), "weight"),
        UnsignedBasis(torch.tensor([[0.2], [0.5]]), "activation"),
    )
    w, a = weight(draw(1, 64)), activation(draw(1, 64, seed=2))
    code_w = sorted_levels(weight.basis, -1)[1][0][weight.integers(w)[0].long()]
    code_a = sorted_levels(activation.basis, 0)[1][0][activation.integers(a)[0].long()]
    planes = code_w.T @ code_a
    torch.testing.assert_close(weight.basis.T @ planes @ activation.basis, (w @ a.T), rtol=1e-5, atol=1e-5)


def test_the_basis_moves_after_the_batch_and_stays_once_settled():
    x = draw(4, 30)
    moving = LearnedBasis(searched_basis(x, 2, -1), "weight", -1, decay=0.5)
    before = SignedBasis(moving.basis, "weight")
    shifted = x * 1.5
    torch.testing.assert_close(moving(shifted), before(shifted))
    assert not torch.equal(moving.basis, before.basis)
    levels, code = sorted_levels(before.basis, -1)
    target = fitted_basis(shifted, level_index(shifted, levels), code, before.basis, None, RIDGE)
    torch.testing.assert_close(moving.basis, (before.basis + target) / 2)
    settled = moving.settled()
    settled(x)
    assert torch.equal(settled.basis, moving.basis) and settled.num_scales == 4
