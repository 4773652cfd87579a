"""Each source against real images and against noise, where figures have replicates: for embedders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zsq.measure.confidence import Interval, RowKey, paired_interval
from zsq.measure.gap import Row, row_key
from zsq.measure.protocol import NOISE, REAL


@dataclass(frozen=True)
class Contrast:
    """`value` of one row, and what it is over real images and over noise, with paired 95 % intervals.

    In points; None for a source against itself, or where the other is not there.
    """

    source: str
    student: str
    bits: str
    num_images: int
    metric: str
    value: float
    minus_real: float | None
    minus_real95: Interval | None
    minus_noise: float | None
    minus_noise95: Interval | None


def contrasts(rows: Sequence[Row], replicates: Mapping[RowKey, np.ndarray]) -> list[Contrast]:
    """One per row that has replicates, metric by metric within each student and bits."""
    means = {row_key(row, row.source): row.mean for row in rows}
    found = []
    for row in rows:
        own = row_key(row, row.source)
        if own not in replicates:
            continue
        against: list[float | Interval | None] = []
        for source in (REAL, NOISE):
            other = row_key(row, source)
            there = other in replicates and other != own
            against += [
                row.mean - means[other] if there else None,
                paired_interval(replicates[own], replicates[other]) if there else None,
            ]
        found.append(Contrast(*own, row.mean, *against))  # type: ignore[arg-type]
    order = list(dict.fromkeys((c.student, c.bits, c.num_images, c.metric) for c in found))
    return sorted(found, key=lambda c: order.index((c.student, c.bits, c.num_images, c.metric)))
