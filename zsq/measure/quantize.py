"""One student, from the images it is fitted on to its files and scores: what `zsq quantize` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from zsq.config import QuantizeConfig
from zsq.contract import FittedStudent, ImagesOrigin, Teacher
from zsq.core.errors import OptionError
from zsq.core.progress import Reporter
from zsq.core.runtime import Runtime
from zsq.images.sources import ImageSet, images_for, said
from zsq.measure.evaluate import logits_of, score_student, score_teacher
from zsq.saved.cost import Cost, student_cost
from zsq.students import create, own_defaults_line
from zsq.tasks.classify import accuracy
from zsq.teacher import load_teacher
from zsq.widths import Bits


@dataclass(frozen=True)
class Quantized:
    """A fitted student, what it costs, and its scores in points: `accuracy` and `agreement` where labels were
    given. `files` are those that were written."""

    fitted: FittedStudent
    cost: Cost
    metrics: Mapping[str, float]
    teacher_accuracy: float | None
    files: tuple[Path, ...] = ()


def quantize_images(
    config: QuantizeConfig, out: Path | None, onnx: Path | None, reporter: Reporter
) -> Quantized:
    """Fit, write where `out` and `onnx` say, score.

    Raises:
        ZsqError: what cannot work or be written is refused before the fit.
    """
    runtime = Runtime.resolve(**config.runtime.model_dump())
    weights = None if config.weights is None else Path(config.weights)
    teacher = load_teacher(config.teacher, weights).to(runtime.device)
    labelled = None if config.eval is None else images_for(teacher, config.eval, config, labelled=True)
    fitted, files = _fit(config, teacher, runtime, out, onnx, reporter, labelled)
    metrics, teacher_accuracy = _scores(labelled, fitted, teacher, runtime, onnx)
    return Quantized(fitted, student_cost(fitted), metrics, teacher_accuracy, files)


def _fit(
    config: QuantizeConfig,
    teacher: Teacher,
    runtime: Runtime,
    out: Path | None,
    onnx: Path | None,
    reporter: Reporter,
    labelled: ImageSet | None,
) -> tuple[FittedStudent, tuple[Path, ...]]:
    """The student, and the files it was written to."""
    bits = Bits.parse(config.bits)
    student = create(config.student, teacher.spec, config.set, runtime, passes=config.passes)
    _check_destinations(teacher, bits, config.first_last, out, onnx)
    given = images_for(teacher, config.images, config, limit=config.count)
    pixels, shown = given.pixels, given.provenance
    origin = None if shown is None else ImagesOrigin(shown.method, shown.options, shown.data_read)
    own_defaults = own_defaults_line(config.student, student, teacher.spec)
    for line in (*said(given, *([labelled] if labelled else [])), *([own_defaults] if own_defaults else [])):
        reporter.say(line)
    work = round(student.images_trained(teacher, len(pixels))) or len(pixels)
    with reporter.job(f"{config.student} {bits}", work) as log, runtime.threads_set():
        fitted = student.fit(
            teacher, pixels, bits, first_last=config.first_last, seed=config.seed, log=log, origin=origin
        )
    if given.fitted is not None and fitted.made is not None:
        fitted = replace(fitted, made=replace(fitted.made, photo_fit=given.fitted))
    return fitted, _write(fitted, teacher, out, onnx)


def _check_destinations(
    teacher: Teacher, bits: Bits, first_last: int | None, out: Path | None, onnx: Path | None
) -> None:
    """Refuse before a long fit what could not be written after it."""
    from zsq.saved.onnx_qdq import check_exportable
    from zsq.saved.saving import check_destination, check_saveable

    if out is not None:
        check_destination(out)
        check_saveable(teacher)
    if onnx is not None:
        if onnx.is_dir():
            raise OptionError(f"--onnx {onnx} is a folder", "a file")
        check_exportable(bits, first_last)


def _write(fitted: FittedStudent, teacher: Teacher, out: Path | None, onnx: Path | None) -> tuple[Path, ...]:
    from zsq.saved.onnx_qdq import export_onnx
    from zsq.saved.saving import save_student

    files = () if out is None else save_student(fitted, teacher, out)
    if onnx is None:
        return files
    export_onnx(fitted, onnx)
    return *files, onnx


def _scores(
    labelled: ImageSet | None, fitted: FittedStudent, teacher: Teacher, runtime: Runtime, onnx: Path | None
) -> tuple[dict[str, float], float | None]:
    """The student's scores, and the teacher's accuracy; empty and None without labelled images."""
    if labelled is None:
        return {}, None
    teacher_logits, teacher_accuracy = score_teacher(teacher, labelled, runtime)
    metrics = score_student(fitted, labelled, teacher_logits, runtime)
    if onnx is not None:
        from zsq.saved.onnx_qdq import OnnxStudent

        onnx_logits = logits_of(OnnxStudent(onnx, teacher.spec), labelled.pixels, runtime)
        metrics["onnx_accuracy"] = accuracy(onnx_logits, labelled.labels)
    return metrics, teacher_accuracy
