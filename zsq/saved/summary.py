"""What a saved student is and how it was made, as lines to print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zsq.core.files import input_path
from zsq.core.wording import quantity
from zsq.saved.choices import choice_lines
from zsq.saved.cost import student_cost
from zsq.saved.record import MadeRecord, StudentRecord
from zsq.saved.saving import RECORD, TENSORS, probe, read_student, student_files
from zsq.tasks.nesting import shapes

# A value of a file from a stranger may be of any length.
MOST_SHOWN = 60


def is_student(path: str | Path) -> bool:
    """Whether `path` is a saved student's file, or a folder with one."""
    return input_path(path, "folder").suffix in (TENSORS, RECORD) or student_files(path)[1].is_file()


def student_lines(path: str | Path) -> list[str]:
    """What `zsq inspect` says of a saved student, once it is read whole and computes.

    Raises:
        StudentFileError: as `load_student`.
    """
    record, fitted = read_student(path)
    ends = "" if record.first_last is None else f", first and last layer {record.first_last} bits"
    own = f", {quantity(len(record.widths), 'row')} with bits of their own" if record.widths else ""
    teacher, cost = record.teacher, record.cost
    lines = [
        f"student {_shown(record.student)} {record.bits}{ends}{own}, {len(record.grids)} quantized tensors",
        f"teacher {_shown(teacher.name)} {_shown(teacher.weights_sha256[:16])}, "
        f"takes {'x'.join(map(str, record.image.shape))}, of one image gives {_shown(shapes(probe(fitted)))}",
        f"{cost.bit_operations:,} bit operations (float {cost.float_bit_operations:,}), "
        f"{cost.weight_bytes:,} weight bytes (float {cost.float_weight_bytes:,}), "
        f"a mean of {student_cost(fitted).mean_bits()}",
    ]
    return [*lines, *choice_lines(fitted, fitted.shares, "images of the fit"), *_made_lines(record)]


def _made_lines(record: StudentRecord) -> list[str]:
    made = record.made
    if made is None:
        return ["how it was made is not recorded"]
    passes = ", ".join(map(_shown, made.passes)) or "none"
    return [
        f"made with seed {made.seed}, passes: {passes}",
        f"student options {_listed(made.options)}",
        *_images_lines(made),
    ]


def _images_lines(made: MadeRecord) -> list[str]:
    images = f"fitted on {quantity(made.num_images, 'image')}, sha256 {made.images_sha256[:16]}"
    if made.photo_fit is not None:
        images = f"{images}, {_shown(made.photo_fit)}"
    if made.origin is None:
        return [f"{images}, not made by a method that is known"]
    origin = made.origin
    return [
        f"{images}, method {_shown(origin.method)}, data read: {_shown(origin.data_read)}",
        f"options of the images {_listed(origin.options)}",
    ]


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{_shown(key)}={_shown(value)}" for key, value in options.items()) or "none"


def _shown(value: Any) -> str:
    """One short line without control characters."""
    text = json.dumps(value)
    text = text[1:-1] if isinstance(value, str) else text
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
