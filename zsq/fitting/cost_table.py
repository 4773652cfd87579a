"""What each layer costs at each pair of widths, as measured on a device: latency, energy, or anything that
adds up over layers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zsq.core.errors import OptionError
from zsq.core.records import read_csv
from zsq.widths import FLOAT_BITS, LEAST_BITS, MOST_BITS, is_width

COLUMNS = ["layer", "weight_bits", "activation_bits", "cost"]


@dataclass(frozen=True)
class CostTable:
    """Layer -> (bits of its weight, of its input) -> cost, in any unit. Of a product of two activations, the
    bits are those of its operands."""

    path: str
    costs: Mapping[str, Mapping[tuple[int, int], float]]

    def of(self, layer: str, left: int, right: int) -> float:
        """The cost of a layer at these bits.

        Raises:
            OptionError: the table does not say.
        """
        known = self.costs.get(layer, {})
        if (left, right) not in known:
            found = f"costs {self.path}: nothing for layer '{layer}' at W{left}A{right}"
            raise OptionError(found, "a line for each pair of bits that can be asked for")
        return known[left, right]

    def widths(self, layer: str, side: int) -> set[int]:
        """Those of a layer's weight (`side` 0) or input (1) that the table names."""
        return {pair[side] for pair in self.costs.get(layer, {})}


def read_costs(path: str) -> CostTable:
    """The table in a CSV file with the header `layer,weight_bits,activation_bits,cost`.

    Raises:
        OptionError: no file that can be read, another header, a line that is none, or a layer without a line
            for each of its weight bits with each of its activation bits.
    """
    costs: dict[str, dict[tuple[int, int], float]] = {}
    for line in read_csv(Path(path), "costs", COLUMNS):
        layer, pair, cost = _parsed(line, path)
        known = costs.setdefault(layer, {})
        if pair in known:
            raise OptionError(f"costs {path}: two lines for '{layer}' at W{pair[0]}A{pair[1]}", "one")
        known[pair] = cost
    if not costs:
        raise OptionError(f"costs {path} has no line", "one for each layer and pair of bits")
    table = CostTable(path, costs)
    for layer in costs:
        for left in sorted(table.widths(layer, 0)):
            for right in sorted(table.widths(layer, 1)):
                table.of(layer, left, right)
    return table


def _parsed(line: list[str], path: str) -> tuple[str, tuple[int, int], float]:
    layer, left, right, cost = line if len(line) == len(COLUMNS) else ("", "", "", "")
    bits = [int(text) for text in (left, right) if re.fullmatch(r"\d{1,2}", text)]
    try:
        value = float(cost)
    except ValueError:
        value = math.nan
    if not layer or len(bits) != 2 or not all(map(is_width, bits)) or not 0 <= value < math.inf:
        expected = (
            f"a layer, twice {LEAST_BITS}..{MOST_BITS} or {FLOAT_BITS}, and a cost, as in conv1,4,8,0.25"
        )
        raise OptionError(f"costs {path}: {','.join(line)[:60]!r}", expected)
    return layer, (bits[0], bits[1]), value
