"""Which quantizers a file can hold; weights as the integers of their grids."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from zsq.contract import Form
from zsq.quantizers.grids import FakeQuantizer, Kind, Quantizer
from zsq.quantizers.intervals import IntervalActivation, IntervalWeight
from zsq.quantizers.logarithmic import LogSqrt2Quantizer

CLASSES: dict[tuple[Form, Kind], type[Quantizer]] = {
    ("affine", "weight"): FakeQuantizer,
    ("affine", "activation"): FakeQuantizer,
    ("interval", "weight"): IntervalWeight,
    ("interval", "activation"): IntervalActivation,
    ("log-sqrt2", "activation"): LogSqrt2Quantizer,
}


def is_stored(module: object) -> bool:
    """Whether a file can hold this quantizer; not so a subclass, which may do anything."""
    return type(module) in CLASSES.values()


def weight_integers(weight: Tensor, quantizer: Quantizer) -> Tensor:
    """The grid's integers of `weight` in an 8-bit container; the quantizer's `values` of them are what it
    makes of `weight`."""
    container = torch.int8 if quantizer.bounds[0] < 0 else torch.uint8
    stored = quantizer.integers(weight).to(container)
    values = quantizer(quantizer.values(stored))
    assert torch.equal(values, quantizer(weight)), "the weight lies on a grid of integers"
    return stored


def restore(
    form: Form, kind: Kind, bits: int, bounds: tuple[int, int], tensors: Mapping[str, Tensor]
) -> Quantizer:
    """The quantizer of these numbers and tensors, as their names say.

    Raises:
        ValueError: they make none. KeyError: a tensor is missing.
    """
    if any(tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ValueError("a grid that is not finite float32")
    if (form, kind) not in CLASSES:
        raise ValueError(f"a {form} grid, which no {kind} has")
    return CLASSES[form, kind].restored(kind, bits, bounds, tensors)
