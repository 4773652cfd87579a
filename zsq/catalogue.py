"""What there is: methods, teachers, students, passes and recipes with their facts, as plain data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

from zsq.contract import Generator
from zsq.core.effort import Effort
from zsq.core.errors import UsageError
from zsq.core.imagespec import NATURAL_MEAN, NATURAL_STD, ImageSpec

KINDS = ("methods", "teachers", "students", "passes", "recipes")


def catalogue(kind: str) -> list[dict[str, Any]]:
    """One dict per entry, `name` first.

    Raises:
        UsageError: no such kind.
    """
    if kind == "teachers":
        from zsq.teacher import builtin_teachers

        return [{"name": name, "summary": description} for name, description in builtin_teachers()]
    if kind == "methods":
        from zsq.generators import available_methods

        return [_facts(name, cls) | _efforts(cls) for name, cls in available_methods().items()]
    if kind == "students":
        from zsq.students import STUDENTS

        return [_facts(name, cls) for name, cls in STUDENTS.items()]
    if kind == "passes":
        from zsq.passes import PASSES

        return [{"name": name, "summary": one.summary} for name, one in PASSES.items()]
    if kind == "recipes":
        from zsq.config import recipe_titles

        return [{"name": name, "summary": title} for name, title in recipe_titles().items()]
    raise UsageError(f"zsq list {kind}", f"one of {', '.join(KINDS)}")


def _efforts(cls: type[Generator]) -> dict[str, Any]:
    """How many iterations each effort is at 224 px, and what was measured of them."""
    from zsq.generators import effort_iterations

    if "iterations" not in cls.options_class.model_fields:
        return {}
    spec = ImageSpec(size=(224, 224), mean=NATURAL_MEAN, std=NATURAL_STD)
    numbers = {effort: effort_iterations(cls, spec, effort) for effort in get_args(Effort)}
    return {
        "iterations": ", ".join(f"{effort} {number}" for effort, number in numbers.items()),
        "measured": cls.curve.measured if cls.curve else "not measured",
    }


def _facts(name: str, cls: Any) -> dict[str, Any]:
    facts = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(cls.facts).items()}
    defaults = {key: field.default for key, field in cls.options_class.model_fields.items()}
    return {"name": name, **facts, "options": ", ".join(f"{k}={v}" for k, v in defaults.items())}
