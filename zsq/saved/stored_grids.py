"""Which quantizers a file can hold; weights as the integers of their grids."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

import torch
from torch import Tensor

from zsq import quantizers
from zsq.contract import Form
from zsq.core.errors import OptionError
from zsq.quantizers.grids import STORED, Quantizer
from zsq.widths import Bits, Kind

# Of students that programs of 8-bit integers take.
WIDTHS = (Bits(8, 8), Bits(4, 8))

# Every grid's file puts its own class into `STORED`.
for found in iter_modules(quantizers.__path__):
    import_module(f"{quantizers.__name__}.{found.name}")


def is_stored(module: object) -> bool:
    """Whether a file can hold this quantizer; not so a subclass, which may do anything."""
    return type(module) in STORED.values()


def no_onnx_form(form: Form) -> str | None:
    """What QuantizeLinear of ONNX lacks for grids of this form; None where it lacks nothing. A form that no
    quantizer has is of a student that mixes several in one layer."""
    classes = [cls for (each, _), cls in STORED.items() if each == form]
    if not classes:
        return "several widths in one layer"
    return next((cls.no_onnx_form for cls in classes if cls.no_onnx_form is not None), None)


def check_widths(option: str, bits: Bits, first_last: int | None) -> None:
    """Check that a file of 8-bit integers, the one that `option` names, can hold these widths.

    Raises:
        OptionError: it cannot.
    """
    if bits not in WIDTHS or first_last not in (None, 8):
        ends = "" if first_last is None else f" --first-last {first_last}"
        expected = f"{' or '.join(map(str, WIDTHS))}, with --first-last 8 if any"
        raise OptionError(f"{option} of {bits}{ends}", expected, "it holds 8-bit integers")


def weight_integers(weight: Tensor, quantizer: Quantizer) -> Tensor:
    """The grid's integers of `weight` in an 8-bit container; the quantizer's `values` of them are what it
    makes of `weight`."""
    container = torch.int8 if quantizer.bounds[0] < 0 else torch.uint8
    stored = quantizer.integers(weight).to(container)
    values = quantizer(quantizer.values(stored.float()))
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
    if (form, kind) not in STORED:
        raise ValueError(f"a {form} grid, which no {kind} has")
    return STORED[form, kind].restored(kind, bits, bounds, tensors)
