"""From one student to the next: which may follow which, and how both were made."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from zsq.contract import THEN, Fit, FittedStudent, Form, Student
from zsq.core.errors import MismatchError, OptionError
from zsq.quantizers.grids import Quantizer


def check_follows(student: Student, before: str, forms: Set[Form]) -> None:
    """Refuse a student that cannot start from the result of student `before`, whose grids have `forms`.

    Raises:
        OptionError: it starts from the teacher alone, takes no such grids, or has an option that only a start
            from the teacher has.
    """
    if not student.starts_from:
        found = f"student {student.name} cannot start from the result of {before}"
        raise OptionError(found, "one that trains on its grids, such as lsq-kd")
    for form in sorted(forms - student.starts_from):
        found = f"student {student.name} cannot start from {form} grids, as {before} has"
        raise OptionError(found, f"{' or '.join(sorted(student.starts_from))} grids")
    for key in student.start_options:
        value, default = getattr(student.options, key), type(student.options).model_fields[key].default
        if value != default:
            found = f"student {student.name} with {key}={value} behind {before}, whose grids it takes over"
            raise OptionError(found, f"{key}={default}")


def check_start(student: Student, fit: Fit, start: FittedStudent) -> None:
    """Refuse a fit that cannot start from this student.

    Raises:
        OptionError: as `check_follows`. MismatchError: other bits or another kind of images.
    """
    if start.shares:
        found = f"student {student.name} cannot start from the result of {start.student}"
        raise OptionError(found, "a student whose images all pass the same layers")
    forms = {part.form for part in start.network.modules() if isinstance(part, Quantizer)}
    check_follows(student, start.student, forms)
    if (start.bits, start.first_last) != (fit.bits, fit.first_last):
        found = f"a start of {start.bits}, first and last layer {start.first_last}"
        raise MismatchError(found, f"{fit.bits}, first and last layer {fit.first_last}")
    if start.spec != fit.teacher.spec:
        raise MismatchError("a start of another image spec", f"that of teacher {fit.teacher.name}")


def as_chain(start: FittedStudent, fitted: FittedStudent) -> FittedStudent:
    """What was fitted from `start`, with the name and the record of both.

    There is no record where one cannot say it, such as of two sets of images.
    """
    named = replace(fitted, student=f"{start.student}{THEN}{fitted.student}", made=None)
    first, own = start.made, fitted.made
    if first is None or own is None or replace(first, options={}) != replace(own, options={}):
        return named
    options = named_options(fitted.student, own.options)
    if THEN in start.student:
        options = {**first.options, **options}
    else:
        options = named_options(start.student, first.options) | options
    return replace(named, made=replace(own, options=options))


def named_options(student: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a chain names them: `student.option`."""
    return {f"{student}.{key}": value for key, value in options.items()}
