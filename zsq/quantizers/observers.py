"""What a tensor's values look like over streamed batches: extremes and a histogram, exact under any split.

Bins are a power of two wide and start at zero, so doubling the range merges whole bins: the counts depend on
the values alone, not on their order or batching.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zsq.core.errors import MismatchError

# Per side of zero. After doubling, more than half of the longer side is in use: 32 bins or more per step of
# an 8-bit grid, so that a search over the histogram sees what a search over the values would.
BINS_PER_SIDE = 2**14
_SMALLEST_EXPONENT = -100


@dataclass(frozen=True)
class Histogram:
    """Counts of one tensor's values, B bins a side: `counts[B + i]` (int64) lie in [i width, (i + 1) width).

    `low` and `high` are the exact extremes.
    """

    counts: Tensor
    width: float
    low: float
    high: float

    @property
    def centres(self) -> Tensor:
        """Middle of each bin, float64, kept inside the extremes."""
        index = torch.arange(len(self.counts), dtype=torch.float64) - len(self.counts) // 2
        return ((index + 0.5) * self.width).clamp(self.low, self.high)

    def occupied(self) -> tuple[Tensor, Tensor]:
        """(values, counts) of the bins that hold anything, float32."""
        held = self.counts > 0
        return self.centres[held].float(), self.counts[held].float()


class Observer(nn.Module):
    """Passes a tensor on and keeps its histogram."""

    def __init__(self, name: str) -> None:
        """`name` is for the message when values are not finite."""
        super().__init__()
        self.name = name
        self._counts = torch.zeros(2 * BINS_PER_SIDE, dtype=torch.int64)
        self._exponent = _SMALLEST_EXPONENT
        self._low, self._high = math.inf, -math.inf

    def forward(self, x: Tensor) -> Tensor:
        """`x` itself, counted.

        Raises:
            MismatchError: a value that is not finite.
        """
        values = x.detach().float().flatten()
        low, high = (bound.item() for bound in values.aminmax())
        if not math.isfinite(low) or not math.isfinite(high):
            raise MismatchError(f"the tensor {self.name} is not finite on these images", "finite activations")
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._widen(max(abs(low), abs(high)))
        index = (values * math.ldexp(1.0, -self._exponent)).floor_().to(torch.int64) + BINS_PER_SIDE
        self._counts += torch.bincount(index, minlength=2 * BINS_PER_SIDE).cpu()
        return x

    def _widen(self, largest: float) -> None:
        # Strictly inside, so that -largest and +largest both fall into a bin.
        while largest >= math.ldexp(BINS_PER_SIDE, self._exponent):
            merged = self._counts.view(-1, 2).sum(dim=1)
            self._counts = torch.nn.functional.pad(merged, (BINS_PER_SIDE // 2, BINS_PER_SIDE // 2))
            self._exponent += 1

    def histogram(self) -> Histogram:
        """Everything seen so far."""
        return Histogram(self._counts.clone(), math.ldexp(1.0, self._exponent), self._low, self._high)
