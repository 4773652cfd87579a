"""The first sentence of a report: what the comparison shows, in words."""

from __future__ import annotations

from collections.abc import Sequence

from zsq.measure.gap import Gap, Row
from zsq.measure.protocol import NOISE, REAL
from zsq.report.tables import number
from zsq.tasks.metrics import unit, words

# What is less is written as zero.
SHOWN = 0.005

# Student, bits: what one gap is measured at.
Setting = tuple[str, str]


def verdict(rows: Sequence[Row], gaps: Sequence[Gap]) -> str:
    """One sentence on the best source: its gap with the interval, and beside it that of noise.

    Over several students and bit widths it names the range of gaps, and the interval of the largest. The best
    source is the one with the smallest mean gap among those measured at the most settings.
    """
    if not rows:
        return "Nothing is measured yet."
    main = rows[0].metric
    num_real = next((row.num_images for row in rows if row.source == REAL), None)
    if num_real is None:
        return "No student is fitted on real images yet, so there is no gap to state."
    by_source: dict[str, dict[Setting, Gap]] = {}
    for gap in gaps:
        if gap.metric == main:
            by_source.setdefault(gap.source, {})[gap.student, gap.bits] = gap
    if not by_source:
        return "Only real images are measured so far, so there is no gap to state."
    noise = by_source.pop(NOISE, {})
    if not by_source:
        return _sentence("noise", "s", list(noise.values()), main, num_real)
    best = min(by_source, key=lambda source: _rank(by_source[source]))
    subject = f"images of {best}"
    if len(by_source) > 1:
        subject += f", the best of {len(by_source)} sources,"
    beside = [gap for setting, gap in noise.items() if setting in by_source[best]]
    return _sentence(subject, "", list(by_source[best].values()), main, num_real, beside)


def _rank(gaps: dict[Setting, Gap]) -> tuple[int, float]:
    return -len(gaps), sum(gap.gap for gap in gaps.values()) / len(gaps)


def _sentence(
    subject: str, s: str, gaps: Sequence[Gap], metric: str, num_real: int, noise: Sequence[Gap] = ()
) -> str:
    """`At W4A4 with lsq-kd, images of dgh cost 0.1 points of accuracy against ...`; `s` ends the verb."""
    largest = max(gaps, key=lambda gap: gap.gap)
    verb, sign = _verb(gaps)
    points = f"{unit(metric)} of {words(metric)}".lstrip()
    as_many = all(gap.num_images == num_real for gap in gaps)
    against = f"{'against' if sign > 0 else 'over'} {'as many' if as_many else num_real} real images"
    where, extreme = f"At {largest.bits} with {largest.student}", ""
    if len(gaps) > 1:
        where = f"Over {len(gaps)} pairs of student and bit width"
        extreme = f", {'most' if sign > 0 else 'least'} with {largest.student} at {largest.bits}"
    beside = f"; noise {_verb(noise)[0]}s {_amounts(noise)}" if noise else ""
    return (
        f"{where}, {subject} {verb}{s} {_amounts(gaps)} {points} {against}{extreme} "
        f"{_interval(largest, sign)}{beside}."
    )


def _verb(gaps: Sequence[Gap]) -> tuple[str, int]:
    """Sources whose largest gap is a gain that shows: their gaps are told with the other sign."""
    return ("cost", 1) if max(gap.gap for gap in gaps) > -SHOWN else ("gain", -1)


def _amounts(gaps: Sequence[Gap]) -> str:
    """`0.1`, or `0.1 to 3.2` for several."""
    _, sign = _verb(gaps)
    values = sorted(sign * gap.gap for gap in gaps)
    low, high = number(values[0], 1), number(values[-1], 1)
    if low == high:
        low, high = _short(values[0]), _short(values[-1])
    return low if low == high else f"{low} to {high}"


def _interval(gap: Gap, sign: int) -> str:
    if gap.ci95 is None:
        return "(no interval: one set of images)"
    low, high = sorted(sign * bound for bound in gap.ci95)
    text = f"95 % interval {_short(low)} to {_short(high)}"
    return f"({text}: no difference is shown)" if low <= 0 <= high else f"({text})"


def _short(value: float) -> str:
    """One digit; two where one would make a small value nothing."""
    return number(value, 2 if SHOWN <= abs(value) < 0.05 else 1)
