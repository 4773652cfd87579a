"""What there is: methods, teachers, students, passes and recipes with their facts, as plain data; and what
suits a teacher."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch

from zsq.config import GenerateConfig, RuntimeConfig
from zsq.contract import Fit, Generator, Silent, Teacher
from zsq.core.effort import Effort
from zsq.core.errors import UsageError, ZsqError
from zsq.core.imagespec import NATURAL_MEAN, NATURAL_STD, ImageSpec
from zsq.core.progress import duration
from zsq.core.runtime import Runtime
from zsq.core.wording import did_you_mean
from zsq.widths import Bits

TIMED_BATCH = 32
FITTED_AT = "W8A8"


def catalogue(kind: str) -> list[dict[str, Any]]:
    """One dict per entry, `name` first.

    Raises:
        UsageError: no such kind. MissingExtraError: it is of a library that is not installed.
    """
    if kind not in CATALOGUES:
        raise UsageError(
            f"zsq list {kind}", f"one of {', '.join(CATALOGUES)}", did_you_mean(kind, CATALOGUES)
        )
    return CATALOGUES[kind]()


def _methods() -> list[dict[str, Any]]:
    from zsq.generators import available_methods

    return [_facts(name, cls) | _efforts(cls) for name, cls in available_methods().items()]


def _teachers() -> list[dict[str, Any]]:
    from zsq.teacher import builtin_teachers

    return [{"name": name, "summary": description} for name, description in builtin_teachers()]


def _timm_models() -> list[dict[str, Any]]:
    from zsq.teacher.timm_models import timm_names

    return [{"name": name} for name in timm_names()]


def _students() -> list[dict[str, Any]]:
    from zsq.students import STUDENTS

    return [_facts(name, cls) | {"fewest_bits": str(cls.least_bits)} for name, cls in STUDENTS.items()]


def _passes() -> list[dict[str, Any]]:
    from zsq.passes import PASSES

    return [{"name": name, "summary": one.summary} for name, one in PASSES.items()]


def _recipes() -> list[dict[str, Any]]:
    from zsq.recipefile import recipe_titles

    return [{"name": name, "summary": title} for name, title in recipe_titles().items()]


CATALOGUES: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "methods": _methods,
    "teachers": _teachers,
    "timm": _timm_models,
    "students": _students,
    "passes": _passes,
    "recipes": _recipes,
}


def methods_for(teacher: Teacher) -> list[dict[str, Any]]:
    """One dict per method, first those that suit `teacher`, in the order in which to try them; `refusal` says
    of the others why they do not."""
    from zsq.generators import available_methods, suited

    known = available_methods()
    return [
        {"name": name, "summary": known[name].facts.summary} | ({"refusal": reason} if reason else {})
        for name, reason in suited(teacher).items()
    ]


@dataclass(frozen=True)
class Suited:
    """A method or student, for a teacher: the seconds it takes here, or in one line why it cannot be.

    `passes`: teacher passes per image of a method, with its shared training counted in.
    """

    name: str
    seconds: float | None
    refusal: str = ""
    passes: int = 0


def suited_methods(
    teacher: Teacher, count: int, config: RuntimeConfig, seconds_per_pass: float
) -> list[Suited]:
    """Every method, making `count` images by its defaults where a teacher pass takes `seconds_per_pass`."""
    from zsq.engine.estimate import forward_gflops, job_seconds
    from zsq.engine.finite import require_finite_outputs
    from zsq.generators import suited
    from zsq.synthesis.resolved import method_options

    require_finite_outputs(teacher)
    gflops, found = forward_gflops(teacher), []
    for name, reason in suited(teacher).items():
        if reason is not None:
            found.append(Suited(name, None, reason))
            continue
        asked = GenerateConfig(teacher=teacher.name, method=name, set={})
        cls, _, options = method_options(asked, teacher.spec, count)
        passes = cls.teacher_passes(options, count)
        runtime = Runtime.resolve(**config.model_dump(), total_gflops=gflops * passes)
        found.append(Suited(name, job_seconds(seconds_per_pass, passes, runtime), passes=passes // count))
    return found


def suited_students(
    teacher: Teacher, count: int, config: RuntimeConfig, seconds_per_pass: float
) -> list[Suited]:
    """Every student, fitted on `count` images at `FITTED_AT` by its defaults; as `suited_methods`."""
    from zsq.engine.estimate import fit_passes, job_seconds
    from zsq.placement.sites import check_placeable
    from zsq.students import STUDENTS, create

    runtime = Runtime.resolve(**config.model_dump())
    black = torch.zeros(1, *teacher.spec.shape, dtype=torch.uint8)
    found, bits = [], Bits.parse(FITTED_AT)
    for name in STUDENTS:
        student = create(name, teacher.spec, {}, runtime)
        try:
            student.check(Fit(teacher, black, bits, None, 0, Silent()))
            check_placeable(teacher.network, teacher.example(), bits)
        except ZsqError as error:
            found.append(Suited(name, None, str(error)))
            continue
        passes = round(fit_passes(student, teacher, count, bits))
        found.append(Suited(name, job_seconds(seconds_per_pass, passes, runtime)))
    return found


def timed_pass(teacher: Teacher) -> float:
    """Seconds of one image's teacher pass here and now; the fastest of several, since a machine is shared."""
    from zsq.engine.estimate import seconds_per_image_iteration

    return min(seconds_per_image_iteration(teacher, TIMED_BATCH) for _ in range(3))


def suited_lines(heading: str, found: Sequence[Suited]) -> list[str]:
    """Those that suit with their times, and a line for each reason that the others do not."""
    suit = [each for each in found if each.seconds is not None]
    times = [f"    {each.name} {_time(each)}" for each in suit]
    refused: dict[str, list[str]] = {}
    for each in found:
        if each.seconds is None:
            refused.setdefault(_without_name(each), []).append(each.name)
    others = [f"    not {', '.join(names)}: {why}" for why, names in refused.items()]
    return [heading, *(times or ["    none"]), *others]


def _time(suited: Suited) -> str:
    # Images that no pass made are drawn, in a time that is not estimated.
    if not suited.seconds:
        return "no passes"
    return duration(suited.seconds) + (f", {suited.passes} passes per image" if suited.passes else "")


def _without_name(refused: Suited) -> str:
    """Why it does not suit, in words that are the same for all with this reason."""
    # Not in the names of others, such as kd in lsq-kd.
    name = rf"(?<![\w-])(student )?{re.escape(refused.name)}(?![\w-])"
    reason = refused.refusal.split("; this teacher")[0]
    return re.sub(name, "it", re.sub(f"^{name}: ", "", reason))


def _efforts(cls: type[Generator]) -> dict[str, Any]:
    """How many iterations each effort is at 224 px, and what was measured of them."""
    from zsq.generators import effort_iterations, measured

    if "iterations" not in cls.options_class.model_fields:
        return {}
    spec = ImageSpec(size=(224, 224), mean=NATURAL_MEAN, std=NATURAL_STD)
    numbers = {effort: effort_iterations(cls, spec, effort) for effort in get_args(Effort)}
    return {
        "iterations": ", ".join(f"{effort} {number}" for effort, number in numbers.items()),
        "measured": measured(cls),
    }


def _facts(name: str, cls: Any) -> dict[str, Any]:
    facts = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(cls.facts).items()}
    defaults = {
        key: field.default
        for key, field in cls.options_class.model_fields.items()
        if field.default_factory is None  # `own` of mixed holds the options of the student inside
    }
    return {"name": name, **facts, "options": ", ".join(f"{k}={v}" for k, v in defaults.items())}
