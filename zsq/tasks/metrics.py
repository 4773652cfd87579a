"""What the names of metrics mean: their words, their unit, and how far they reach."""

from __future__ import annotations

from zsq.tasks import TASKS
from zsq.tasks.base import RATIOS, Metric

KNOWN = RATIOS | {name: metric for task in TASKS.values() for name, metric in task.metrics.items()}


def words(metric: str) -> str:
    """How texts call a metric; each of several outputs by its own name."""
    return KNOWN[metric].words if metric in KNOWN else metric.replace("_", " ")


def against_teacher(metric: str) -> bool:
    """Whether it compares a student with its teacher, and needs no labels."""
    return _metric(metric).of_teacher


def unit(metric: str) -> str:
    """`dB`, `points`, or nothing of an error in the unit of the outputs."""
    return _metric(metric).unit


def symbol(metric: str) -> str:
    """What stands behind a value: `%`, `dB`, or nothing."""
    return "%" if unit(metric) == "points" else unit(metric)


def with_unit(metric: str, value: float) -> str:
    """`91.52 %`, `28.46 dB`, or `0.31` of an error."""
    return f"{value:.2f} {symbol(metric)}".rstrip()


def metric_range(metric: str) -> tuple[float, float]:
    """The least and the largest value that a metric can have, in its unit."""
    found = _metric(metric)
    return found.least, found.most


def _metric(name: str) -> Metric:
    return KNOWN.get(name.partition(".")[0], Metric(""))
