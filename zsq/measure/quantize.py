"""One student, from the images it is fitted on to its files and scores: what `zsq quantize` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from zsq.config import QuantizeConfig
from zsq.contract import FittedStudent, ImagesOrigin, Student, Teacher
from zsq.core.errors import OptionError
from zsq.core.options import check_given_once
from zsq.core.progress import Reporter
from zsq.core.runtime import Runtime
from zsq.core.wording import quantity
from zsq.fitting.choosing import shares_on
from zsq.images.imageset import ImageSet, said
from zsq.images.shared import named, warn_of_scored
from zsq.images.sources import images_for
from zsq.measure.evaluate import Reference, score_student, score_teacher
from zsq.placement.sites import check_placeable
from zsq.saved.choices import choice_lines
from zsq.saved.cost import Cost, student_cost
from zsq.students import check_bits, create, own_defaults_line
from zsq.tasks.metrics import unit, words
from zsq.tasks.sqnr import EACH_OUTPUT
from zsq.teacher import load_teacher
from zsq.widths import Bits

# Of the images of the fit, so many say how near the student is to its teacher.
FIT_IMAGES = 256


@dataclass(frozen=True)
class Quantized:
    """A fitted student, what it costs, and what it measures.

    Attributes:
        metrics: on evaluation images, in points or dB; empty where none were given.
        teacher_score: the teacher's own by the first metric that needs labels, None without labels.
        files: those that were written.
        fit_metrics: where no evaluation images were given, metrics against the teacher on at most
            `FIT_IMAGES` of the images of the fit.
        shares: as `FittedStudent.shares`, of the evaluation images where there are some.
        others: of further bits that were asked for at the same time.
    """

    fitted: FittedStudent
    cost: Cost
    metrics: Mapping[str, float]
    teacher_score: float | None
    files: tuple[Path, ...] = ()
    fit_metrics: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    others: tuple[Quantized, ...] = ()

    def lines(self) -> list[str]:
        """What was measured, as text: a line for each of several outputs, then one for all metrics."""
        found = self.metrics or self.fit_metrics
        text = {name: f"{value:.2f}{' dB' if unit(name) == 'dB' else ''}" for name, value in found.items()}
        single = [f"{name} {shown}" for name, shown in text.items() if name.startswith(EACH_OUTPUT)]
        whole = [
            f", {name.replace('_', ' ')} {shown}"
            for name, shown in text.items()
            if not name.startswith(EACH_OUTPUT)
        ]
        where = "" if self.metrics else ", on images of the fit"
        teacher = "" if self.teacher_score is None else f" (teacher {self.teacher_score:.2f})"
        on = "evaluation images" if self.metrics else "images of the fit"
        chosen = choice_lines(self.fitted, self.shares, on)
        return [*chosen, *single, f"{self.fitted.student} {self.fitted.bits}{where}{''.join(whole)}{teacher}"]


@dataclass(frozen=True)
class Places:
    """Where a student is written: as `save_student`, `export_onnx` and `export_pt2` do; None: not at all."""

    out: Path | None = None
    onnx: Path | None = None
    pt2: Path | None = None

    def check(self, teacher: Teacher, student: Student, config: QuantizeConfig) -> None:
        """Refuse before a long fit what could not be written after it.

        Raises:
            ZsqError: one class per cause.
        """
        widths = [Bits.parse(bits) for bits in (config.bits, *config.more_bits)]
        for bits in widths:
            _check_out(teacher, self.of(bits, len(widths)).out)
        if self.out is not None and self.out.suffix in (".safetensors", ".json") and len(widths) > 1:
            raise OptionError(f"--out {self.out} with {len(widths)} --bits", "a folder")
        for option, path in (("--onnx", self.onnx), ("--pt2", self.pt2)):
            if path is not None and len(widths) > 1:
                raise OptionError(f"{option} with {len(widths)} --bits", "one")
        if self.onnx is not None:
            _check_onnx(teacher, config)
        if self.pt2 is not None:
            _check_pt2(student, config)

    def of(self, bits: Bits, several: int) -> Places:
        """Those of one of several bits: each is saved in a folder called after them."""
        return self if self.out is None or several == 1 else replace(self, out=self.out / str(bits))

    def write(self, fitted: FittedStudent, teacher: Teacher) -> tuple[Path, ...]:
        """Write the student to all of them.

        Raises:
            ZsqError: one class per cause.
        """
        from zsq.saved.onnx_qdq import export_onnx
        from zsq.saved.pt2e import export_pt2
        from zsq.saved.saving import save_student

        files = () if self.out is None else save_student(fitted, teacher, self.out)
        for export, path in ((export_onnx, self.onnx), (export_pt2, self.pt2)):
            if path is not None:
                export(fitted, path)
                files = (*files, path)
        return files


@dataclass(frozen=True)
class Preparation:
    """All that a fit takes but its images, checked: what cannot work or be written is refused before them."""

    config: QuantizeConfig
    teacher: Teacher
    student: Student
    runtime: Runtime
    places: Places
    evaluation: ImageSet | None
    reference: Reference | None

    @classmethod
    def of(cls, config: QuantizeConfig, teacher: Teacher, runtime: Runtime, places: Places) -> Preparation:
        """For `teacher`, which is on the runtime's device.

        Raises:
            ZsqError: one class per cause.
        """
        student = create(config.student, teacher.spec, config.set, runtime, passes=config.passes)
        check_given_once("--first-last", config.first_last, config.set)
        widths = [Bits.parse(bits) for bits in (config.bits, *config.more_bits)]
        for bits in widths:
            if widths.count(bits) > 1:
                raise OptionError(f"--bits {bits} twice", "each once")
            check_bits(student, bits.with_rows(config.widths), config.first_last, teacher.spec)
        if student.quantizes_teacher:
            check_placeable(teacher.network, teacher.example(), widths[0].with_rows(config.widths))
        places.check(teacher, student, config)
        evaluation, reference = None, None
        if config.eval is not None:
            evaluation = images_for(teacher, config.eval, config, labelled=True)
            reference = score_teacher(teacher, evaluation, runtime, need_truth=False)
        return cls(config, teacher, student, runtime, places, evaluation, reference)

    def each(self) -> Iterator[Preparation]:
        """One for each of the bits; of several, each is written in a folder called after its bits."""
        several = (self.config.bits, *self.config.more_bits)
        for bits in several:
            own = self.config.model_copy(update={"bits": bits, "more_bits": ()})
            yield replace(self, config=own, places=self.places.of(Bits.parse(bits), len(several)))

    @property
    def bits(self) -> Bits:
        """Of weights and activations."""
        return _bits(self.config)


def _bits(config: QuantizeConfig) -> Bits:
    return Bits.parse(config.bits).with_rows(config.widths)


def quantize_images(
    config: QuantizeConfig, images: str | Path, places: Places, reporter: Reporter
) -> Quantized:
    """Fit on `images`, write to `places`, score.

    Raises:
        ZsqError: what cannot work or be written is refused before the fit.
    """
    runtime = Runtime.resolve(**config.runtime.model_dump())
    weights = None if config.weights is None else Path(config.weights)
    teacher = load_teacher(config.teacher, weights, offline=config.offline).to(runtime.device)
    prepared = Preparation.of(config, teacher, runtime, places)
    return quantized(prepared, images_for(teacher, images, config, limit=config.count), reporter)


def quantized(prepared: Preparation, given: ImageSet, reporter: Reporter) -> Quantized:
    """Fit on `given`, write, score; for each of the bits, by one student that may train once for all."""
    wanted = prepared.config.count
    if wanted is not None and len(given) < wanted:
        reporter.say(
            f"{given.source} holds {quantity(len(given), 'image')}, fewer than --count {wanted}: "
            "all are taken"
        )
    for line in _unmeasured(prepared):
        reporter.say(line)
    warn_of_scored(map(named, [given]), prepared.evaluation)
    first, *others = [_quantized(each, given, reporter) for each in prepared.each()]
    return replace(first, others=tuple(others))


def _quantized(prepared: Preparation, given: ImageSet, reporter: Reporter) -> Quantized:
    teacher, runtime, reference = prepared.teacher, prepared.runtime, prepared.reference
    fitted = _fitted(prepared, given, reporter)
    fit_metrics = {} if reference is not None else _on_fit(given, fitted, teacher, runtime)
    files = prepared.places.write(fitted, teacher)
    return Quantized(
        fitted,
        student_cost(fitted),
        _scores(reference, fitted, teacher, prepared.places.onnx),
        None if reference is None else reference.quality,
        files,
        fit_metrics,
        fitted.shares if prepared.evaluation is None else shares_on(fitted, prepared.evaluation.pixels),
    )


def _on_fit(given: ImageSet, fitted: FittedStudent, teacher: Teacher, runtime: Runtime) -> dict[str, float]:
    unlabelled = given.subset(range(min(len(given), FIT_IMAGES)))
    return score_student(fitted, Reference(teacher, unlabelled, runtime, None))


def _fitted(prepared: Preparation, given: ImageSet, reporter: Reporter) -> FittedStudent:
    config, teacher, student = prepared.config, prepared.teacher, prepared.student
    pixels, source = given.pixels, given.provenance
    origin = None if source is None else ImagesOrigin(source.method, source.options, source.data_read)
    shown = [] if prepared.evaluation is None else [prepared.evaluation]
    own_defaults = own_defaults_line(config.student, student, teacher.spec)
    for line in (*said(given, *shown), *([own_defaults] if own_defaults else [])):
        reporter.say(line)
    total = student.log_total(teacher, len(pixels), prepared.bits)
    with reporter.job(f"{config.student} {prepared.bits}", total) as log, prepared.runtime.in_force():
        fitted = student.fit(
            *(teacher, pixels, prepared.bits),
            first_last=config.first_last,
            seed=config.seed,
            log=log,
            origin=origin,
        )
    if given.photo_fit is None or fitted.made is None:
        return fitted
    return replace(fitted, made=replace(fitted.made, photo_fit=given.photo_fit))


def _unmeasured(prepared: Preparation) -> list[str]:
    reference, quality = prepared.reference, prepared.teacher.task.quality
    if prepared.evaluation is None or reference is None or quality is None or reference.truth is not None:
        return []
    return [f"{prepared.evaluation.source} has no labels: {words(quality)} is not measured"]


def _check_out(teacher: Teacher, out: Path | None) -> None:
    from zsq.saved.saving import check_destination, check_saveable

    if out is not None:
        check_destination(out)
        check_saveable(teacher)


def _check_onnx(teacher: Teacher, config: QuantizeConfig) -> None:
    from zsq.saved.onnx_qdq import check_exportable, check_network_exportable

    check_exportable(config.student, _bits(config), config.first_last)
    check_network_exportable(teacher)


def _check_pt2(student: Student, config: QuantizeConfig) -> None:
    from zsq.saved.pt2e import check_exportable

    check_exportable(config.student, student, _bits(config), config.first_last)


def _scores(
    reference: Reference | None, fitted: FittedStudent, teacher: Teacher, onnx: Path | None
) -> dict[str, float]:
    """The student's metrics on evaluation images, and what of its ONNX file is measured by labels."""
    if reference is None:
        return {}
    metrics = score_student(fitted, reference)
    quality = teacher.task.quality
    if onnx is not None and reference.truth is not None and quality is not None:
        from zsq.saved.onnx_qdq import OnnxStudent

        scores = reference.score(OnnxStudent(onnx, teacher.spec), f"ONNX file {onnx}")
        metrics[f"onnx_{quality}"] = scores.metrics[quality]
    return metrics
