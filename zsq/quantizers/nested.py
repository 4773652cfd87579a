"""Nested weights: the integers of k bits are the first k bits of those of `MOST_BITS` (vertical layering, Wu
et al. 2022), so that a network of any width is read off one of the full width.

H is `MOST_BITS`, C output channels. q_k = floor(q_H / 2^(H-k)), an arithmetic shift. A weight of k bits is
s_k (q_k + m_k), with the middle m_k = (1 - 2^-(H-k)) / 2 of the integers that q_k stands for: 0 at H, and
near 1/2 below, where no weight is zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from zsq.quantizers.grids import SMALLEST_STEP, FakeQuantizer, Quantizer, clip, integer_range, stored
from zsq.widths import MOST_BITS, Kind


def prefix(integers: Tensor, shift: Tensor | float) -> Tensor:
    """The leading bits of signed integers: floor(q / shift), `shift` a power of two."""
    return (integers / shift).floor()


def middle(bits: int) -> float:
    """m_k: what is added to the first `bits` bits of an integer for those that follow."""
    return (1 - 2.0 ** (bits - MOST_BITS)) / 2


@stored("weight")
class NestedWeight(Quantizer):
    """A weight on s (q + m), of -2^(b-1)..2^(b-1)-1 and a scale per output channel; rounds to the nearest."""

    kind, form = "weight", "nested"
    holds_zero = False
    no_onnx_form = "levels with zero between them"
    scale: Tensor

    def __init__(self, scale: Tensor, bits: int) -> None:
        """`scale` is (C, 1, ...), as many axes as the weight has."""
        super().__init__()
        self.bits, self.middle = bits, middle(bits)
        self.register_buffer("scale", scale.detach().clone().float().clamp(min=SMALLEST_STEP))

    @classmethod
    def restored(cls, kind: Kind, bits: int, bounds: tuple[int, int], tensors: Mapping[str, Tensor]) -> Self:
        """See `Quantizer.restored`."""
        scale = tensors["scale"]
        if (
            bounds != integer_range(bits, signed=True)
            or not scale.dim()
            or not 0 < len(scale) == scale.numel()
        ):
            raise ValueError(f"no nested grid of {bits} bits with a scale per channel")
        if not bool((scale > 0).all()):
            raise ValueError("a scale that is not positive")
        return cls(scale, bits)

    def forward(self, weight: Tensor) -> Tensor:
        """(C, ...) -> the same."""
        return self.values(self.integers(weight))

    def integers(self, weight: Tensor) -> Tensor:
        """q of s (q + m)."""
        return (weight.float() / self.scale - self.middle).round().clamp(*self.bounds)

    def values(self, integers: Tensor) -> Tensor:
        """s (q + m)."""
        return (integers + self.middle) * self.scale

    @property
    def num_scales(self) -> int:
        """One per output channel."""
        return self.scale.numel()

    @property
    def signed(self) -> bool:
        """Always."""
        return True

    @property
    def bounds(self) -> tuple[int, int]:
        """-2^(b-1) and 2^(b-1) - 1."""
        return integer_range(self.bits, signed=True)

    def extra_repr(self) -> str:
        """Shown by print(network)."""
        return f"first {self.bits} of {MOST_BITS} bits, {self.num_scales} scales"


class Ladder(Quantizer):
    """A quantizer of several widths, of which it has one at a time; with a learned factor for each."""

    chosen: Tensor

    def __init__(self, widths: Sequence[int], shape: tuple[int, ...]) -> None:
        """`shape` is that of the factors of one width."""
        super().__init__()
        self.widths = tuple(widths)
        self.factor = nn.Parameter(torch.ones(len(widths), *shape))
        # A tensor and no number: a compiled step reads it anew.
        self.register_buffer("chosen", torch.tensor(0))

    def choose(self, index: int) -> None:
        """Be of width `widths[index]`."""
        self.chosen.fill_(index)


class LearnedNested(Ladder):
    """A weight on the prefix of the chosen width: s_k = f_k 2^(H-k) s, with s of the largest magnitude per
    channel and f_k learned from 1. The gradient of the weight is 1 inside the range of s."""

    kind = "weight"
    step: Tensor
    shifts: Tensor
    middles: Tensor

    def __init__(self, weight: Tensor, widths: Sequence[int]) -> None:
        shape = (len(weight), *[1] * (weight.dim() - 1))
        super().__init__(widths, shape)
        largest = weight.detach().float().flatten(1).abs().amax(dim=1)
        self.register_buffer("step", (largest / self.bounds[1]).clamp(min=SMALLEST_STEP).view(shape))
        self.register_buffer("shifts", torch.tensor([2.0 ** (MOST_BITS - k) for k in widths]))
        self.register_buffer("middles", torch.tensor([middle(k) for k in widths]))

    def forward(self, weight: Tensor) -> Tensor:
        """(C, ...) -> the same; the gradient of f_k is that of the output times s_k / f_k (q_k + m_k)."""
        low, high = self.bounds
        # What rounds to the last integer is inside.
        inside = clip(weight.float(), (low - 0.5) * self.step, (high + 0.5) * self.step)
        values, _ = self._values(weight, self.chosen)
        return values + inside - inside.detach()

    def _values(self, weight: Tensor, index: Tensor | int) -> tuple[Tensor, Tensor]:
        """Values and scales at a width."""
        whole = (weight.detach().float() / self.step).round().clamp(*self.bounds)
        scale = self.factor[index] * self.step * self.shifts[index]
        return scale * (prefix(whole, self.shifts[index]) + self.middles[index]), scale

    @torch.no_grad()
    def settled(self, weight: Tensor, bits: int) -> tuple[Tensor, NestedWeight]:
        """The weight at `bits`, and the grid that it is on."""
        values, scale = self._values(weight, self.widths.index(bits))
        return values, NestedWeight(scale, bits)

    @property
    def num_scales(self) -> int:
        """One per output channel and width at a time."""
        return self.step.numel()

    @property
    def signed(self) -> bool:
        """Always."""
        return True

    @property
    def bounds(self) -> tuple[int, int]:
        """Those of the full width."""
        return integer_range(MOST_BITS, signed=True)


class LearnedSteps(Ladder):
    """An activation on a symmetric grid with a step for each width; gradients as LSQ."""

    kind = "activation"
    step: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, grids: Sequence[FakeQuantizer], widths: Sequence[int]) -> None:
        """`grids`: how it starts at each width, all signed or none."""
        super().__init__(widths, ())
        self.register_buffer("step", torch.stack([grid.step.detach() for grid in grids]))
        for name, end in (("lowest", 0), ("highest", 1)):
            self.register_buffer(name, torch.tensor([float(grid.bounds[end]) for grid in grids]))

    def forward(self, x: Tensor) -> Tensor:
        """`x` on the grid, float32."""
        low, high = self.lowest[self.chosen], self.highest[self.chosen]
        step = (self.factor[self.chosen] * self.step[self.chosen]).clamp(min=SMALLEST_STEP)
        scale = (x.numel() / x.shape[0] * high) ** -0.5
        step = step * scale + (step - step * scale).detach()
        scaled = clip(x.float() / step, low, high)
        return (scaled + (scaled.round() - scaled).detach()) * step

    @torch.no_grad()
    def settled(self, bits: int) -> FakeQuantizer:
        """The grid at `bits`."""
        index = self.widths.index(bits)
        step = self.factor[index] * self.step[index]
        ends = int(self.lowest[index]), int(self.highest[index])
        return FakeQuantizer(step, torch.zeros_like(step), *ends, "activation")

    @property
    def num_scales(self) -> int:
        """One at a time."""
        return 1

    @property
    def signed(self) -> bool:
        """Whether it gives values below zero."""
        return bool((self.lowest < 0).any())

    @property
    def bounds(self) -> tuple[int, int]:
        """Those of the first width."""
        return int(self.lowest[0]), int(self.highest[0])
