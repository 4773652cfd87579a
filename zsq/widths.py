"""Bit widths: which ones a quantizer may have, and which quantizer of a student has how many bits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from zsq.core.errors import OptionError
from zsq.core.records import read_csv
from zsq.core.wording import quantity

LEAST_BITS, MOST_BITS = 1, 8
FLOAT_BITS = 32
COLUMNS = ["row", "bits"]

# Of one quantizer, and of a layer that may stay in float.
Width = Annotated[int, Field(ge=LEAST_BITS, le=MOST_BITS)]
WidthOrFloat = Width | Literal[32]
# Of an affine grid: with 1 bit it would have zero and one more value.
GridWidth = Annotated[int, Field(ge=2, le=MOST_BITS)]
# What a quantizer stands at.
Kind = Literal["weight", "activation"]
# Row of the table of quantized tensors -> its width.
Rows = Mapping[str, int]


def kind_of(row: str) -> Kind:
    """Which kind of tensor a row of a student's table is, by its name."""
    return "weight" if row.endswith(".weight") else "activation"


def is_width(bits: int) -> bool:
    """Whether `bits` is a quantizer's width, or float's."""
    return isinstance(bits, int) and (LEAST_BITS <= bits <= MOST_BITS or bits == FLOAT_BITS)


def check_first_last(bits: int | None) -> None:
    """Check the width of the first and the last layer; None is the student's own policy.

    Raises:
        OptionError: not 1..8 or 32.
    """
    if bits is not None and not is_width(bits):
        found = f"--first-last {bits}"
        raise OptionError(found, f"{LEAST_BITS}..{MOST_BITS}, or {FLOAT_BITS} for float")


@dataclass(frozen=True)
class Bits:
    """Bit widths of weights and activations, and of single rows that have their own; 32 is float.

    `own`: (name of the row, width) in the order of names; see `with_rows`.
    """

    weights: int
    activations: int
    own: tuple[tuple[str, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Bits:
        """`W4A4` -> Bits(4, 4).

        Raises:
            OptionError: not of that form, or outside W1..W8, W32, A1..A8, A32.
        """
        match = re.fullmatch(r"[Ww](\d{1,2})[Aa](\d{1,2})", text.strip())
        widths = [int(part) for part in match.groups()] if match else []
        if not widths or not all(map(is_width, widths)):
            one, other = (f"{x}{LEAST_BITS}..{x}{MOST_BITS} or {x}{FLOAT_BITS}" for x in "WA")
            raise OptionError(f"bits '{text}'", f"{one} with {other}, as in W4A4")
        return cls(widths[0], widths[1])

    def with_rows(self, rows: Rows) -> Bits:
        """These, but with `rows` (name -> width, 32 for float) in place of all other rules.

        Raises:
            OptionError: a width that there is not.
        """
        for name, bits in rows.items():
            if not is_width(bits):
                raise OptionError(
                    f"{bits} bits for row '{name}'", f"{LEAST_BITS}..{MOST_BITS} or {FLOAT_BITS}"
                )
        return replace(self, own=tuple(sorted(rows.items())))

    @property
    def rows(self) -> dict[str, int]:
        """Name -> width of the rows that have their own."""
        return dict(self.own)

    def quantize(self, *kinds: Kind) -> bool:
        """Whether a quantizer of one of these kinds, of any where none is named, has fewer than 32 bits."""
        found = [("weight", self.weights), ("activation", self.activations)]
        found += [(kind_of(name), width) for name, width in self.own]
        return any(width < FLOAT_BITS and kind in (kinds or (kind,)) for kind, width in found)

    @property
    def uniform(self) -> Bits:
        """These without the rows that have their own."""
        return Bits(self.weights, self.activations)

    def __str__(self) -> str:
        """`W4A4`, or `W4A4+3 rows`."""
        own = f"+{len(self.own)} rows" if self.own else ""
        return f"W{self.weights}A{self.activations}{own}"


# As folders, tables and records spell them, however a caller does.
BitsText = Annotated[str, AfterValidator(lambda text: str(Bits.parse(text)))]


@dataclass
class Widths:
    """Which quantizer has how many bits: a row's own width, else that of the first and last layer at an end
    of the network, else that of its kind."""

    bits: Bits
    first_last: int | None
    _seen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check the width of the first and the last layer.

        Raises:
            OptionError: as `check_first_last`.
        """
        check_first_last(self.first_last)

    def of(self, row: str, kind: Kind, at_end: bool) -> int:
        """The width of `row`, 32 where it stays in float; `at_end`: it is of the first or last layer."""
        self._seen.append(row)
        uniform = self.bits.weights if kind == "weight" else self.bits.activations
        if at_end and self.first_last is not None and uniform != FLOAT_BITS:
            uniform = self.first_last
        return self.bits.rows.get(row, uniform)

    def check_rows(self) -> None:
        """Refuse widths of rows that were never asked for.

        Raises:
            OptionError: of one that the network does not have.
        """
        unknown = next((name for name, _ in self.bits.own if name not in self._seen), None)
        if unknown is not None:
            near = (get_close_matches(unknown, self._seen, 1) or self._seen)[0]
            remedy = "zsq quantize prints the rows of a network"
            raise OptionError(f"bits for '{unknown}', which is no row of this network", f"'{near}'", remedy)


def check_least(student: str, least: Bits, bits: Bits, first_last: int | None) -> None:
    """Refuse widths below the `least` that a student takes.

    Raises:
        OptionError: of weights, activations, the first and last layer, or of a row.
    """
    found = [(f"{bits.uniform}", min(bits.weights - least.weights, bits.activations - least.activations))]
    if first_last is not None:
        found.append(
            (
                f"first and last layer of {quantity(first_last, 'bit')}",
                first_last - max(least.weights, least.activations),
            )
        )
    for name, width in bits.own:
        least_of = least.weights if kind_of(name) == "weight" else least.activations
        found.append((f"{width} bits for row '{name}'", width - least_of))
    for what, above in found:
        if above < 0:
            raise OptionError(f"{what} with student {student}", f"at least {least}")


def read_widths(path: str | Path) -> dict[str, int]:
    """Row -> width of a CSV file with the header `row,bits`.

    Raises:
        OptionError: no file that can be read, another header, or a line that is no row and width.
    """
    rows: dict[str, int] = {}
    for line in read_csv(Path(path), "widths", COLUMNS):
        name, bits = line if len(line) == 2 else ("", "")
        if not name or not re.fullmatch(r"\d{1,2}", bits) or not is_width(int(bits)):
            expected = f"a row and {LEAST_BITS}..{MOST_BITS} or {FLOAT_BITS}, as in conv1.weight,8"
            raise OptionError(f"widths {path}: {','.join(line)[:60]!r}", expected)
        if name in rows:
            raise OptionError(f"widths {path}: two lines for '{name}'", "one")
        rows[name] = int(bits)
    return rows
