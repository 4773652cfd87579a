"""Quantizers with a learned interval (Lee et al. 2021, EWGS): x is cut to [low, high], brought to [0, 1] and
rounded to 2^b levels there, both ends among them. Rounding passes the gradient, cutting masks it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from zsq.quantizers.grids import Quantizer, clip, stored
from zsq.quantizers.observers import Histogram
from zsq.quantizers.ranges import NUM_RATIOS, lp_affine
from zsq.widths import Kind

# An interval never gets narrower than this part of what it was: its two ends must not cross.
LEAST_WIDTH = 1e-3
SMALLEST_WIDTH = 1e-8


def interval_levels(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """`x` as k / (2^b - 1) in [0, 1], float32; gradients go to `x`, `low` and `high`."""
    levels = 2**bits - 1
    unit = clip((x.float() - low) / (high - low), 0, 1)
    return unit + ((unit * levels).round() / levels - unit).detach()


class IntervalQuantizer(Quantizer):
    """One tensor's interval and the scale of what comes out, all three learned."""

    no_onnx_form = "an input scale and an output scale"
    low: nn.Parameter
    high: nn.Parameter
    scale: nn.Parameter

    def __init__(self, low: float, high: float, bits: int) -> None:
        super().__init__()
        self.bits = bits
        for name, value in (("low", low), ("high", high), ("scale", 1.0)):
            self.register_parameter(name, nn.Parameter(torch.tensor(value)))
        self.least_width = LEAST_WIDTH * (high - low)

    @classmethod
    def restored(cls, kind: Kind, bits: int, bounds: tuple[int, int], tensors: Mapping[str, Tensor]) -> Self:
        """See `Quantizer.restored`."""
        low, high, scale = (tensors[name] for name in ("low", "high", "scale"))
        if bounds != (0, 2**bits - 1) or any(end.dim() for end in (low, high, scale)) or not bool(low < high):
            raise ValueError("no interval of two ends and a scale")
        quantizer = cls.__new__(cls)
        IntervalQuantizer.__init__(quantizer, low.item(), high.item(), bits)
        quantizer.scale = nn.Parameter(scale.detach().clone())
        return quantizer

    @property
    def bounds(self) -> tuple[int, int]:
        """0 and 2^b - 1."""
        return 0, 2**self.bits - 1

    def integers(self, weight: Tensor) -> Tensor:
        """Numbers of the levels."""
        return (self.levels(weight) * (2**self.bits - 1)).round()

    def values(self, integers: Tensor) -> Tensor:
        """The middle of each level."""
        return self.low + (self.high - self.low) * (integers / (2**self.bits - 1))

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


@stored("weight")
class IntervalWeight(IntervalQuantizer):
    """A weight on `scale` (2 levels - 1): an even number of values around zero, none of them zero."""

    kind, form = "weight", "interval"
    holds_zero = False

    def __init__(self, weight: Tensor, bits: int, search: bool) -> None:
        """Starts where the error is least, or (`search` false) at 3 standard deviations around zero with the
        weight's mean magnitude kept, as EWGS does."""
        weight = weight.detach().float().cpu()
        half = 3 * weight.std(correction=0).item()
        if search:
            half = _least_error_half(weight, bits)
        half = max(half, SMALLEST_WIDTH)
        super().__init__(-half, half, bits)
        with torch.no_grad():
            values = 2 * self.levels(weight) - 1
            self.scale.fill_(half if search else weight.abs().mean().item() / values.abs().mean().item())

    def forward(self, weight: Tensor) -> Tensor:
        """Any shape -> the same."""
        return self.scale * (2 * self.levels(weight) - 1)

    @torch.no_grad()
    def settled(self, weight: Tensor) -> Tensor:
        """The middles of the weight's levels: nothing of the weight but its levels is left."""
        return self.values(self.integers(weight))

    @property
    def signed(self) -> bool:
        """Always."""
        return True


@stored("activation")
class IntervalActivation(IntervalQuantizer):
    """An activation on `low` + `scale` levels."""

    kind, form = "activation", "interval"

    def __init__(self, histogram: Histogram, bits: int, search: bool) -> None:
        """Starts where the error is least, or (`search` false) at 3 standard deviations with the mean kept:
        those of the Gaussian that a one-sided tensor is the half of, or around a two-sided one's mean."""
        values, counts = histogram.occupied()
        share = (counts / counts.sum()).double()
        mean = (share * values).sum().item()
        if search:
            step, zero = (part.item() for part in lp_affine(values[None], bits, counts, each_end=True))
            low, high = -zero * step, (2**bits - 1 - zero) * step
        else:
            std = (share * (values - mean).square()).sum().sqrt().item()
            one_sided = histogram.low >= 0
            low = histogram.low if one_sided else mean - 3 * std
            high = 3 * std / math.sqrt(1 - 2 / math.pi) if one_sided else mean + 3 * std
        high = max(high, low + SMALLEST_WIDTH)
        super().__init__(low, high, bits)
        with torch.no_grad():
            level = (share * self.levels(values)).sum().item()
            self.scale.fill_(high - low if search or level == 0 else (mean - low) / level)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return self.low + self.scale * self.levels(x)

    @property
    def signed(self) -> bool:
        """Whether the interval reaches below zero."""
        return bool(self.low < 0)


def _least_error_half(weight: Tensor, bits: int) -> float:
    """Half the width of the interval around zero on which the weight's squared error is least."""
    largest = weight.abs().max()
    halves = [largest * ratio / NUM_RATIOS for ratio in range(1, NUM_RATIOS + 1)]
    errors = [
        (half * (2 * interval_levels(weight, -half, half, bits) - 1) - weight).square().sum()
        for half in halves
    ]
    return halves[int(torch.stack(errors).nan_to_num(torch.inf).argmin())].item()
