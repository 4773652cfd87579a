"""Quantizers whose range follows the tensor, with the plain straight-through estimator.

The gradient of the quantized value is 1 everywhere, also where the range clips (STE-all), and none goes to
the range. When training ends, `settled` is the grid that they ended on.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from zsq.quantizers.grids import FakeQuantizer, Quantizer, affine_grid, integer_range


def straight_through(x: Tensor, step: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """`x` on the unsigned affine grid, float32, with gradient 1 everywhere; the grid broadcasts."""
    x = x.float()
    quotient = ((x / step).round() + zero_point).clamp(*integer_range(bits, signed=False)) - zero_point
    return x + (quotient * step - x).detach()


class CurrentMinMax(Quantizer):
    """A weight between the least and the largest value that each output channel has now."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits, self.kind = bits, "weight"

    def forward(self, weight: Tensor) -> Tensor:
        """(C, ...) -> the same, quantized."""
        return straight_through(weight, *self._grid(weight), self.bits)

    def _grid(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        rows = weight.detach().float().flatten(1)
        shape = (-1, *[1] * (weight.dim() - 1))
        step, zero_point = affine_grid(rows.amin(dim=1), rows.amax(dim=1), self.bits)
        return step.view(shape), zero_point.view(shape)

    def settled(self, weight: Tensor) -> FakeQuantizer:
        """The grid of this weight."""
        return FakeQuantizer(*self._grid(weight), *integer_range(self.bits, False), "weight")


class RunningRange(Quantizer):
    """An activation between `low` and `high`, which a subclass moves with the batches."""

    low: Tensor
    high: Tensor

    def __init__(self, bits: int) -> None:
        """Starts as the range that holds 0 alone."""
        super().__init__()
        self.bits, self.kind = bits, "activation"
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))

    @abstractmethod
    def follow(self, x: Tensor) -> None:
        """Move the range with this batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same, quantized with this batch in the range; gradient 1 everywhere."""
        self.follow(x.detach().float())
        return straight_through(x, *affine_grid(self.low, self.high, self.bits), self.bits)

    def settled(self) -> FakeQuantizer:
        """The grid of the present range."""
        grid = affine_grid(self.low, self.high, self.bits)
        return FakeQuantizer(*grid, *integer_range(self.bits, signed=False), "activation")


class RunningMinMax(RunningRange):
    """An activation between exponential means of its batches' extremes, while `following`; then it stays.

    The means have no bias: the weights decay^0, decay^1, ... of the batches, latest first, are divided by
    their sum, so that the first batch's range is its own.
    """

    def __init__(self, bits: int, decay: float) -> None:
        """`decay`: of the exponential means, per batch."""
        super().__init__(bits)
        self.decay, self.following, self.num_batches = decay, True, 0

    def follow(self, x: Tensor) -> None:
        """Move the range, while `following`, before this batch is quantized."""
        if self.following:
            self.num_batches += 1
            share = (1 - self.decay) / (1 - self.decay**self.num_batches)
            low, high = x.aminmax()
            self.low.lerp_(low, share)
            self.high.lerp_(high, share)
