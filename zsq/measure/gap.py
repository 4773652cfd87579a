"""The protocol: sources x shard sets x student seeds -> run records -> rows -> gaps with intervals.

Shard sets are the replicates. Values of one set are averaged over student seeds first, and every interval is
over set means: two fits on the same images are not two observations of a source.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NotRequired, TypedDict

import numpy as np
from pydantic import ValidationError
from torch import Tensor

from zsq.contract import Bits, FittedStudent, Student, Teacher
from zsq.core.errors import MismatchError, OptionError
from zsq.core.runtime import Runtime
from zsq.measure.confidence import (
    Interval,
    RowKey,
    Run,
    bootstrap_interval,
    mean_interval,
    paired_interval,
    paired_recovery,
    percentile_interval,
    recovery,
    replicates_of,
    set_means,
    welch_interval,
)
from zsq.measure.evaluate import LabelledImages, all_scores, check_shapes, score_teacher
from zsq.students import STUDENTS, create

REAL, NOISE = "real", "noise"


@dataclass(frozen=True)
class StudentSpec:
    """A student to fit; `options` are overrides of its defaults, `first_last` bits of its outer layers,
    `passes` the analytic passes around the fit, `shard_sets` on how many sets it is fitted (None: all)."""

    name: str
    bits: Bits
    options: Mapping[str, Any] = field(default_factory=dict)
    first_last: int | None = None
    passes: Sequence[str] = ()
    shard_sets: int | None = None

    @property
    def label(self) -> str:
        """What tables call it: `ptq`, or with passes `ptq+fold+equalize`."""
        return "+".join([self.name, *self.passes])


class RunRecord(TypedDict):
    """One finished fit, as JSON holds it: everything that names it, then what was measured.

    `replicates` and `roc` are there for embedders, as `zsq.measure.evaluate.Scores` has them; `passes` only
    where the student has some.
    """

    source: str
    shard_set: int
    seed: int
    student: str
    bits: str
    first_last: int | None
    options: dict[str, Any]
    num_images: int
    metrics: dict[str, float]
    seconds: float
    passes: NotRequired[list[str]]
    replicates: NotRequired[dict[str, list[float]]]
    roc: NotRequired[list[float]]


# What was measured, as against what names a fit.
MEASURED = ("metrics", "seconds", "replicates", "roc")


@dataclass(frozen=True)
class Row:
    """One metric of one student on one source: mean over shard sets; `seconds` is the mean time of a fit.

    `ci95` is over shard sets, or with one set of an embedder over identities.
    """

    source: str
    student: str
    bits: str
    num_images: int
    metric: str
    mean: float
    ci95: Interval | None
    runs: tuple[Run, ...]
    seconds: float


@dataclass(frozen=True)
class Gap:
    """Mean on real images minus mean on the source, in points.

    `ci95` is Welch's interval, `bootstrap95` the two-level bootstrap's; with one set of an embedder, `ci95`
    is the paired bootstrap's over identities. `recovery` is the share of the way from noise to real images:
    0 like noise, 1 like real images.
    """

    source: str
    student: str
    bits: str
    num_images: int
    metric: str
    gap: float
    ci95: Interval | None
    bootstrap95: Interval | None
    recovery: float | None


def measure_gap(
    teacher: Teacher,
    arms: Mapping[str, Sequence[Tensor]],
    eval_images: LabelledImages,
    students: Sequence[StudentSpec],
    seeds: int,
    runtime: Runtime,
    done: Iterable[RunRecord] = (),
    on_run: Callable[[RunRecord, FittedStudent], None] = lambda record, fitted: None,
    should_stop: Callable[[], bool] = lambda: False,
    teacher_logits: Tensor | None = None,
) -> list[RunRecord]:
    """Fit and score every student on every shard set of every arm.

    All sources and students take their turn on the first shard set before the second begins, so a run that
    is stopped leaves complete comparisons.

    Args:
        teacher: on the runtime's device.
        arms: source -> its shard sets, uint8 (N, C, H, W) each; N is the same everywhere.
        seeds: number of student seeds; each is used on all sets and arms.
        done: records of an earlier call; a fit found there is not repeated.
        on_run: called after each new fit, to store its record and what it wants of the student.
        should_stop: asked before each fit; once true, no further fit is made.
        teacher_logits: the teacher's on the evaluation images, where the caller has scored it already.

    Returns:
        Records of all finished fits of this protocol, in its order.

    Raises:
        OptionError: no seeds, a student named twice, or an option of a student that it cannot take.
        UnknownNameError: no such student.
        MismatchError: arms of different size, or images of another shape.
        TeacherAccuracyError: the teacher does not measure what it should.
    """
    num_images = _check(teacher, arms, students, seeds)
    fitters = _fitters(teacher, students, runtime)
    students = _with_all_options(students, fitters)
    finished = {_key(_completed(record)): record for record in done}
    records = []
    stopped = False
    for shard_set, seed, spec, source in _plan(arms, students, seeds):
        record = _unmeasured(source, shard_set, seed, spec, num_images)
        if _key(record) not in finished:
            stopped = stopped or should_stop()
            if stopped:
                continue
            if teacher_logits is None:
                teacher_logits, _ = score_teacher(teacher, eval_images, runtime)
            start = time.perf_counter()
            fitted = fitters[_name(spec)].fit(
                teacher, arms[source][shard_set], spec.bits, first_last=spec.first_last, seed=seed
            )
            record["seconds"] = time.perf_counter() - start
            scores = all_scores(fitted, eval_images, teacher_logits, runtime)
            record["metrics"] = scores.metrics
            if scores.replicates:
                record["replicates"], record["roc"] = scores.replicates, scores.roc
            finished[_key(record)] = record
            on_run(record, fitted)
        records.append(finished[_key(record)])
    return records


def belonging(
    records: Iterable[RunRecord],
    sources: Iterable[str],
    num_sets: int,
    num_images: int,
    teacher: Teacher,
    students: Sequence[StudentSpec],
    seeds: int,
    runtime: Runtime,
) -> list[RunRecord]:
    """Of records made elsewhere, the fits of this protocol, so that a table never mixes two settings."""
    students = _with_all_options(students, _fitters(teacher, students, runtime))
    sets = {source: range(num_sets) for source in sources}
    wanted = {
        _key(_unmeasured(source, shard_set, seed, spec, num_images))
        for shard_set, seed, spec, source in _plan(sets, students, seeds)
    }
    return [record for record in records if _key(_completed(record)) in wanted]


def _fitters(teacher: Teacher, students: Sequence[StudentSpec], runtime: Runtime) -> dict[str, Student]:
    return {
        _name(spec): create(spec.name, teacher.spec, spec.options, runtime, passes=spec.passes)
        for spec in students
    }


def _with_all_options(
    students: Sequence[StudentSpec], fitters: Mapping[str, Student]
) -> Sequence[StudentSpec]:
    """Records name every option: what is a default today may be another tomorrow."""
    return [replace(s, options=fitters[_name(s)].options.model_dump(mode="json")) for s in students]


def count_runs(arms: Mapping[str, Sequence[Tensor]], students: Sequence[StudentSpec], seeds: int) -> int:
    """Number of fits that `measure_gap` makes."""
    return len(_plan(arms, students, seeds))


def _plan(
    arms: Mapping[str, Sequence[Any]], students: Sequence[StudentSpec], seeds: int
) -> list[tuple[int, int, StudentSpec, str]]:
    most_sets = max((len(sets) for sets in arms.values()), default=0)
    return [
        (shard_set, seed, spec, source)
        for shard_set in range(most_sets)
        for seed in range(seeds)
        for spec in students
        for source, sets in arms.items()
        if shard_set < min(len(sets), spec.shard_sets or len(sets))
    ]


def _check(
    teacher: Teacher, arms: Mapping[str, Sequence[Tensor]], students: Sequence[StudentSpec], seeds: int
) -> int:
    """Images per shard set."""
    if seeds < 1:
        raise OptionError(f"--seeds {seeds}", "at least 1")
    names = [_name(spec) for spec in students]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"student {name} is named {names.count(name)} times", "once")
    sizes: dict[int, str] = {}
    for source, sets in arms.items():
        if not sets:
            raise OptionError(f"source '{source}' has no shard set", "at least 1")
        for index, pixels in enumerate(sets):
            check_shapes(pixels, teacher.spec, f"images of {source} set {index}")
            sizes.setdefault(len(pixels), f"{source} set {index}")
    if len(sizes) != 1:
        found = " and ".join(f"{size} images in {where}" for size, where in sizes.items()) or "no arms"
        raise MismatchError(found, "the same number of images in every set", "pass --count with the smallest")
    return next(iter(sizes))


def _name(spec: StudentSpec) -> str:
    return f"{spec.label} {spec.bits}"


def _unmeasured(source: str, shard_set: int, seed: int, spec: StudentSpec, num_images: int) -> RunRecord:
    record = RunRecord(
        source=source,
        shard_set=shard_set,
        seed=seed,
        student=spec.label,
        bits=str(spec.bits),
        first_last=spec.first_last,
        options=dict(spec.options),
        num_images=num_images,
        metrics={},
        seconds=0.0,
    )
    if spec.passes:
        record["passes"] = list(spec.passes)
    return record


def _key(record: RunRecord) -> str:
    return json.dumps({k: v for k, v in record.items() if k not in MEASURED}, sort_keys=True, default=str)


def _completed(record: RunRecord) -> RunRecord:
    """A record with the options that its student has got since: their defaults are what was done before."""
    student = STUDENTS.get(record["student"].partition("+")[0])
    try:
        options = student.options_class(**record["options"]) if student else None
    except ValidationError:
        return record
    return record if options is None else {**record, "options": options.model_dump(mode="json")}


def rows_from_runs(records: Iterable[RunRecord]) -> list[Row]:
    """One row per source, student, bits, number of images and metric, in order of first appearance."""
    records = list(records)
    replicates = replicates_of(records)
    groups: dict[RowKey, list[tuple[Run, float]]] = {}
    for record in records:
        for metric, value in record["metrics"].items():
            key = (record["source"], record["student"], record["bits"], record["num_images"], metric)
            run = Run(record["shard_set"], record["seed"], value)
            groups.setdefault(key, []).append((run, record["seconds"]))
    rows = []
    for key, pairs in groups.items():
        runs = tuple(run for run, _ in pairs)
        means = set_means(runs)
        seconds = float(np.mean([seconds for _, seconds in pairs]))
        interval = mean_interval(means) or percentile_interval(replicates.get(key))
        rows.append(Row(*key, float(means.mean()), interval, runs, seconds))
    return rows


def gaps_from_rows(
    rows: Sequence[Row], replicates: Mapping[RowKey, np.ndarray] = MappingProxyType({})
) -> list[Gap]:
    """The gap of every row that has a real counterpart; none for the real rows themselves.

    Args:
        replicates: of `replicates_of`; they give the intervals where an arm has one shard set.
    """
    by_key = {row_key(row, row.source): row for row in rows}
    gaps = []
    for row in rows:
        real = by_key.get(row_key(row, REAL))
        if row.source != REAL and real is not None:
            gaps.append(_gap(row, real, by_key.get(row_key(row, NOISE)), replicates))
    return gaps


def _gap(row: Row, real: Row, noise: Row | None, replicates: Mapping[RowKey, np.ndarray]) -> Gap:
    real_sets, own_sets = set_means(real.runs), set_means(row.runs)
    of_sets = min(len(real_sets), len(own_sets)) > 1
    real_R, own_R, noise_R = (
        None if of_sets else replicates.get(row_key(row, source)) for source in (REAL, row.source, NOISE)
    )
    recovered = None
    if noise is not None and of_sets:
        recovered = recovery(real_sets, own_sets, set_means(noise.runs))
    elif noise is not None:
        recovered = paired_recovery(real.mean, row.mean, noise.mean, real_R, noise_R)
    return Gap(
        row.source,
        row.student,
        row.bits,
        row.num_images,
        row.metric,
        gap=float(real_sets.mean() - own_sets.mean()),
        ci95=welch_interval(real_sets, own_sets) or paired_interval(real_R, own_R),
        bootstrap95=bootstrap_interval(real.runs, row.runs),
        recovery=recovered,
    )


def row_key(row: Row, source: str) -> RowKey:
    """What names the row of `source` that stands beside `row`."""
    return (source, row.student, row.bits, row.num_images, row.metric)
