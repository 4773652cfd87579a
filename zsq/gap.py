"""The protocol: sources x shard sets x student seeds -> run records -> rows -> gaps with intervals.

Shard sets are the replicates. Values of one set are averaged over student seeds first, and every interval is
over set means: two fits on the same images are not two observations of a source.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import numpy as np
from pydantic import ValidationError
from scipy import stats
from torch import Tensor

from zsq.contract import Bits, FittedStudent, Teacher
from zsq.errors import MismatchError, OptionError
from zsq.evaluate import LabelledImages, check_shapes, score_student, score_teacher
from zsq.runtime import Runtime
from zsq.seeding import numpy_generator
from zsq.students import STUDENTS, create

REAL, NOISE = "real", "noise"
CONFIDENCE = 0.95
BOOTSTRAP_DRAWS = 10_000

Interval = tuple[float, float]


@dataclass(frozen=True)
class StudentSpec:
    """A student to fit; `options` are overrides of its defaults, `first_last` bits of its outer layers."""

    name: str
    bits: Bits
    options: Mapping[str, Any] = field(default_factory=dict)
    first_last: int | None = None


class RunRecord(TypedDict):
    """One finished fit, as JSON holds it: everything that names it, then what was measured."""

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


@dataclass(frozen=True)
class Run:
    """Value of one metric for one shard set and student seed."""

    shard_set: int
    seed: int
    value: float


@dataclass(frozen=True)
class Row:
    """One metric of one student on one source: mean over shard sets; `seconds` is the mean time of a fit."""

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

    `ci95` is Welch's interval, `bootstrap95` the two-level bootstrap's; `recovery` is the share of the way
    from noise to real images: 0 like noise, 1 like real images.
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
    fitters = {_name(spec): create(spec.name, teacher.spec, spec.options, runtime) for spec in students}
    # Records name every option, so that a resumed table never mixes two defaults.
    students = [replace(s, options=fitters[_name(s)].options.model_dump(mode="json")) for s in students]
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
            record["metrics"] = score_student(fitted, eval_images, teacher_logits, runtime)
            finished[_key(record)] = record
            on_run(record, fitted)
        records.append(finished[_key(record)])
    return records


def count_runs(arms: Mapping[str, Sequence[Tensor]], students: Sequence[StudentSpec], seeds: int) -> int:
    """Number of fits that `measure_gap` makes."""
    return len(_plan(arms, students, seeds))


def _plan(
    arms: Mapping[str, Sequence[Tensor]], students: Sequence[StudentSpec], seeds: int
) -> list[tuple[int, int, StudentSpec, str]]:
    most_sets = max((len(sets) for sets in arms.values()), default=0)
    return [
        (shard_set, seed, spec, source)
        for shard_set in range(most_sets)
        for seed in range(seeds)
        for spec in students
        for source, sets in arms.items()
        if shard_set < len(sets)
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
    return f"{spec.name} {spec.bits}"


def _unmeasured(source: str, shard_set: int, seed: int, spec: StudentSpec, num_images: int) -> RunRecord:
    return RunRecord(
        source=source,
        shard_set=shard_set,
        seed=seed,
        student=spec.name,
        bits=str(spec.bits),
        first_last=spec.first_last,
        options=dict(spec.options),
        num_images=num_images,
        metrics={},
        seconds=0.0,
    )


def _key(record: RunRecord) -> str:
    return json.dumps(
        {k: v for k, v in record.items() if k not in ("metrics", "seconds")}, sort_keys=True, default=str
    )


def _completed(record: RunRecord) -> RunRecord:
    """A record with the options that its student has got since: their defaults are what was done before."""
    student = STUDENTS.get(record["student"])
    try:
        options = student.options_class(**record["options"]) if student else None
    except ValidationError:
        return record
    return record if options is None else {**record, "options": options.model_dump(mode="json")}


def rows_from_runs(records: Iterable[RunRecord]) -> list[Row]:
    """One row per source, student, bits, number of images and metric, in order of first appearance."""
    groups: dict[tuple[str, str, str, int, str], list[tuple[Run, float]]] = {}
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
        rows.append(Row(*key, float(means.mean()), mean_interval(means), runs, seconds))
    return rows


def gaps_from_rows(rows: Sequence[Row]) -> list[Gap]:
    """The gap of every row that has a real counterpart; none for the real rows themselves."""
    by_key = {_row_key(row, row.source): row for row in rows}
    gaps = []
    for row in rows:
        real = by_key.get(_row_key(row, REAL))
        if row.source == REAL or real is None:
            continue
        real_sets, own_sets = set_means(real.runs), set_means(row.runs)
        noise = by_key.get(_row_key(row, NOISE))
        gaps.append(
            Gap(
                row.source,
                row.student,
                row.bits,
                row.num_images,
                row.metric,
                gap=float(real_sets.mean() - own_sets.mean()),
                ci95=welch_interval(real_sets, own_sets),
                bootstrap95=bootstrap_interval(real.runs, row.runs),
                recovery=None if noise is None else recovery(real_sets, own_sets, set_means(noise.runs)),
            )
        )
    return gaps


def _row_key(row: Row, source: str) -> tuple[str, str, str, int, str]:
    return (source, row.student, row.bits, row.num_images, row.metric)


def set_means(runs: Iterable[Run]) -> np.ndarray:
    """Mean over student seeds of each shard set, float64 (sets,)."""
    values: dict[int, list[float]] = {}
    for run in runs:
        values.setdefault(run.shard_set, []).append(run.value)
    return np.array([np.mean(values[shard_set]) for shard_set in sorted(values)])


def mean_interval(sets: np.ndarray) -> Interval | None:
    """95 % t-interval of the mean of set means; None for one set, a point where they do not vary."""
    if len(sets) < 2:
        return None
    if np.ptp(sets) == 0:
        return (float(sets[0]), float(sets[0]))
    with _constant_arms_allowed():
        low, high = stats.ttest_1samp(sets, 0).confidence_interval(CONFIDENCE)
    return (float(low), float(high))


def welch_interval(real_sets: np.ndarray, own_sets: np.ndarray) -> Interval | None:
    """95 % Welch interval of the difference of means; None where an arm has one set."""
    if min(len(real_sets), len(own_sets)) < 2:
        return None
    if np.ptp(real_sets) == 0 and np.ptp(own_sets) == 0:
        gap = float(real_sets[0] - own_sets[0])
        return (gap, gap)
    with _constant_arms_allowed():
        low, high = stats.ttest_ind(real_sets, own_sets, equal_var=False).confidence_interval(CONFIDENCE)
    return (float(low), float(high))


@contextmanager
def _constant_arms_allowed() -> Iterator[None]:
    """scipy warns where one arm does not vary; the interval, of the other's spread, is right."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)
        yield


def bootstrap_interval(real: Sequence[Run], own: Sequence[Run]) -> Interval | None:
    """95 % percentile interval of the gap, shard sets resampled per arm and student seeds jointly.

    None where an arm has one set, or where some set misses a seed that another has.
    """
    real_KS, own_KS = _table(real), _table(own)
    if real_KS is None or own_KS is None or {run.seed for run in real} != {run.seed for run in own}:
        return None
    if min(len(real_KS), len(own_KS)) < 2:
        return None
    random = numpy_generator(0, 0, "gap bootstrap")
    gaps_DS = _resampled_means(real_KS, random) - _resampled_means(own_KS, random)
    seeds_DS = _resampling_weights(gaps_DS.shape[1], random)
    tail = 50 * (1 - CONFIDENCE)
    # Sums of equal values differ in their last bits; rounded, an interval without spread is a point.
    low, high = np.percentile((gaps_DS * seeds_DS).sum(1), [tail, 100 - tail]).round(9) + 0.0
    return (float(low), float(high))


def _table(runs: Sequence[Run]) -> np.ndarray | None:
    """(sets, seeds), None where it has holes."""
    values = {(run.shard_set, run.seed): run.value for run in runs}
    sets, seeds = (sorted({key[axis] for key in values}) for axis in (0, 1))
    if len(values) != len(sets) * len(seeds):
        return None
    return np.array([[values[shard_set, seed] for seed in seeds] for shard_set in sets])


def _resampling_weights(size: int, random: np.random.Generator) -> np.ndarray:
    """(draws, size): how often each of `size` items is drawn with replacement, as a share."""
    return random.multinomial(size, np.full(size, 1 / size), size=BOOTSTRAP_DRAWS) / size


def _resampled_means(values_KS: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _resampling_weights(len(values_KS), random) @ values_KS


def recovery(real_sets: np.ndarray, own_sets: np.ndarray, noise_sets: np.ndarray) -> float | None:
    """(own - noise) / (real - noise); None unless real - noise exceeds 3 of its own standard errors."""
    if min(len(real_sets), len(noise_sets)) < 2:
        return None
    span = float(real_sets.mean() - noise_sets.mean())
    squares = (float(np.var(sets, ddof=1)) / len(sets) for sets in (real_sets, noise_sets))
    if span <= 3 * sum(squares) ** 0.5:
        return None
    return float(own_sets.mean() - noise_sets.mean()) / span
