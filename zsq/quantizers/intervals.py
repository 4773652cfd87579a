"""Quantizers with a learned interval (Lee et al. 2021, EWGS): x is cut to [low, high], brought to [0, 1] and
rounded to 2^b levels there, both ends among them. Rounding passes the gradient, cutting masks it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zsq.quantizers.grids import Quantizer
from zsq.quantizers.observers import Histogram

# An interval never gets narrower than this part of what it was: its two ends must not cross.
LEAST_WIDTH = 1e-3


def interval_levels(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """`x` as k / (2^b - 1) in [0, 1], float32; gradients go to `x`, `low` and `high`."""
    levels = 2**bits - 1
    unit = ((x.float() - low) / (high - low)).clamp(0, 1)
    return unit + ((unit * levels).round() / levels - unit).detach()


class IntervalQuantizer(Quantizer):
    """One tensor's interval and the scale of what comes out, all three learned."""

    low: nn.Parameter
    high: nn.Parameter
    scale: nn.Parameter

    def __init__(self, low: float, high: float, bits: int) -> None:
        super().__init__()
        self.bits = bits
        for name, value in (("low", low), ("high", high), ("scale", 1.0)):
            self.register_parameter(name, nn.Parameter(torch.tensor(value)))
        self.least_width = LEAST_WIDTH * (high - low)

    def levels(self, x: Tensor) -> Tensor:
        """`x` in [0, 1]."""
        return interval_levels(x, self.low, self.high, self.bits)

    @torch.no_grad()
    def keep_order(self) -> None:
        """Hold `high` above `low`, after a step of an optimizer."""
        self.high.copy_(torch.maximum(self.high, self.low + self.least_width))

    @property
    def num_scales(self) -> int:
        """Per tensor."""
        return 1


class IntervalWeight(IntervalQuantizer):
    """A weight on `scale` (2 levels - 1): an even number of values around zero, none of them zero."""

    kind = "weight"

    def __init__(self, weight: Tensor, bits: int) -> None:
        """Starts at 3 standard deviations around zero, with the weight's mean magnitude kept."""
        spread = max(3 * weight.detach().float().std(correction=0).item(), 1e-8)
        super().__init__(-spread, spread, bits)
        with torch.no_grad():
            values = 2 * self.levels(weight.detach().cpu()) - 1
            self.scale.fill_(weight.detach().abs().mean().item() / values.abs().mean().item())

    def forward(self, weight: Tensor) -> Tensor:
        """Any shape -> the same."""
        return self.scale * (2 * self.levels(weight) - 1)

    @property
    def signed(self) -> bool:
        """Always."""
        return True


class IntervalActivation(IntervalQuantizer):
    """An activation on `low` + `scale` levels."""

    kind = "activation"

    def __init__(self, histogram: Histogram, bits: int) -> None:
        """Starts at 3 standard deviations of the Gaussian that a one-sided tensor is the half of, or around
        the mean of a two-sided one, with the tensor's mean kept."""
        values, counts = (part.double() for part in histogram.occupied())
        share = counts / counts.sum()
        mean = (share * values).sum()
        std = (share * (values - mean).square()).sum().sqrt().clamp(min=1e-8)
        if histogram.low >= 0:
            low, high = histogram.low, 3 * std.item() / math.sqrt(1 - 2 / math.pi)
        else:
            low, high = (mean - 3 * std).item(), (mean + 3 * std).item()
        super().__init__(low, max(high, low + 1e-8), bits)
        with torch.no_grad():
            levels = (share * self.levels(values.float())).sum().item()
            self.scale.fill_((mean.item() - low) / levels if levels > 0 else high - low)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return self.low + self.scale * self.levels(x)

    @property
    def signed(self) -> bool:
        """Whether the interval reaches below zero."""
        return bool(self.low < 0)
