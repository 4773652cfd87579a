"""Each source less real images and less noise, with intervals; for networks that have replicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zsq.measure.confidence import Interval, RowKey, paired_interval
from zsq.measure.gap import Row, row_key
from zsq.measure.protocol import NOISE, REAL


@dataclass(frozen=True)
class Contrast:
    """`value` of one row; that less real images' and less noise's, with paired 95 % intervals; in points.

    None where a source would be compared with itself, or the other source is missing.
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
    """One per row that has replicates: by student and bits, then by metric, then by source."""
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
        named = (row.source, row.student, row.bits, row.num_images, row.metric)
        found.append(Contrast(*named, row.mean, *against))  # type: ignore[arg-type]
    order = list(dict.fromkeys((c.student, c.bits, c.metric) for c in found))
    return sorted(found, key=lambda c: order.index((c.student, c.bits, c.metric)))
