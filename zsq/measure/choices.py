"""What images chose of a student whose layers have several widths: measured, and averaged over fits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from torch import Tensor

from zsq.contract import FittedStudent
from zsq.fitting.choosing import shares_on
from zsq.measure.protocol import Choices, RunRecord, by_student
from zsq.saved.choices import entropies
from zsq.saved.cost import student_cost


def choices_on(fitted: FittedStudent, pixels_NCHW: Tensor) -> Choices | None:
    """Of uint8 images of the student's spec; None of a student without choices."""
    shares = shares_on(fitted, pixels_NCHW)
    if not shares:
        return None
    operations = student_cost(replace(fitted, shares=shares)).bit_operations
    return Choices(entropies=entropies(shares), bit_operations=float(operations))


def choices_by_student(records: Iterable[RunRecord]) -> dict[str, dict[str, Choices]]:
    """Student and bits -> source -> its choices, means over fits."""
    return {
        student: {source: _mean(several) for source, several in sources.items()}
        for student, sources in by_student(records, "choices").items()
    }


def _mean(several: list[Choices]) -> Choices:
    layers = several[0]["entropies"]
    return Choices(
        entropies={layer: float(np.mean([each["entropies"][layer] for each in several])) for layer in layers},
        bit_operations=float(np.mean([each["bit_operations"] for each in several])),
    )
