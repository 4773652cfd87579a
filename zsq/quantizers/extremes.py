"""QuantFace's ranges: an activation's only grows, and the slopes of a PReLU share one."""

from __future__ import annotations

import torch
from torch import Tensor

from zsq.quantizers.grids import FakeQuantizer, Quantizer, affine_grid, integer_range
from zsq.quantizers.running import CurrentMinMax, straight_through


class RunningExtremes(Quantizer):
    """An activation between the extremes of all batches so far, from 0; `growing` false leaves the range.

    Extremes never shrink: one batch with an outlier fixes the scale.
    """

    low: Tensor
    high: Tensor
    growing: Tensor

    def __init__(self, bits: int) -> None:
        """A range of nothing but 0."""
        super().__init__()
        self.bits, self.kind = bits, "activation"
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))
        self.register_buffer("growing", torch.tensor(True))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same, quantized with this batch in the range; gradient 1 everywhere."""
        low, high = x.detach().float().aminmax()
        self.low.copy_(torch.where(self.growing, torch.minimum(self.low, low), self.low))
        self.high.copy_(torch.where(self.growing, torch.maximum(self.high, high), self.high))
        return straight_through(x, *affine_grid(self.low, self.high, self.bits), self.bits)

    def settled(self) -> FakeQuantizer:
        """The grid of the present range."""
        grid = affine_grid(self.low, self.high, self.bits)
        return FakeQuantizer(*grid, *integer_range(self.bits, signed=False), "activation")


class SlopeMinMax(CurrentMinMax):
    """The slopes of a PReLU, 1-D, between the least and the largest of them now: one scale."""

    def _grid(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        low, high = weight.detach().float().aminmax()
        return affine_grid(low, high, self.bits)
