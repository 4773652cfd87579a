"""Bit widths: which ones a quantizer may have, and those of a whole student."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from zsq.core.errors import OptionError

LEAST_BITS, MOST_BITS = 2, 8
FLOAT_BITS = 32

# Of one quantizer, and of a layer that may stay in float.
Width = Annotated[int, Field(ge=LEAST_BITS, le=MOST_BITS)]
WidthOrFloat = Width | Literal[32]


def is_width(bits: int) -> bool:
    """Whether `bits` is a quantizer's width, or float's."""
    return LEAST_BITS <= bits <= MOST_BITS or bits == FLOAT_BITS


def check_first_last(bits: int | None) -> None:
    """Check the width of the first and the last layer; None is the student's own policy.

    Raises:
        OptionError: not 2..8 or 32.
    """
    if bits is not None and not is_width(bits):
        found = f"--first-last {bits}"
        raise OptionError(found, f"{LEAST_BITS}..{MOST_BITS}, or {FLOAT_BITS} for float")


@dataclass(frozen=True)
class Bits:
    """Bit widths of weights and activations; 32 is float."""

    weights: int
    activations: int

    @classmethod
    def parse(cls, text: str) -> Bits:
        """`W4A4` -> Bits(4, 4).

        Raises:
            OptionError: not of that form, or outside W2..W8, W32, A2..A8, A32.
        """
        match = re.fullmatch(r"[Ww](\d{1,2})[Aa](\d{1,2})", text.strip())
        widths = [int(part) for part in match.groups()] if match else []
        if not widths or not all(map(is_width, widths)):
            one, other = (f"{x}{LEAST_BITS}..{x}{MOST_BITS} or {x}{FLOAT_BITS}" for x in "WA")
            raise OptionError(f"bits '{text}'", f"{one} with {other}, as in W4A4")
        return cls(*widths)

    def __str__(self) -> str:
        """`W4A4`."""
        return f"W{self.weights}A{self.activations}"
