"""A request carried out: what it leaves open is chosen and said with the time it takes, images are made or
found, and the student is fitted on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from zsq.config import GenerateConfig, QuantizeConfig, RequestConfig
from zsq.contract import Teacher
from zsq.core.errors import OptionError, UntraceableError
from zsq.core.progress import Reporter
from zsq.core.runtime import Runtime
from zsq.core.wording import quantity
from zsq.generators import method_class
from zsq.images.sources import images_for
from zsq.measure.quantize import Places, Preparation, Quantized, quantize_images, quantized
from zsq.request.defaults import Defaults, choice_line, choose, require_student
from zsq.request.forecast import forecast_of
from zsq.runfolder import OUTPUTS, folder_of_run, next_folder, plain_name
from zsq.shards.manifest import MANIFEST_NAME
from zsq.synthesis.resolved import ResolvedRun, resolve
from zsq.synthesis.synthesize import make
from zsq.teacher import load_teacher
from zsq.widths import Bits


def fulfil(asked: RequestConfig, places: Places, reporter: Reporter) -> Quantized:
    """The student that `asked` describes.

    Args:
        places: where the student is written. Without `out`: nowhere, or where images are made, below
            `OUTPUTS`. They lie beside it, in a folder that is called after teacher and method.

    Raises:
        ZsqError: what cannot work or be written is refused before any work.
    """
    _check(asked)
    if asked.images is not None and asked.student is not None:
        config = _settled(asked, asked.student, asked.set)
        return quantize_images(config, asked.images, places, reporter)
    runtime = Runtime.resolve(**asked.runtime.model_dump())
    weights = None if asked.weights is None else Path(asked.weights)
    teacher = load_teacher(asked.teacher, weights, offline=asked.offline).to(runtime.device)
    chosen = choose(teacher, Bits.parse(asked.bits))
    options = asked.set if asked.student else {**chosen.options, **asked.set}
    config = _settled(asked, asked.student or chosen.student, options)
    if asked.images is not None:
        student = (None, f"student {_student_text(config)}")
        reporter.say(choice_line(f"{config.bits} of {teacher.name}", [student]))
        prepared = Preparation.of(config, teacher, runtime, places)
        return quantized(prepared, images_for(teacher, asked.images, config, limit=asked.count), reporter)
    prepared = _prepared(config, teacher, runtime, places, reporter)
    job = _images_job(asked, chosen, teacher, OUTPUTS if places.out is None else places.out.parent)
    for line in (_choice_line(asked, config, job), *chosen.notes):
        reporter.say(line)
    found = (job.out / MANIFEST_NAME).exists()
    reporter.say(forecast_of(prepared, job.plan.count, None if found else job).line())
    folder = make(job, True, reporter)
    state = "found and verified in" if found else "made and kept in"
    reporter.say(f"{quantity(job.plan.count, 'image')} by {job.method.name}, {state} {folder}")
    return quantized(prepared, images_for(teacher, folder, config), reporter)


def _check(asked: RequestConfig) -> None:
    for option, value in (("--method", asked.method), ("--effort", asked.effort)):
        if value is not None and asked.images is not None:
            raise OptionError(f"{option} {value} with --images", "one of both: with --images none are made")
    if asked.student is None and not Bits.parse(asked.bits).with_rows(asked.widths).quantize():
        remedy = "lower the bits, or name a --student: kd prunes or trains a network in float"
        raise OptionError(f"--bits {asked.bits} without --student", "something to quantize", remedy)
    if asked.method is not None and method_class(asked.method).facts.needs_real:
        remedy = "make its images with zsq generate --real SRC, then give them as --images"
        raise OptionError(f"--method {asked.method}, which reads real images", "--images", remedy)


def _settled(asked: RequestConfig, student: str, options: dict[str, Any]) -> QuantizeConfig:
    values = {name: getattr(asked, name) for name in QuantizeConfig.model_fields if name != "student"}
    return QuantizeConfig(**(values | {"student": student, "set": options}))


def _prepared(
    config: QuantizeConfig, teacher: Teacher, runtime: Runtime, places: Places, reporter: Reporter
) -> Preparation:
    """With a place for the student where none was asked for, if it can be saved at all."""
    own = places.out or next_folder(OUTPUTS / f"{plain_name(config.teacher)}-{config.bits}")
    try:
        prepared = Preparation.of(config, teacher, runtime, replace(places, out=own))
    except UntraceableError as error:
        if places.out is not None:
            raise
        prepared = Preparation.of(config, teacher, runtime, places)
        reporter.say(f"the student will not be kept: {error}")
    require_student(prepared.student, teacher, prepared.bits)
    return prepared


def _images_job(asked: RequestConfig, chosen: Defaults, teacher: Teacher, beside: Path) -> ResolvedRun:
    """The images to make, in the folder where such a run is already or in a new one."""
    config = GenerateConfig(
        teacher=asked.teacher,
        weights=asked.weights,
        method=asked.method or chosen.method,
        count=asked.count,
        effort=asked.effort,
        seed=asked.seed,
        set={},
        runtime=asked.runtime,
        offline=asked.offline,
    )
    config = chosen.completed(config)
    job = resolve(config, Path(), teacher)
    base = beside / f"{plain_name(asked.teacher)}-{config.method}"
    return replace(job, out=folder_of_run(base, job.resolved()))


def _choice_line(asked: RequestConfig, config: QuantizeConfig, job: ResolvedRun) -> str:
    """What was chosen and what was asked for."""
    count = job.plan.count
    passes = job.method.teacher_passes(job.method.options, count) / count
    parts = (
        (asked.method, f"method {job.method.name}"),
        (asked.count, quantity(count, "image")),
        (asked.effort, f"{quantity(passes, 'teacher pass')} each" if passes else ""),
        (asked.student, f"student {_student_text(config)}"),
    )
    return choice_line(f"{config.bits} of {job.teacher.name}", parts)


def _student_text(config: QuantizeConfig) -> str:
    options = " ".join(f"{name}={value}" for name, value in config.set.items())
    return f"{config.student} ({options})" if options else config.student
