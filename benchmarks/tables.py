"""Write the tables of README.md and docs/*.md from benchmarks/results: `python benchmarks/tables.py`.

A table stands between `<!-- table NAME -->` and `<!-- end of table -->`; NAME is one of `TABLES`, or `rooms`
for the picture of the import graph. With `--check` nothing is written, and pages that differ are named.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import DOCS, Results
from deploy_tables import inspect_grid, runtimes_grid, taken_grid
from fidelity import fidelity_grid
from leakage_tables import audits_of, leakage_table
from million import million_grid
from network_tables import detector, library_transformers, super_resolution, zoo
from one_command import calls_grid, defaults_grid
from rooms import mermaid
from source_tables import moments_table, sources_table
from student_tables import ahead_grid, by_arm, gains_grid, losses_grid, students_grid
from throughput_tables import cold_starts, fit_speed, speed, throughput
from tuning_tables import tuning, tuning_norms, tuning_views

from zsq.measure.confidence import Interval, welch_interval
from zsq.measure.gap import Gap, Row, Run
from zsq.measure.protocol import NOISE, REAL
from zsq.report.build import sets_grid
from zsq.report.data import ReportData
from zsq.report.tables import Grid, entries, gap_grid, markdown_table, number
from zsq.widths import Bits

PAGES = (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))
BLOCK = re.compile(r"(<!-- table ([\w-]+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)


@dataclass(frozen=True)
class Measured:
    """What a recipe's file holds."""

    rows: list[Row]
    gaps: list[Gap]
    data: ReportData

    def mean(self, student: str, source: str) -> float:
        """Of the first metric."""
        return self._found(student, source).mean

    def gap(self, student: str, source: str) -> float | None:
        """To real images, of the first metric; None of real images themselves."""
        metric = self._found(student, source).metric
        of = (gap for gap in self.gaps if (gap.student, gap.source, gap.metric) == (student, source, metric))
        return next((gap.gap for gap in of), None)

    def bn_distance(self, source: str) -> float:
        """Mean over layers."""
        return statistics.mean(self.data.bn_distance[source])

    def _found(self, student: str, source: str) -> Row:
        return next(row for row in self.rows if (row.student, row.source) == (student, source))


def measured(name: str) -> Measured:
    """Read one file of benchmarks/results."""
    table = Results(name).read()
    rows = [Row(**(row | {"runs": tuple(Run(**run) for run in row["runs"])})) for row in table["rows"]]
    gaps = [Gap(**gap) for gap in table["gaps"]]
    distances = table.get("bn_distance", {"layers": (), "sources": {}})
    data = ReportData(
        title=table["title"],
        teacher=table["teacher"],
        settings=table["settings"],
        rows=rows,
        gaps=gaps,
        layer_names=distances["layers"],
        bn_distance=distances["sources"],
        intra_class_distance=table.get("intra_class_distance", {}),
        cost=table.get("cost", {}),
        roc=table.get("roc", {}),
        leakage=audits_of(table),
    )
    return Measured(rows, gaps, data)


def gaps_of(name: str, columns: Sequence[str], left: int) -> Grid:
    """Columns of the gap table; after `accuracy` or `gap`, `95 %` is the interval of that one."""
    found = measured(name)
    whole = gap_grid(found.rows, found.gaps)
    places: list[int] = []
    for column in columns:
        places.append(whole.header.index(column, places[-1] + 1 if places else 0))
    students = list(dict.fromkeys(line[0] for line in whole.lines))
    lines = sorted(whole.lines, key=lambda line: _order(students, *line[:4]))
    return Grid(tuple(columns), tuple(tuple(line[place] for place in places) for line in lines), left)


def _order(students: list[str], student: str, bits: str, source: str, mean: str) -> tuple[Any, ...]:
    """By student, then the most bits, then real images before the others, the best of them first."""
    width = Bits.parse(bits)
    return students.index(student), -width.weights, -width.activations, source != REAL, -float(mean)


def sets_of(name: str) -> Grid:
    """What each source cost, and what its first set is like."""
    return sets_grid(measured(name).data)


ALL = ("bits", "source", "accuracy", "95 %", "gap", "95 %", "recovery", "agreement")


def curve(name: str, shown: Callable[[Measured, str, str], float | None]) -> Grid:
    """One figure of `lsq-kd`, `Measured.mean` or `Measured.gap`, by method and passes per image."""
    found = measured(name)
    costs = sorted({cost for cost in found.data.cost.values() if cost})
    methods = dict.fromkeys(found.data.curves.values())
    known = {row.source for row in found.rows}

    def cell(source: str) -> str:
        return number(shown(found, "lsq-kd", source) if source in known else None)

    lines = tuple((method, *(cell(f"{method}-{cost:.0f}") for cost in costs)) for method in methods)
    return Grid(("method", *(f"{cost:.0f} passes" for cost in costs)), lines, 1)


def efforts(name: str) -> Grid:
    """Agreement with the teacher by source and student, and the BN distance of the images."""
    found = measured(name)
    rows = [row for row in found.rows if row.metric == "agreement"]
    students = dict.fromkeys((row.student, row.bits) for row in rows)
    lines = []
    for source in dict.fromkeys(row.source for row in rows):
        of = {(row.student, row.bits): row.mean for row in rows if row.source == source}
        cells = (number(of[student], 1) for student in students)
        lines.append((source, *cells, f"{found.bn_distance(source):.4g}"))
    return Grid(("source", *(f"`{name}` {bits}" for name, bits in students), "BN distance"), tuple(lines), 1)


def second() -> Grid:
    """Two students of the second teacher side by side, and what the images are like."""
    found = measured("methods-second")
    lines = []
    for source in dict.fromkeys(entry.main.source for entry in entries(found.rows, found.gaps)):
        cells = []
        for student in ("lsq-kd", "genie-m"):
            cells += [number(found.mean(student, source), 1), number(found.gap(student, source), 1)]
        distance, variety = found.bn_distance(source), found.data.intra_class_distance[source]
        digits = 0 if distance >= 100 else 2
        lines.append((source, *cells, number(distance, digits), number(variety, 3)))
    lines.sort(key=lambda line: (line[0] != REAL, -float(line[3])))
    header = ("source", "`lsq-kd`", "gap", "`genie-m`", "gap", "BN distance", "intra-class distance")
    return Grid(header, tuple(lines), 1)


def students_headline() -> Grid:
    """By bits, then student."""
    header = ("student", "bits", "source", "accuracy", "95 %", "gap", "95 %", "agreement")
    grid = gaps_of("students-headline", header, 3)
    widths = ("W4A4", "W2A4", "W4A32")
    return replace(grid, lines=tuple(sorted(grid.lines, key=lambda line: widths.index(line[1]))))


def students_screen() -> Grid:
    """Accuracy by student and source, with time and memory of a fit."""
    found, cost = measured("students-screen"), Results("students-screen-cost").read()["fits"]
    lines = []
    for student in dict.fromkeys(row.student for row in found.rows):
        fit = cost[f"{student} W2A4"]
        accuracy = (number(found.mean(student, source)) for source in ("real", "dsg", "noise"))
        memory = f"{fit['peak_mb'] - fit['peak_mb_before']} MB"
        lines.append((f"`{student}`", *accuracy, f"{fit['seconds']:.0f} s", memory))
    lines.sort(key=lambda line: -float(line[1]))
    return Grid(("student", "real", "dsg", "noise", "time", "memory"), tuple(lines), 1)


def rounding() -> Grid:
    """Images before and after they are stored."""
    lines = tuple(
        (
            method,
            f"{row['bn_distance']:.4g}",
            f"{row['bn_distance_uint8']:.4g}",
            f"{row['same_class_percent']:.1f} %",
        )
        for method, row in Results("rounding").read()["methods"].items()
    )
    return Grid(("method", "BN distance", "as uint8", "same top-1 class"), lines, 1)


def by_source(
    rows: Iterable[tuple[tuple[str, ...], str, float]], header: Sequence[str], sources: Sequence[str]
) -> Grid:
    """One column per source, the first being real images: means over sets; in brackets what the others lose
    to them, with its interval where both have several sets."""
    found: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for names, source, accuracy in rows:
        found.setdefault(names, {}).setdefault(source, []).append(accuracy)
    lines = tuple(
        (*names, *(_against_real(of.get(source), of[sources[0]]) for source in sources))
        for names, of in found.items()
    )
    return Grid((*header, *sources), lines, len(header))


def _against_real(sets: list[float] | None, real: list[float]) -> str:
    if sets is None:
        return ""
    mean = statistics.mean(sets)
    if sets is real:
        return f"{mean:.2f}"
    interval = welch_interval(np.array(real), np.array(sets))
    lost = f"{statistics.mean(real) - mean:+.2f}"
    return f"{mean:.2f} ({lost})" if interval is None else f"{mean:.2f} ({lost} {_bracket(interval)})"


def _bracket(interval: Interval) -> str:
    return f"[{interval[0]:.2f}, {interval[1]:.2f}]"


def consumers() -> Grid:
    """Accuracy by tool and bits."""
    rows = sorted(
        (row for row in Results("consumers").rows() if row["network"] == "resnet20"),
        key=lambda row: (row["tool"], row["bits"] != "W8A8"),
    )
    cells = (((row["tool"], row["bits"]), row["source"], row["accuracy"]) for row in rows)
    return by_source(cells, ("tool", "bits"), ("real", "dgh", "deepinversion", "noise"))


def mct_images() -> Grid:
    """Another tool's images beside ours."""
    rows = [row for row in measured("mct-images").rows if row.metric == "accuracy"]
    cells = (
        ((row.bits,), {"mct": "model-compression-toolkit"}.get(row.source, row.source), row.mean)
        for row in rows
    )
    return by_source(cells, ("bits",), ("real", "deepinversion", "model-compression-toolkit", "noise"))


def face() -> Grid:
    """What the face network's student keeps."""
    columns = ("bits", "source", "cosine", "95 %", "gap", "95 %", "tar@1e-3", "tar@1e-2", "auc", "eer")
    grid = gaps_of("face", columns, 2)
    return Grid((*columns[:6], "TAR at 1e-3", "at 1e-2", "AUC", "EER"), grid.lines, 2)


ARMS = (REAL, "dgh", NOISE)
OF_ONE_STUDENT = ("source", "accuracy", "95 %", "gap", "95 %", "agreement")
KD_SMALL = {"kd-small-1000": "1,000", "kd-small-5000": "5,000", "kd-small": "20,000"}
IMAGES = {f"images-{count}": str(count) for count in (256, 1024, 4096)}
HALF = {
    "varied-25": ("dgh-50", "deepinversion-50"),
    "varied-50": ("dgh-100", "deepinversion-100"),
}
TABLES: dict[str, Callable[[], Grid]] = {
    "super-resolution": super_resolution,
    "detector": detector,
    "zoo": zoo,
    "library-transformers": library_transformers,
    "methods-screen": partial(gaps_of, "methods-screen", ALL[1:], 1),
    "methods-screen-sets": partial(sets_of, "methods-screen"),
    "methods-headline": partial(gaps_of, "methods-headline", ALL, 2),
    "methods-headline-sets": partial(sets_of, "methods-headline"),
    "resnet20-2048": partial(gaps_of, "resnet20-2048", ("student", *ALL), 3),
    "resnet20-2048-norms": partial(gaps_of, "resnet20-2048-norms", ("student", *ALL), 2),
    "resnet20-20000": partial(gaps_of, "resnet20-20000", ("student", *ALL), 3),
    "resnet8-1024": partial(gaps_of, "resnet8-1024", ALL, 1),
    "resnet8-norms": partial(gaps_of, "resnet8-norms", ("student", *ALL), 2),
    "methods-curve": partial(curve, "methods-curve", Measured.mean),
    "passes-curve": partial(curve, "passes-curve", Measured.gap),
    "passes-half": partial(gaps_of, "passes-half", ("student", *ALL[1:]), 2),
    "passes-half-ahead": partial(ahead_grid, "passes-half", "lsq-kd", HALF),
    "images": partial(by_arm, IMAGES, "images", (REAL, "varied", "dgh", "deepinversion")),
    "effort-mcunet": partial(efforts, "effort-mcunet"),
    "effort-pyramid": partial(efforts, "effort-pyramid"),
    "mcunet-250-ahead": partial(ahead_grid, "mcunet-250", "genie-m", {"pyramid-50": ("dgh-100",)}),
    "mcunet-250": partial(gaps_of, "mcunet-250", OF_ONE_STUDENT, 1),
    "effort-cifar10": partial(efforts, "effort-cifar10"),
    "cifar10-resnet20": partial(gaps_of, "cifar10-resnet20", ("student", *ALL), 3),
    "methods-second": second,
    "methods-224px": partial(gaps_of, "methods-224px", ("bits", "source", "accuracy", "gap", "agreement"), 2),
    "methods-224px-sets": partial(sets_of, "methods-224px"),
    "etinynet-512": partial(gaps_of, "etinynet-512", OF_ONE_STUDENT, 1),
    "digits-detector": partial(
        gaps_of, "digits-detector", ("student", "source", "agreement_ap", "gap", "95 %", "map"), 2
    ),
    "defaults": defaults_grid,
    "one-command": calls_grid,
    "rounding": rounding,
    "moments": moments_table,
    "folded-resnet20": partial(sources_table, "folded-resnet20"),
    "dsg-digits": partial(sources_table, "dsg-digits"),
    "pyramid-resnet20": partial(sources_table, "pyramid-resnet20"),
    "varied-resnet20": partial(sources_table, "varied-resnet20"),
    "sardfq-fashion": partial(sources_table, "sardfq-fashion"),
    "sardfq-digits": partial(sources_table, "sardfq-digits"),
    "cifar-vit-bn": partial(sources_table, "cifar-vit-bn"),
    "students": students_grid,
    "students-headline": students_headline,
    "students-screen": students_screen,
    "students-seeds": partial(by_arm, {"students-seeds": ""}, None, ARMS),
    "transformers-32": partial(losses_grid, "transformers-32"),
    "transformers": partial(losses_grid, "transformers"),
    "transformers-defaults": partial(by_arm, {"transformers-defaults": ""}, None, (REAL, "leaves")),
    "students-gains": partial(gains_grid, "students-gains", {"lq-net": "lsq-kd", "dir-net": "binary"}),
    "kd-small": partial(by_arm, KD_SMALL, "images", ARMS),
    "daq": partial(by_arm, {"daq": ""}, None, (REAL, NOISE)),
    "leakage": partial(leakage_table, "leakage"),
    "tuning": tuning,
    "tuning-norms": tuning_norms,
    "tuning-views": tuning_views,
    "consumers": consumers,
    "consumers-taken": taken_grid,
    "inspect": inspect_grid,
    "runtimes": runtimes_grid,
    "mct-images": mct_images,
    "fidelity": partial(fidelity_grid, "fidelity"),
    "fidelity-avx2": partial(fidelity_grid, "fidelity-avx2"),
    "face": face,
    "million": million_grid,
    "throughput": throughput,
    "throughput-cold-starts": cold_starts,
    "fit-speed": fit_speed,
    "throughput-short": speed,
}


def rendered(page: str) -> str:
    """A page with everything between its markers made anew.

    Raises:
        KeyError: it names a table that is not there.
    """

    def block(found: re.Match[str]) -> str:
        name = found[2]
        made = mermaid() if name == "rooms" else markdown_table(TABLES[name]())
        return f"{found[1]}{made}\n{found[4]}"

    return BLOCK.sub(block, page)


def main(check: Annotated[bool, typer.Option("--check", help="Write nothing.")] = False) -> None:
    """Make every table anew, or name the pages that differ."""
    differing: list[Path] = []
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = rendered(before)
        if after != before:
            differing.append(page)
            if not check:
                page.write_text(after, encoding="utf-8")
    for page in differing:
        typer.echo(f"{page.name}: {'differs from what it is made of' if check else 'written'}")
    raise typer.Exit(int(check and bool(differing)))


if __name__ == "__main__":
    typer.run(main)
