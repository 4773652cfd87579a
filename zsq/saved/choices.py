"""What a controller chose, as lines to print: bits per layer, entropy, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from zsq.contract import FittedStudent
from zsq.placement.choices import widths_of
from zsq.saved.cost import student_cost

# Bits of entropy of a layer below which its choice is none.
LEAST_ENTROPY = 0.01


def entropy(shares: list[float]) -> float:
    """Of a choice with these shares, in bits."""
    return sum(share * math.log2(1 / share) for share in shares if share > 0)


def entropies(shares: Mapping[str, float]) -> dict[str, float]:
    """Layer -> entropy of its choice in bits, of shares as `FittedStudent.shares`."""
    return {layer: entropy([shares[name] for name in names]) for layer, names in widths_of(shares).items()}


def always_same(of_layers: Mapping[str, float]) -> bool:
    """Whether these entropies say that every image gets the same bits: the controller has failed."""
    return max(of_layers.values()) < LEAST_ENTROPY


def choice_lines(fitted: FittedStudent, shares: Mapping[str, float], images: str) -> list[str]:
    """A line per layer that has several widths, and one for all; none of a student without such layers.

    Args:
        shares: as `FittedStudent.shares`, measured on any images.
        images: how the lines call these.
    """
    if not shares:
        return []
    bits = {row.name: row.bits for row in fitted.tensors}
    of_layers, lines = entropies(shares), []
    for layer, names in widths_of(shares).items():
        said = [f"{bits[f'{name}.weight']} bits {shares[name]:.0%}" for name in names]
        lines.append(f"{layer}: {', '.join(said)} of {images}, entropy {of_layers[layer]:.2f}")
    cost = student_cost(replace(fitted, shares=shares)).bit_operations
    verdict = "; all get the same bits: the controller has failed" if always_same(of_layers) else ""
    mean = sum(of_layers.values()) / len(of_layers)
    return [*lines, f"on {images}: {cost:,} bit operations, mean entropy of the choices {mean:.2f}{verdict}"]
