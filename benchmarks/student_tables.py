"""Tables of students: what each is, and one recipe's or several recipes' figures by source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from common import Results

from zsq.measure.choices import choices_by_student
from zsq.measure.confidence import mean_interval, repeats, set_means, welch_interval
from zsq.measure.gap import Run
from zsq.measure.protocol import REAL
from zsq.report.choices import ALWAYS
from zsq.report.tables import DASH, Grid, interval, number, plus_minus
from zsq.saved.choices import always_same
from zsq.students import STUDENTS


def students_grid() -> Grid:
    """Every student as `zsq list students` has it."""
    lines = tuple(
        (f"`{name}`", cls.facts.paper, str(cls.least_bits), "; ".join(cls.facts.deviations) or DASH)
        for name, cls in STUDENTS.items()
    )
    return Grid(("student", "paper", "fewest bits", "what deviates from it"), lines, 4)


def of_first_metric(table: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The rows or the gaps of a recipe's file that are of the first row's metric; none of a missing file."""
    rows = table.get("rows", [])
    return [each for each in table.get(kind, []) if each["metric"] == rows[0]["metric"]]


def by_arm(recipes: dict[str, str], called: str | None, sources: Sequence[str]) -> Grid:
    """The first metric of each student by source, of recipes and what a first column `called` so says of
    each; no line of a recipe that was not run. A student that was to choose bits for each image and does not
    has that beside its figure."""
    lines = []
    for name, said in recipes.items():
        table = Results(name).read()
        rows = of_first_metric(table, "rows")
        choices = choices_by_student(table.get("fits", []))
        for student, bits in dict.fromkeys((row["student"], row["bits"]) for row in rows):
            of = {r["source"]: r["mean"] for r in rows if (r["student"], r["bits"]) == (student, bits)}
            failed = {
                source: f", {ALWAYS}"
                for source, each in choices.get(f"{student} {bits}", {}).items()
                if always_same(each["entropies"])
            }
            cells = (number(of[s]) + failed.get(s, "") if s in of else DASH for s in sources)
            lines.append((*([said] if called else []), f"`{student}`", bits, *cells))
    header = (*([called] if called else []), "student", "bits")
    return Grid((*header, *sources), tuple(lines), len(header))


def gains_grid(name: str, beside: dict[str, str]) -> Grid:
    """What a student gains over the one beside it, in the first metric: over sets, on the same images."""
    sets = {
        (row["student"], row["bits"], row["source"]): set_means(Run(**run) for run in row["runs"])
        for row in of_first_metric(Results(name).read(), "rows")
    }
    lines = []
    for (student, bits, source), values in sets.items():
        if (other := beside.get(student)) is not None:
            gains = values - sets[other, bits, source]
            means = number(float(np.mean(values))), number(float(np.mean(gains)))
            lines.append((f"`{student}`", f"`{other}`", bits, source, *means, interval(mean_interval(gains))))
    return Grid(("student", "beside", "bits", "source", "accuracy", "gain", "95 %"), tuple(lines), 4)


def ahead_grid(name: str, student: str, beside: Mapping[str, Sequence[str]]) -> Grid:
    """How far each source is ahead of the best of the others that stand beside it, in the first metric of one
    student; the interval is Welch's, as that of a gap to real images: over seeds where there is one set."""
    runs = {
        row["source"]: [Run(**run) for run in row["runs"]]
        for row in of_first_metric(Results(name).read(), "rows")
        if row["student"] == student
    }
    over_seeds = all(len(set_means(each)) == 1 for each in runs.values())
    sets = {source: repeats(each, over_seeds) for source, each in runs.items()}
    means = {source: float(np.mean(values)) for source, values in sets.items()}
    lines = []
    for source, others in beside.items():
        best = max(others, key=means.__getitem__)
        figures = number(means[source] - means[best]), interval(welch_interval(sets[source], sets[best]))
        lines.append((f"`{source}`", f"`{best}`", *figures, number(means[source]), number(means[best])))
    header = ("source", "best of the others", "ahead", "95 %", "accuracy", "of the other")
    return Grid(header, tuple(lines), 2)


def losses_grid(name: str) -> Grid:
    """By source and student, what the first metric loses to real images, and what it is on these."""
    table = Results(name).read()
    rows = of_first_metric(table, "rows")
    cells = {
        (row["source"], row["student"], row["bits"]): number(row["mean"])
        for row in rows
        if row["source"] == REAL
    }
    for gap in of_first_metric(table, "gaps"):
        cells[gap["source"], gap["student"], gap["bits"]] = plus_minus(gap["gap"], gap["ci95"])
    students = list(dict.fromkeys((row["student"], row["bits"]) for row in rows))
    lines = tuple(
        (source, *(cells.get((source, *student), DASH) for student in students))
        for source in dict.fromkeys(row["source"] for row in rows)
    )
    return Grid(("source", *(f"`{student}` {bits}" for student, bits in students)), lines, 1)
