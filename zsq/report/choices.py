"""Bits that images choose: the entropy of each layer's choice by source, and where there is none."""

from __future__ import annotations

from collections.abc import Mapping

from zsq.measure.protocol import Choices
from zsq.report.tables import Grid, number, ordered_sources
from zsq.saved.choices import always_same

TEXT = (
    "How much the width of each layer differs from one evaluation image to the next, as entropy in bits, by "
    "the source of the images of the fit: 0 where all images get the same, 1.58 where three widths are as "
    "frequent. Bit operations are those of an evaluation image on average. Means over fits."
)
ALWAYS = "always the same choice"


def choices_grid(of_source: Mapping[str, Choices]) -> Grid:
    """One line per layer, then the mean, the bit operations and, where a controller has failed, that."""
    sources = ordered_sources(of_source)
    layers = dict.fromkeys(layer for choices in of_source.values() for layer in choices["entropies"])
    known = [of_source[source] for source in sources]
    lines = [(layer, *(number(each["entropies"].get(layer)) for each in known)) for layer in layers]
    means = [sum(each["entropies"].values()) / len(each["entropies"]) for each in known]
    lines += [
        ("mean of layers", *map(number, means)),
        ("million bit operations", *(number(each["bit_operations"] / 1e6) for each in known)),
    ]
    if any(always_same(each["entropies"]) for each in known):
        lines.append(("", *(ALWAYS if always_same(each["entropies"]) else "" for each in known)))
    return Grid(("layer", *sources), tuple(lines), 1)


def choice_verdicts(choices: Mapping[str, Mapping[str, Choices]]) -> list[str]:
    """A sentence for each student that chooses for no image; none where all choose."""
    said = []
    for student, of in choices.items():
        failed = [source for source in ordered_sources(of) if always_same(of[source]["entropies"])]
        if failed:
            images = ", ".join(failed)
            said.append(f"{student} fitted on {images}: {ALWAYS} of bits, its controller has failed.")
    return said
