"""Intervals: how far a value would move with other shard sets, student seeds or identities.

Two fits on the same images are not two observations of their source. Values of one shard set are therefore
averaged over seeds first. Suffixes: K sets, S seeds, R bootstrap draws of identities, which are the same for
all fits that are scored on the same images.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from zsq.core.seeding import numpy_generator

CONFIDENCE = 0.95
BOOTSTRAP_DRAWS = 10_000

Interval = tuple[float, float]

# Source, student, bits, metric.
RowKey = tuple[str, str, str, str]


@dataclass(frozen=True)
class Run:
    """Value of one metric for one shard set and student seed."""

    shard_set: int
    seed: int
    value: float


def within(interval: Interval | None, limits: Interval) -> Interval | None:
    """An interval cut off at what is possible: those of few sets reach beyond it."""
    if interval is None:
        return None
    low, high = (min(max(bound, limits[0]), limits[1]) for bound in interval)
    return (low, high)


def set_means(runs: Iterable[Run]) -> np.ndarray:
    """Mean over student seeds of each shard set, float64 (sets,)."""
    values: dict[int, list[float]] = {}
    for run in runs:
        values.setdefault(run.shard_set, []).append(run.value)
    return np.array([np.mean(values[shard_set]) for shard_set in sorted(values)])


def repeats(runs: Sequence[Run], over_seeds: bool) -> np.ndarray:
    """What an interval is taken over: the values of all runs, which are those of one set's student seeds,
    (seeds,); else the means of shard sets, (sets,). float64."""
    return np.array([run.value for run in runs]) if over_seeds else set_means(runs)


def mean_interval(sets: np.ndarray) -> Interval | None:
    """95 % t-interval of the mean of `repeats`; None for a single one, a point where they do not vary."""
    if len(sets) < 2:
        return None
    if np.ptp(sets) == 0:
        return (float(sets[0]), float(sets[0]))
    with _constant_arms_allowed():
        low, high = stats.ttest_1samp(sets, 0).confidence_interval(CONFIDENCE)
    return (float(low), float(high))


def welch_interval(real_sets: np.ndarray, own_sets: np.ndarray) -> Interval | None:
    """95 % interval of the difference of means by Welch's t; None where an arm of `repeats` has one."""
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
    """Silence scipy's warning about an arm that does not vary: the interval is right all the same."""
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
    return percentile_interval((gaps_DS * seeds_DS).sum(1))


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


def replicates_of(records: Iterable[Mapping[str, Any]]) -> dict[RowKey, np.ndarray]:
    """A row's key -> its mean over fits in each draw (R,), from run records; nothing for classifiers."""
    found: dict[RowKey, list[list[float]]] = {}
    for record in records:
        for metric, draws in record.get("replicates", {}).items():
            key = (record["source"], record["student"], record["bits"], metric)
            found.setdefault(key, []).append(draws)
    return {key: np.mean(draws, axis=0) for key, draws in found.items()}


def percentile_interval(draws_R: np.ndarray | None) -> Interval | None:
    """95 % percentile interval of bootstrap draws."""
    if draws_R is None:
        return None
    tail = 50 * (1 - CONFIDENCE)
    # Sums of equal values differ in their last bits; rounded, an interval without spread is a point.
    low, high = np.percentile(draws_R, [tail, 100 - tail]).round(9) + 0.0
    return (float(low), float(high))


def paired_interval(first_R: np.ndarray | None, second_R: np.ndarray | None) -> Interval | None:
    """95 % interval of first minus second over the same draws; None where one has no replicates."""
    return None if first_R is None or second_R is None else percentile_interval(first_R - second_R)


def paired_recovery(
    real: float, own: float, noise: float, real_R: np.ndarray | None, noise_R: np.ndarray | None
) -> float | None:
    """(own - noise) / (real - noise); None unless real - noise exceeds 3 bootstrap standard errors."""
    if real_R is None or noise_R is None or real - noise <= 3 * float((real_R - noise_R).std(ddof=1)):
        return None
    return (own - noise) / (real - noise)
