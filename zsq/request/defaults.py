"""What a request leaves open is chosen here: one table, and which of its rows a teacher gets.

docs/choosing.md says what each number rests on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from zsq.config import GenerateConfig
from zsq.contract import Fit, Silent, Student, Teacher
from zsq.core.errors import MismatchError, NoBatchNormError, UsageError
from zsq.core.runtime import Runtime
from zsq.engine.estimate import forward_gflops
from zsq.generators import require
from zsq.students import create
from zsq.tasks.classify import Classify
from zsq.widths import FLOAT_BITS, Bits

# Where images are asked for and no bits are known.
USUAL_BITS = Bits(4, 4)


@dataclass(frozen=True)
class Defaults:
    """A row of the table, or what a teacher gets from it.

    Attributes:
        side: of networks whose longer side takes at least so many pixels.
        bits: at widths of which the narrower has at least so many bits.
        activations: at activations of at most so many bits.
        gflops: of networks whose forward pass of one image takes at most so many 10^9 operations, a
            multiply-add counted as two.
        method: how images are made; of networks that have the layers for it.
        count: number of images.
        iterations: of the method, None for its own.
        students: the first that can learn from the teacher.
        options: of the first student, over its own defaults.
        notes: lines to say where a teacher does not get what its row is measured with.
    """

    side: int
    bits: int
    method: str
    count: int
    iterations: int | None
    students: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    activations: int = FLOAT_BITS
    gflops: float = math.inf
    notes: tuple[str, ...] = ()

    @property
    def student(self) -> str:
        """Who is fitted on them."""
        return self.students[0]

    def fits(self, teacher: Teacher, bits: Bits) -> bool:
        """Whether this row is of such teachers and widths, whatever its method needs."""
        return (
            longest_side(teacher) >= self.side
            and min(bits.weights, bits.activations) >= self.bits
            and bits.activations <= self.activations
            and (self.gflops == math.inf or forward_gflops(teacher) <= self.gflops)
        )

    def completed(self, config: GenerateConfig, with_count: bool = True) -> GenerateConfig:
        """`config` with what it leaves open: number of images, and iterations of the method that they are
        of."""
        changes: dict[str, Any] = {}
        if with_count and config.count is None:
            changes["count"] = self.count
        says = config.iterations or config.effort or "iterations" in config.set
        if not says and config.method == self.method:
            changes["iterations"] = self.iterations
        return config.model_copy(update=changes)


# A teacher gets the first row that fits it and whose method suits it. The last two are of networks without
# batch norm: on images that do not come from the network, a student that trains can lose what it knows.
TABLE = (
    Defaults(64, 6, "dgh", 128, 30, ("ptq",)),
    Defaults(64, 1, "pyramid", 256, 100, ("genie-m",), {"iterations": 200}, gflops=5),
    Defaults(64, 1, "pyramid", 64, 100, ("genie-m",), {"iterations": 200}),
    Defaults(0, 6, "dgh", 256, 100, ("ptq",)),
    Defaults(0, 1, "varied", 512, 100, ("genie-m",)),
    Defaults(0, 1, "leaves", 256, None, ("repq", "ptq"), activations=5),
    Defaults(0, 1, "leaves", 256, None, ("ptq",)),
)


def longest_side(teacher: Teacher) -> int:
    """Of the images that the network takes, in pixels."""
    return max(teacher.spec.network_size)


def choose(teacher: Teacher, bits: Bits = USUAL_BITS) -> Defaults:
    """What `teacher` gets at `bits`."""
    row, notes = _suited_row([row for row in TABLE if row.fits(teacher, bits)], teacher)
    if not isinstance(teacher.task, Classify):
        notes.append(f"the defaults were measured on classifiers, not for the task {teacher.task.name}")
    students = _suited_students(row, teacher, bits)
    own = row.options if students[0] == row.student else {}
    return dataclasses.replace(row, students=students, options=own, notes=tuple(notes))


def _suited_row(rows: Sequence[Defaults], teacher: Teacher) -> tuple[Defaults, list[str]]:
    """The first whose method suits the teacher, and why it is not the first of all."""
    why_not = ""
    for row in rows:
        try:
            require(row.method, teacher)
        except (NoBatchNormError, MismatchError) as error:
            why_not = why_not or f"instead of {row.method}: {str(error).split(';')[0]}"
            continue
        return row, [f"{row.method} {why_not}; see docs/choosing.md"] if why_not else []
    raise UsageError(f"no method suits {teacher.name} by default: {why_not}", "--method NAME")


def _suited_students(row: Defaults, teacher: Teacher, bits: Bits) -> tuple[str, ...]:
    """Those that can learn from the teacher; all, where none can: what the first lacks is then said."""
    suited = []
    for name in row.students:
        with suppress(UsageError):
            require_student(create(name, teacher.spec, {}, Runtime()), teacher, bits)
            suited.append(name)
    return tuple(suited) or row.students


def require_student(student: Student, teacher: Teacher, bits: Bits) -> None:
    """Refuse a student that cannot learn from the teacher, before images are made for it.

    Raises:
        MismatchError: it cannot.
    """
    black = torch.zeros(1, *teacher.spec.shape, dtype=torch.uint8)
    student.check(Fit(teacher, black, bits, None, 0, Silent()))


def choice_line(subject: str, parts: Sequence[tuple[Any, str]]) -> str:
    """`W4A4 of resnet18, by default: method dgh, student genie-m; as asked: 64 images`.

    Args:
        parts: (what was given, None for nothing; text, empty for what does not apply).
    """
    said = []
    for title, is_default in (("by default", True), ("as asked", False)):
        texts = [text for given, text in parts if text and (given is None) == is_default]
        if texts:
            said.append(f"{title}: {', '.join(texts)}")
    return f"{subject}, {'; '.join(said)}"
