"""Rows and gaps as lines of text: one table, shown alike in the terminal, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

from zsq.measure.confidence import Interval
from zsq.measure.contrasts import Contrast
from zsq.measure.gap import Gap, Row
from zsq.measure.protocol import NOISE, REAL
from zsq.tasks.sqnr import EACH_OUTPUT

MINUS, DASH = "\u2212", "\u2013"


@dataclass(frozen=True)
class Grid:
    """A table as text; `num_left` columns hold names, the others numbers."""

    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    num_left: int


@dataclass(frozen=True)
class Entry:
    """All that was measured of one student on one source, but for each of several outputs; `main` is its
    first metric."""

    main: Row
    gap: Gap | None
    others: dict[str, Row]


def entries(rows: Sequence[Row], gaps: Sequence[Gap]) -> list[Entry]:
    """One entry per student, bits and source: by student, then real first and noise last."""
    by_source: dict[tuple[str, str, str], list[Row]] = {}
    students: dict[tuple[str, str], int] = {}
    sources: dict[str, int] = {}
    for row in rows:
        student = (row.student, row.bits)
        students.setdefault(student, len(students))
        sources.setdefault(row.source, len(sources))
        by_source.setdefault((*student, row.source), []).append(row)
    by_key = {(g.student, g.bits, g.source, g.metric): g for g in gaps}
    keys = sorted(by_source, key=lambda k: (students[k[:2]], _rank(k[2]), sources[k[2]]))
    return [
        Entry(
            main,
            by_key.get((*key, main.metric)),
            {row.metric: row for row in others if not row.metric.startswith(EACH_OUTPUT)},
        )
        for key in keys
        for main, *others in [by_source[key]]
    ]


def _rank(source: str) -> int:
    return {REAL: 0, NOISE: 2}.get(source, 1)


def ordered_sources(names: Iterable[str]) -> list[str]:
    """Without repeats: real first, noise last, the others as they come."""
    return sorted(dict.fromkeys(names), key=_rank)


def gap_grid(rows: Sequence[Row], gaps: Sequence[Gap]) -> Grid:
    """The gap table; the headings name the metrics that the rows hold."""
    table = entries(rows, gaps)
    metric = table[0].main.metric if table else "accuracy"
    others = list(dict.fromkeys(name for entry in table for name in entry.others))
    header = ("student", "bits", "source", metric, "95 %", "gap", "95 %", "recovery", *others)
    lines = tuple(_line(entry, others) for entry in table)
    return Grid((*header, "images", "sets \u00d7 seeds", "s per fit"), lines, 3)


def _line(entry: Entry, others: Sequence[str]) -> tuple[str, ...]:
    main, gap = entry.main, entry.gap
    recovered = None if gap is None or gap.recovery is None else f"{number(100 * gap.recovery, 0)} %"
    return (
        main.student,
        main.bits,
        main.source,
        number(main.mean),
        interval(main.ci95),
        number(gap.gap) if gap else DASH,
        interval(gap.ci95) if gap else DASH,
        recovered or DASH,
        *(number(entry.others[name].mean) if name in entry.others else DASH for name in others),
        str(main.num_images),
        f"{len({r.shard_set for r in main.runs})} \u00d7 {len({r.seed for r in main.runs})}",
        number(main.seconds, 1),
    )


def has_bootstrap(gaps: Sequence[Gap]) -> bool:
    """Whether some gap has a second interval, for which it takes several shard sets."""
    return any(gap.bootstrap95 is not None for gap in gaps)


def bootstrap_grid(gaps: Sequence[Gap]) -> Grid:
    """Both intervals of every gap, of all metrics."""
    lines = tuple(
        (
            g.student,
            g.bits,
            g.source,
            g.metric,
            number(g.gap),
            interval(g.ci95),
            interval(g.bootstrap95),
        )
        for g in gaps
    )
    return Grid(("student", "bits", "source", "metric", "gap", "Welch 95 %", "bootstrap 95 %"), lines, 4)


def contrast_grid(contrasts: Sequence[Contrast]) -> Grid:
    """Every metric of every source, less that of real images and of noise."""
    lines = tuple(
        (
            c.student,
            c.bits,
            c.metric,
            c.source,
            number(c.value),
            number(c.minus_real),
            interval(c.minus_real95),
            number(c.minus_noise),
            interval(c.minus_noise95),
        )
        for c in contrasts
    )
    header = ("student", "bits", "metric", "source", "value", "minus real", "95 %", "minus noise", "95 %")
    return Grid(header, lines, 4)


def runs_grid(rows: Sequence[Row]) -> Grid:
    """Every metric of every single fit."""
    lines = tuple(
        (row.student, row.bits, row.source, row.metric, str(run.shard_set), str(run.seed), number(run.value))
        for row in rows
        for run in row.runs
    )
    return Grid(("student", "bits", "source", "metric", "shard set", "seed", "value"), lines, 4)


def markdown_table(grid: Grid) -> str:
    """A grid as markdown."""
    rule = ["---"] * grid.num_left + ["---:"] * (len(grid.header) - grid.num_left)
    lines = [grid.header, rule, *grid.lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def gap_table(rows: Sequence[Row], gaps: Sequence[Gap]) -> Table:
    """The gap table for a terminal of 80 columns, with two metrics."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    lines = entries(rows, gaps)
    others = list(dict.fromkeys(name for entry in lines for name in entry.others))[:1]
    for name in ("student", "bits", "source"):
        table.add_column(name, overflow="fold")
    for name in ("n", lines[0].main.metric if lines else "accuracy", "gap", "recovery", *others):
        table.add_column(name, justify="right", no_wrap=True)
    previous: tuple[str, ...] = ()
    for entry in lines:
        cells = _line(entry, others)
        if previous and cells[:2] != previous:
            table.add_row()
        # A name stands once, broken before its passes where it is long.
        named = ("", "") if cells[:2] == previous else (cells[0].replace("+", " +"), cells[1])
        previous = cells[:2]
        gap = plus_minus(entry.gap.gap, entry.gap.ci95) if entry.gap else DASH
        mean = plus_minus(entry.main.mean, entry.main.ci95)
        table.add_row(*named, cells[2], str(entry.main.num_images), mean, gap, *cells[7 : 8 + len(others)])
    return table


def plus_minus(value: float, bounds: Interval | None) -> str:
    """`value \u00b1 half width`, of an interval with unequal halves `value [low, high]`; else the value."""
    if bounds is None:
        return number(value)
    below, above = value - bounds[0], bounds[1] - value
    if abs(above - below) > 0.01:
        return f"{number(value)} {interval(bounds, 1)}"
    return f"{number(value)} \u00b1 {number((above + below) / 2)}"


def number(value: float | None, digits: int = 2) -> str:
    """Fixed digits with a true minus sign; a dash for None."""
    if value is None:
        return DASH
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", MINUS)


def interval(bounds: Interval | None, digits: int = 2) -> str:
    """`[low, high]`; a dash for None."""
    return DASH if bounds is None else f"[{number(bounds[0], digits)}, {number(bounds[1], digits)}]"
