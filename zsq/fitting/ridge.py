"""Ridge corrections of a linear layer's weights for the errors of its inputs and of its own rounding (ERQ,
Zhong et al., ICML 2024). All in closed form, from second moments of what enters the layer.

Suffixes: O outputs, I inputs, J inputs and a 1 for the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from zsq.fitting.frontier import Frontier
from zsq.quantizers.grids import FakeQuantizer

LEAST_RIDGE = 1e-20


@dataclass(frozen=True)
class Moments:
    """Means over all positions, float64: of x x^T (J, J), of y x^T (O, J) and of y^2 (O,). x is the student's
    input with a 1 appended, y what the float layer makes of the float input, without its bias."""

    gram_JJ: Tensor
    cross_OJ: Tensor
    power_O: Tensor

    def error(self, weight_OI: Tensor, shift_O: Tensor) -> Tensor:
        """Mean squared error (O,) of a weight and of what is added to the bias."""
        weight_OJ = torch.cat([weight_OI.double(), shift_O.double()[:, None]], 1)
        return (
            self.power_O
            - 2 * (weight_OJ * self.cross_OJ).sum(1)
            + (weight_OJ @ self.gram_JJ * weight_OJ).sum(1)
        )

    def regulariser(self, strength: float) -> float:
        """`strength` times the mean square of an input, and above zero where all inputs are zero."""
        return max(strength * self.gram_JJ.diagonal()[:-1].mean().item(), LEAST_RIDGE)


@torch.no_grad()
def moments_of(full: Frontier, student: Frontier, layer: str, later: Sequence[str]) -> Moments:
    """Of a linear layer, over all its calls; both networks have the same nodes.

    Args:
        later: the layers that come after it; what their inputs do not follow from is forgotten.
    """
    inputs, ahead = _inputs(student.network, [layer]), _inputs(student.network, later)
    weight_OI = full.network.get_parameter(f"{layer}.weight").double()
    outputs, size, count = len(weight_OI), weight_OI.shape[1] + 1, 0
    gram_JJ, cross_OJ = weight_OI.new_zeros(size, size), weight_OI.new_zeros(outputs, size)
    power_O = weight_OI.new_zeros(outputs)
    for frontier in (full, student):
        frontier.keep([*inputs, *ahead])
    for float_, quantized_ in zip(full.batches(inputs), student.batches(inputs), strict=True):
        for exact, quantized in zip(float_, quantized_, strict=True):
            y_MO = exact.flatten(0, -2).double() @ weight_OI.T
            x_MI = quantized.flatten(0, -2).double()
            x_MJ = torch.cat([x_MI, x_MI.new_ones(len(x_MI), 1)], 1)
            gram_JJ += x_MJ.T @ x_MJ
            cross_OJ += y_MO.T @ x_MJ
            power_O += y_MO.square().sum(0)
            count += len(x_MI)
    # What later calls are given follows from the layer itself, which now changes.
    student.forget(inputs[1:])
    return Moments(gram_JJ / count, cross_OJ / count, power_O / count)


def _inputs(network: fx.GraphModule, layers: Sequence[str]) -> list[str]:
    """What enters these layers, in order of execution."""
    calls = (node for node in network.graph.nodes if node.op == "call_module" and node.target in layers)
    return list(dict.fromkeys(node.all_input_nodes[0].name for node in calls))


def input_corrected(weight_OI: Tensor, moments: Moments, strength: float) -> tuple[Tensor, Tensor]:
    """The weight, and what is added to the bias (O,), that make of the student's inputs what the float layer
    makes of its own: W + dW with dW = Y^T X (X^T X + l)^-1, Y the error of the layer's outputs."""
    weight_OJ = torch.cat([weight_OI, weight_OI.new_zeros(len(weight_OI), 1)], 1).double()
    missing_OJ = moments.cross_OJ - weight_OJ @ moments.gram_JJ
    change_OJ = _solved(moments.gram_JJ, missing_OJ, moments.regulariser(strength))
    return (weight_OJ + change_OJ)[:, :-1].to(weight_OI), change_OJ[:, -1].to(weight_OI)


def rounded(
    weight_OI: Tensor, grid: FakeQuantizer, moments: Moments, strength: float, most_flips: int
) -> Tensor:
    """The weight on its grid: half of its free columns at a time, and the rest takes up their error."""
    gram_II, weight_OI = moments.gram_JJ[:-1, :-1], weight_OI.double()
    regulariser, start, size = moments.regulariser(strength), 0, weight_OI.shape[1]
    while start < size:
        end = start + max(1, (size - start) // 2)
        here, rest = slice(start, end), slice(end, size)
        chosen = _flipped(weight_OI[:, here], grid, gram_II[here, here], most_flips)
        error_OI = chosen - weight_OI[:, here]
        weight_OI = torch.cat([weight_OI[:, :start], chosen, weight_OI[:, rest]], 1)
        if end < size:
            weight_OI[:, rest] -= _solved(gram_II[rest, rest], error_OI @ gram_II[here, rest], regulariser)
        start = end
    return weight_OI.float()


def _flipped(weight_OI: Tensor, grid: FakeQuantizer, gram_II: Tensor, most_flips: int) -> Tensor:
    """The weight on its grid, each value at one of its two neighbours: from the nearest on, the one whose
    change lowers the output's error most changes side, while one does."""
    step, zero = grid.step.double(), grid.zero_point.double()
    exact = weight_OI / step + zero
    level = exact.round().clamp(grid.lo, grid.hi)
    other = torch.where(exact >= level, level + 1, level - 1).clamp(grid.lo, grid.hi)
    slope_OI = (level - exact) * step @ gram_II
    for _ in range(most_flips):
        change = (other - level) * step
        gain, column = (2 * change * slope_OI + change.square() * gram_II.diagonal()).min(1, keepdim=True)
        flips = gain < 0
        if not bool(flips.any()):
            break
        before, after = level.gather(1, column), other.gather(1, column)
        slope_OI += torch.where(flips, change.gather(1, column), 0.0) * gram_II[column[:, 0]]
        level.scatter_(1, column, torch.where(flips, after, before))
        other.scatter_(1, column, torch.where(flips, before, after))
    return (level - zero) * step


def _solved(gram: Tensor, right: Tensor, regulariser: float) -> Tensor:
    """right (gram + l)^-1."""
    ridge = gram + regulariser * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(ridge, right.T).T
