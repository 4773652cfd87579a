"""Students one after another: each starts from the network, weights and grids that the one before left."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import SerializerFunctionWrapHandler, create_model, model_serializer, model_validator

from zsq.contract import THEN, Facts, Fit, FittedStudent, Student, Teacher
from zsq.core.errors import OptionError
from zsq.core.imagespec import ImageSpec
from zsq.core.options import Options
from zsq.core.runtime import Runtime
from zsq.fitting.starts import check_follows, named_options
from zsq.widths import Bits


class ChainOptions(Options):
    """A field for each student, with its options. Outside they are `student.option`, all in one table."""

    @model_validator(mode="before")
    @classmethod
    def _by_student(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        whole: dict[str, Any] = {key: value for key, value in values.items() if "." not in key}
        for key in values.keys() - whole.keys():
            student, _, option = key.partition(".")
            whole.setdefault(student, {})[option] = values[key]
        return whole

    @model_serializer(mode="wrap")
    def _named(self, inner: SerializerFunctionWrapHandler) -> dict[str, Any]:
        named: dict[str, Any] = {}
        for student, options in inner(self).items():
            named |= named_options(student, options)
        return named

    @classmethod
    def resolve(
        cls,
        owner: str,
        spec: ImageSpec,
        overrides: Mapping[str, Any],
        iterations: int | None = None,
        batch: int | None = None,
    ) -> Self:
        """See `Options.resolve`; of every student. An override is named `student.option`, or is a student's
        table of overrides."""
        given: dict[str, dict[str, Any]] = {student: {} for student in cls.model_fields}
        for key, value in overrides.items():
            student, _, option = key.partition(".")
            if student not in given or not (option or isinstance(value, Mapping)):
                known = ", ".join(given)
                raise OptionError(f"{owner} has no option '{key}'", f"STUDENT.KEY with a student of {known}")
            more = {option: value} if option else value
            twice = next((name for name in more if name in given[student]), None)
            if twice is not None:
                raise OptionError(f"{owner}: two values for {student}.{twice}", "one")
            given[student] |= more
        resolved: dict[str, Any] = {}
        for student, field in cls.model_fields.items():
            own: Any = field.annotation
            resolved[student] = own.resolve(f"student {student}", spec, given[student], iterations, batch)
        return cls(**resolved)

    def declared_ours(self, spec: ImageSpec) -> dict[str, tuple[Any, Any]]:
        """See `Options.declared_ours`."""
        found: dict[str, tuple[Any, Any]] = {}
        for student in type(self).model_fields:
            found |= named_options(student, getattr(self, student).declared_ours(spec))
        return found


class Chain(Student):
    """Fits the first student to the teacher, each other one from the result so far, on the same images and at
    the same bits."""

    kinds: ClassVar[tuple[type[Student], ...]]
    options: ChainOptions

    def __init__(self, options: ChainOptions, runtime: Runtime) -> None:
        """Make the students.

        Raises:
            OptionError: one that cannot start from the result of the one before.
        """
        super().__init__(options, runtime)
        self.students = tuple(kind(getattr(options, kind.name), runtime) for kind in self.kinds)
        self.refused_passes = {
            name: why for student in self.students for name, why in student.refused_passes.items()
        }
        for before, after in itertools.pairwise(self.students):
            check_follows(after, before.name, {before.form})

    @property
    def quantizes_teacher(self) -> bool:
        """As the first."""
        return self.students[0].quantizes_teacher

    def first_last_bits(self, asked: int | None) -> int | None:
        """Those of the first student, which the others keep."""
        return self.students[0].first_last_bits(asked)

    def images_trained(self, teacher: Teacher, num_images: int, bits: Bits) -> float:
        """Those of all."""
        return sum(student.images_trained(teacher, num_images, bits) for student in self.students)

    def training_work(self, teacher: Teacher, num_images: int, bits: Bits) -> float:
        """That of all."""
        return sum(student.training_work(teacher, num_images, bits) for student in self.students)

    def check(self, fit: Fit) -> None:
        """See `Student.check`; of every student, before the first fit."""
        super().check(fit)
        for student in self.students:
            student.check(fit)

    def run(self, fit: Fit) -> FittedStudent:
        """The last one's result."""
        for student in self.students:
            fitted = student.run(fit)
            fit = replace(fit, start=fitted, first_last=fitted.first_last)
        return fitted


@cache
def chain_of(kinds: tuple[type[Student], ...]) -> type[Student]:
    """The chain of these students, two or more, no two of one name."""
    fields: dict[str, Any] = {kind.name: (kind.options_class, kind.options_class()) for kind in kinds}
    stated = {
        "__doc__": Chain.__doc__,
        "name": THEN.join(kind.name for kind in kinds),
        "facts": Facts(
            paper="; ".join(kind.facts.paper for kind in kinds),
            summary=" Then: ".join(kind.facts.summary for kind in kinds),
            needs_batch_norm=any(kind.facts.needs_batch_norm for kind in kinds),
            needs_layer_norm=any(kind.facts.needs_layer_norm for kind in kinds),
        ),
        "kinds": kinds,
        "options_class": create_model("ChainOptions", __base__=ChainOptions, **fields),
        "folds_batch_norm": any(kind.folds_batch_norm for kind in kinds),
        "form": kinds[-1].form,
        "least_bits": Bits(
            max(kind.least_bits.weights for kind in kinds), max(kind.least_bits.activations for kind in kinds)
        ),
    }
    return type("Chain", (Chain,), stated)
