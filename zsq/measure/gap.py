"""The protocol: sources x shard sets x student seeds -> run records -> rows -> gaps with intervals.

Values of one shard set are averaged over student seeds first, and intervals are over set means: two fits on
the same images are not two observations of a source.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType

import numpy as np
from torch import Tensor

from zsq.contract import FittedStudent
from zsq.core.errors import MismatchError, OptionError
from zsq.core.processes import Processes
from zsq.core.wording import quantity
from zsq.measure.choices import choices_on
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
    repeats,
    replicates_of,
    set_means,
    welch_interval,
    within,
)
from zsq.measure.evaluate import Reference, all_scores
from zsq.measure.protocol import NOISE, REAL, PlannedFit, Protocol, RunRecord, fit_key
from zsq.tasks.metrics import metric_range


@dataclass(frozen=True)
class Row:
    """One metric of one student on one source: mean over shard sets of `num_images`; `seconds` is the mean
    time of a fit.

    `ci95` is over shard sets. With one set it is over identities or evaluation images where there are
    replicates, and over student seeds where the whole table has one. It stays within the metric's range.
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
    """Mean on real images minus mean on the source, in the metric's unit. `num_images` are the source's.

    `ci95` is Welch's interval over what a row's is over, `bootstrap95` the two-level bootstrap's; with one
    set and replicates, `ci95` is the paired bootstrap's. Both end where a difference of the metric ends.
    `recovery` is the share of the way from noise to real images: 0 like noise, 1 like real images.
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


def fit_and_score(
    protocol: Protocol,
    arms: Mapping[str, Sequence[Tensor]],
    reference: Reference,
    *,
    done: Iterable[RunRecord] = (),
    on_run: Callable[[RunRecord, FittedStudent], None] = lambda record, fitted: None,
    should_stop: Callable[[], bool] = lambda: False,
    processes: Processes | None = None,
) -> list[RunRecord]:
    """Fit and score every student on every shard set of every arm.

    Args:
        arms: source -> its shard sets, uint8 (N, C, H, W) each; N is the protocol's number of its images.
        reference: of `score_teacher` on the protocol's evaluation images.
        done: records of an earlier call; a fit found there is not repeated.
        on_run: called after each new fit, to store its record and what it wants of the student.
        should_stop: asked before each fit; once true, no further fit is made.
        processes: those that share the fits, each with the same `done`; None is this one alone.

    Returns:
        Records of this protocol's fits that were done or that this process made, in the protocol's order.

    Raises:
        MismatchError: a set of another size, or images of another shape.
        OptionError: a source without a shard set.
    """
    _check_arms(protocol, arms)
    finished = {fit_key(record): record for record in done}
    planned = {fit_key(fit.record()): fit for fit in protocol.fits(arms)}
    missing = _by_training({key: fit for key, fit in planned.items() if key not in finished})
    for key in chain.from_iterable((processes or Processes()).taken(missing)):
        if should_stop():
            break
        fit = planned[key]
        record, fitted = _measured(protocol, fit, arms[fit.source][fit.shard_set], reference)
        on_run(record, fitted)
        finished[key] = record
    return [finished[key] for key in planned if key in finished]


def _by_training(fits: Mapping[str, PlannedFit]) -> list[list[str]]:
    """The keys of `fits`; those that train once stand together."""
    groups: dict[Hashable, list[str]] = {}
    for key, fit in fits.items():
        groups.setdefault(fit.training, []).append(key)
    return list(groups.values())


def _measured(
    protocol: Protocol, fit: PlannedFit, pixels: Tensor, reference: Reference
) -> tuple[RunRecord, FittedStudent]:
    """Make one fit and score it."""
    record, spec = fit.record(), fit.student.spec
    start = time.perf_counter()
    fitted = fit.student.student.fit(
        protocol.teacher, pixels, spec.bits, first_last=spec.first_last, seed=fit.seed
    )
    record["seconds"] = time.perf_counter() - start
    scores = all_scores(fitted, reference)
    record["metrics"] = scores.metrics
    if scores.replicates:
        record["replicates"] = scores.replicates
    if scores.roc:
        record["roc"] = scores.roc
    choices = choices_on(fitted, protocol.eval.pixels)
    if choices is not None:
        record["choices"] = choices
    return record, fitted


def _check_arms(protocol: Protocol, arms: Mapping[str, Sequence[Tensor]]) -> None:
    for source, sets in arms.items():
        if not sets:
            raise OptionError(f"source '{source}' has no shard set", "at least 1")
        for index, pixels in enumerate(sets):
            protocol.teacher.spec.check_pixels(pixels, f"images of {source} set {index}")
            if len(pixels) != protocol.images_of(source):
                raise MismatchError(
                    f"{quantity(len(pixels), 'image')} in {source} set {index}",
                    str(protocol.images_of(source)),
                    "pass --count with the smallest",
                )


def rows_from_runs(records: Iterable[RunRecord]) -> list[Row]:
    """One row per source, student, bits and metric, in order of first appearance."""
    records = list(records)
    replicates = replicates_of(records)
    over_seeds = len({record["shard_set"] for record in records}) == 1
    values: dict[RowKey, list[tuple[Run, float]]] = {}
    num_images = {record["source"]: record["num_images"] for record in records}
    for record in records:
        for metric, value in record["metrics"].items():
            key = (record["source"], record["student"], record["bits"], metric)
            run = Run(record["shard_set"], record["seed"], value)
            values.setdefault(key, []).append((run, record["seconds"]))
    rows = []
    for key, pairs in values.items():
        runs = tuple(run for run, _ in pairs)
        means = set_means(runs)
        seconds = float(np.mean([seconds for _, seconds in pairs]))
        interval = percentile_interval(replicates.get(key)) if len(means) == 1 else None
        interval = interval or mean_interval(repeats(runs, over_seeds))
        interval = within(interval, metric_range(key[-1]))
        source, student, bits, metric = key
        mean, count = float(means.mean()), num_images[source]
        rows.append(Row(source, student, bits, count, metric, mean, interval, runs, seconds))
    return rows


def gaps_from_rows(
    rows: Sequence[Row], replicates: Mapping[RowKey, np.ndarray] = MappingProxyType({})
) -> list[Gap]:
    """The gap of every row that has a real counterpart; none for the real rows themselves.

    Args:
        replicates: of `replicates_of`; they give the intervals where an arm has one shard set.
    """
    by_key = {row_key(row, row.source): row for row in rows}
    over_seeds = len({run.shard_set for row in rows for run in row.runs}) == 1
    gaps = []
    for row in rows:
        real = by_key.get(row_key(row, REAL))
        if row.source != REAL and real is not None:
            gaps.append(_gap(row, real, by_key.get(row_key(row, NOISE)), replicates, over_seeds))
    return gaps


def _gap(
    row: Row, real: Row, noise: Row | None, replicates: Mapping[RowKey, np.ndarray], over_seeds: bool
) -> Gap:
    real_sets, own_sets = set_means(real.runs), set_means(row.runs)
    of_sets = min(len(real_sets), len(own_sets)) > 1
    real_R, own_R, noise_R = (
        None if of_sets else replicates.get(row_key(row, source)) for source in (REAL, row.source, NOISE)
    )
    low, high = metric_range(row.metric)
    interval = paired_interval(real_R, own_R) or welch_interval(
        repeats(real.runs, over_seeds), repeats(row.runs, over_seeds)
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
        ci95=within(interval, (low - high, high - low)),
        bootstrap95=bootstrap_interval(real.runs, row.runs),
        recovery=recovered,
    )


def row_key(row: Row, source: str) -> RowKey:
    """What names the row of `source` that stands beside `row`."""
    return (source, row.student, row.bits, row.metric)
