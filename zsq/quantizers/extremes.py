"""QuantFace's ranges: an activation's only grows, and the slopes of a PReLU share one."""

from __future__ import annotations

import torch
from torch import Tensor

from zsq.quantizers.grids import affine_grid
from zsq.quantizers.running import CurrentMinMax, RunningRange


class RunningExtremes(RunningRange):
    """An activation between the extremes of all batches so far, from 0; `growing` false leaves the range.

    Extremes never shrink: one batch with an outlier fixes the scale.
    """

    growing: Tensor

    def __init__(self, bits: int) -> None:
        """Starts as the range that holds 0 alone."""
        super().__init__(bits)
        self.register_buffer("growing", torch.tensor(True))

    def follow(self, x: Tensor) -> None:
        """Grow to this batch."""
        low, high = x.aminmax()
        self.low.copy_(torch.where(self.growing, torch.minimum(self.low, low), self.low))
        self.high.copy_(torch.where(self.growing, torch.maximum(self.high, high), self.high))


class SlopeMinMax(CurrentMinMax):
    """The slopes of a PReLU, 1-D, between the least and the largest of them now: one scale."""

    def _grid(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        low, high = weight.detach().float().aminmax()
        return affine_grid(low, high, self.bits)
