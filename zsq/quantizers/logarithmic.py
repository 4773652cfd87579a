"""The log-sqrt2 grid of RepQ-ViT (Li et al., ICCV 2023) for the outputs of a softmax: D 2^(-q/2) for q in
0..2^b-1, and zero for what rounds to less. Zero comes beside the 2^b levels, as published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from zsq.quantizers.grids import SMALLEST_STEP, Quantizer, stored
from zsq.quantizers.observers import Histogram
from zsq.quantizers.ranges import PERCENTILES, quantile
from zsq.widths import Kind


def log_sqrt2(x: Tensor, largest: Tensor | float, bits: int) -> Tensor:
    """`x` on the grid below `largest`, float32, same shape; what is not above zero becomes zero."""
    levels, quotient = 2**bits, -2 * (x.float() / largest).log2()
    exponent = quotient.round().clamp(min=0)
    # The logarithm of a value below zero is NaN, which no comparison holds for.
    return torch.where(exponent < levels, largest * torch.exp2(-exponent / 2), 0.0)


@stored("activation")
class LogSqrt2Quantizer(Quantizer):
    """An activation without values below zero; `largest` is the largest value of its grid."""

    kind, form = "activation", "log-sqrt2"
    no_onnx_form = "a logarithmic scale"
    largest: Tensor

    def __init__(self, largest: Tensor | float, bits: int) -> None:
        super().__init__()
        start = torch.as_tensor(largest, dtype=torch.float32).detach().clone()
        self.register_buffer("largest", start.clamp(min=SMALLEST_STEP))
        self.bits = bits

    @classmethod
    def searched(cls, histogram: Histogram, bits: int) -> Self:
        """The grid of the least squared error whose `largest` is one of the upper `PERCENTILES`."""
        values, counts = histogram.occupied()
        ends = [max(quantile(histogram, p), SMALLEST_STEP) for p in PERCENTILES]
        errors = [((log_sqrt2(values, end, bits) - values).square() * counts).sum().item() for end in ends]
        return cls(ends[errors.index(min(errors))], bits)

    @classmethod
    def restored(cls, kind: Kind, bits: int, bounds: tuple[int, int], tensors: Mapping[str, Tensor]) -> Self:
        """See `Quantizer.restored`."""
        largest = tensors["largest"]
        if bounds != (0, 2**bits - 1) or largest.dim() or not bool(largest > 0):
            raise ValueError("no log-sqrt2 grid below one positive value")
        return cls(largest, bits)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same, with gradient 1 everywhere."""
        return log_sqrt2(x.detach(), self.largest, self.bits) + (x.float() - x.detach().float())

    @property
    def num_scales(self) -> int:
        """Per tensor."""
        return 1

    @property
    def signed(self) -> bool:
        """Never."""
        return False

    @property
    def bounds(self) -> tuple[int, int]:
        """0 and 2^b - 1."""
        return 0, 2**self.bits - 1

    def extra_repr(self) -> str:
        """Shown by print(network)."""
        return f"activation, {self.bits} bits below {self.largest.item():.4g}"
