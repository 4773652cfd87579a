"""Students: one file each, and the one table of their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zsq.contract import Student
from zsq.errors import UnknownNameError
from zsq.imagespec import ImageSpec
from zsq.runtime import Runtime
from zsq.students.adaround import AdaRound
from zsq.students.brecq import BRECQ
from zsq.students.gdfq_ft import GDFQFT
from zsq.students.genie_m import GenieM
from zsq.students.kd import KD
from zsq.students.lsq_kd import LSQKD
from zsq.students.ptq import PTQ
from zsq.students.qdrop import QDrop
from zsq.students.qfd import QFD
from zsq.students.quantface import QuantFace

STUDENTS: dict[str, type[Student]] = {
    "ptq": PTQ,
    "adaround": AdaRound,
    "brecq": BRECQ,
    "qdrop": QDrop,
    "genie-m": GenieM,
    "kd": KD,
    "gdfq-ft": GDFQFT,
    "lsq-kd": LSQKD,
    "qfd": QFD,
    "quantface": QuantFace,
}


def create(
    name: str, spec: ImageSpec, options: Mapping[str, Any], runtime: Runtime, iterations: int | None = None
) -> Student:
    """The student `name` with `options` over its defaults for images of `spec`.

    Raises:
        UnknownNameError: no such student.
        OptionError: an option it does not have, or of a wrong value.
    """
    if name not in STUDENTS:
        raise UnknownNameError("student", name, STUDENTS)
    student = STUDENTS[name]
    resolved = student.options_class.resolve(f"student {name}", spec, options, iterations)
    return student(resolved, runtime)
