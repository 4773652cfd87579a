"""Quantizers as the tensors and numbers of a file and back, weights as the integers of their grids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from zsq.quantizers.grids import SMALLEST_STEP, FakeQuantizer, Kind, Quantizer
from zsq.quantizers.intervals import IntervalActivation, IntervalQuantizer, IntervalWeight

# affine: s (q - z); interval: levels between two learned ends, at a scale of their own.
Form = Literal["affine", "interval"]

FORMS: dict[type, Form] = {
    FakeQuantizer: "affine",
    IntervalWeight: "interval",
    IntervalActivation: "interval",
}


def form_of(module: object) -> Form | None:
    """How a quantizer is stored, None for anything else; a subclass may do anything."""
    return FORMS.get(type(module))


def levels_of(quantizer: Quantizer) -> tuple[int, int]:
    """The least and the largest integer."""
    if isinstance(quantizer, IntervalQuantizer):
        return 0, 2**quantizer.bits - 1
    assert isinstance(quantizer, FakeQuantizer)
    return quantizer.lo, quantizer.hi


def weight_integers(weight: Tensor, quantizer: Quantizer) -> Tensor:
    """The grid's integers of `weight` in an 8-bit container, from which `weight_values` makes what the
    quantizer makes of `weight`."""
    lo, hi = levels_of(quantizer)
    if isinstance(quantizer, IntervalQuantizer):
        integers = (quantizer.levels(weight) * hi).round()
    else:
        assert isinstance(quantizer, FakeQuantizer)
        step = quantizer.step.clamp(min=SMALLEST_STEP)
        integers = (quantizer(weight) / step).round() + quantizer.zero_point
    stored = integers.to(torch.int8 if lo < 0 else torch.uint8)
    values = quantizer(weight_values(stored, quantizer))
    assert torch.equal(values, quantizer(weight)), "the weight lies on a grid of integers"
    return stored


def weight_values(integers: Tensor, quantizer: Quantizer) -> Tensor:
    """float32 weights that the quantizer puts on these integers."""
    if isinstance(quantizer, IntervalWeight):
        return quantizer.inputs(integers)
    assert isinstance(quantizer, FakeQuantizer)
    return (integers - quantizer.zero_point) * quantizer.step.clamp(min=SMALLEST_STEP)


def restore(form: Form, kind: Kind, bits: int, lo: int, hi: int, tensors: Mapping[str, Tensor]) -> Quantizer:
    """The quantizer of these numbers and tensors, as their names say.

    Raises:
        ValueError: they make none. KeyError: a tensor is missing.
    """
    if any(tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ValueError("a grid that is not finite float32")
    if form == "affine":
        return _affine(tensors["step"], tensors["zero_point"], lo, hi, kind)
    low, high, scale = (tensors[name] for name in ("low", "high", "scale"))
    if (lo, hi) != (0, 2**bits - 1) or any(end.dim() for end in (low, high, scale)) or not bool(low < high):
        raise ValueError("no interval of two ends and a scale")
    return (IntervalWeight if kind == "weight" else IntervalActivation).of(low, high, scale, bits)


def _affine(step: Tensor, zero_point: Tensor, lo: int, hi: int, kind: Kind) -> FakeQuantizer:
    if zero_point.shape != step.shape:
        raise ValueError(f"{step.numel()} steps and {zero_point.numel()} zero points")
    if not bool((step > 0).all()):
        raise ValueError("a step that is not positive")
    whole = torch.equal(zero_point, zero_point.round())
    if not whole or int(zero_point.min()) < lo or int(zero_point.max()) > hi:
        raise ValueError(f"a zero point off the levels {lo}..{hi}")
    return FakeQuantizer(step, zero_point, lo, hi, kind)
