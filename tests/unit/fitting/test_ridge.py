"""Ridge corrections of one linear layer against sums over the rows themselves."""

import pytest
import torch
from torch import nn

from zsq.core.runtime import Runtime
from zsq.fitting.frontier import Frontier
from zsq.fitting.ridge import Moments, input_corrected, moments_of, rounded
from zsq.graph import capture
from zsq.students.repq import percentile_weight


class Shrunk(nn.Module):
    """Stands for a quantizer."""

    def forward(self, x):
        return (x * 2).round() / 2 + 0.05


class Given:
    """Stands for images: what the network takes."""

    def __init__(self, x):
        self.pixels_NCHW, self.runtime = x, Runtime()

    def batches(self):
        yield from ((64 * index, part) for index, part in enumerate(self.pixels_NCHW.split(64)))


class Single(nn.Module):
    def __init__(self):
        super().__init__()
        self.pre, self.linear = nn.Linear(6, 24), nn.Linear(24, 4)

    def forward(self, x):
        return self.linear(self.pre(x))


@pytest.fixture(scope="module")
def layer():
    """The layer's weight, its moments, and its inputs in both networks."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        full = capture(Single().eval().requires_grad_(False), torch.zeros(2, 6))
    student = capture(full)
    (call,) = (node for node in student.graph.nodes if node.target == "linear")
    student.add_submodule("quantizer", Shrunk())
    with student.graph.inserting_before(call):
        call.replace_input_with(call.all_input_nodes[0], student.graph.call_module("quantizer", call.args))
    student.recompile()
    full.graph = student.graph
    full.add_submodule("quantizer", nn.Identity())
    full.recompile()
    x = torch.randn(300, 6, generator=generator) * torch.linspace(0.2, 2, 6)
    frontiers = (Frontier(network, Given(x)) for network in (full, student))
    moments = moments_of(*frontiers, "linear", [])
    exact = full.pre(x).double()
    return full.get_parameter("linear.weight"), moments, exact, Shrunk()(full.pre(x)).double()


def error(layer, weight, shift=0.0):
    original, _, exact, seen = layer
    return (exact @ original.double().T - seen @ weight.double().T - shift).square().mean(0)


def test_the_error_from_moments_is_that_of_the_rows(layer):
    weight, moments, *_ = layer
    for changed, shift in ((weight, torch.zeros(4)), (weight * 0.9, torch.full((4,), 0.1))):
        torch.testing.assert_close(moments.error(changed, shift), error(layer, changed, shift))


def test_without_a_ridge_the_correction_is_least_squares(layer):
    weight, moments, exact, seen = layer
    corrected, shift = input_corrected(weight, moments, 1e-12)
    rows = torch.cat([seen, torch.ones(len(seen), 1, dtype=torch.float64)], 1)
    best = exact @ weight.double().T
    best = best - rows @ torch.linalg.lstsq(rows, best).solution
    torch.testing.assert_close(error(layer, corrected, shift), best.square().mean(0), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("strength", [0.01, 0.2, 5.0])
def test_a_correction_never_raises_the_error(layer, strength):
    weight, moments, *_ = layer
    corrected, shift = input_corrected(weight, moments, strength)
    assert (error(layer, corrected, shift) <= error(layer, weight)).all()


def test_an_endless_ridge_corrects_nothing(layer):
    weight, moments, *_ = layer
    corrected, shift = input_corrected(weight, moments, 1e12)
    torch.testing.assert_close(corrected, weight)
    assert shift.abs().max() < 1e-6
    grid = percentile_weight(weight, 3)
    assert torch.equal(rounded(weight, grid, moments, 1e12, 0), grid(weight))


def test_rounding_stays_on_the_grid_and_lowers_the_error_of_the_outputs(layer):
    weight, moments, _, seen = layer
    grid = percentile_weight(weight, 3)
    errors = []
    for made in (
        grid(weight),
        rounded(weight, grid, moments, 0.01, 0),
        rounded(weight, grid, moments, 0.01, 100),
    ):
        torch.testing.assert_close(grid(made), made)
        errors.append((seen @ (made - weight).double().T).square().mean())
    assert errors[2] < errors[0] and errors[1] < errors[0]


def test_one_flip_is_the_best_that_one_flip_can_do(layer):
    """By trying all of them on the columns that are rounded first, where a ridge corrects nothing before."""
    weight, moments, _, _ = layer
    kept = [0, 1, 2, 3, 4, 5, -1]
    six = Moments(moments.gram_JJ[kept][:, kept], moments.cross_OJ[:, kept], moments.power_O)
    gram = moments.gram_JJ[:3, :3]
    wide = weight[:, :3]
    grid = percentile_weight(wide, 2)
    found = rounded(weight[:, :6], grid, six, 1e12, 1)[:, :3].double()
    nearest, step = grid(wide).double(), grid.step.double()
    for row in range(len(wide)):
        tried = [nearest[row]]
        for index in range(3):
            other = nearest[row].clone()
            other[index] += step[row, 0] * (1 if wide[row, index] >= nearest[row, index] else -1)
            tried.append(other)
        costs = [
            (d := t - wide[row].double()) @ gram @ d
            for t in tried
            if (grid(t[None].float().expand(4, 3))[row] - t).abs().max() < 1e-5
        ]
        own = found[row] - wide[row].double()
        assert own @ gram @ own == pytest.approx(min(costs).item(), rel=1e-5)
