"""`zsq gap` and `zsq run`: comparisons that end in a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zsq.cli.options import (
    ClassNames,
    Compile,
    Device,
    Evaluation,
    FirstLast,
    FitPhotos,
    Jobs,
    Offline,
    Passes,
    Precision,
    Resume,
    Teacher,
    Threads,
    Weights,
    asked,
    setting,
)
from zsq.config import GAP, IMAGES, OFFLINE, RUNTIME


def gap(
    context: typer.Context,
    teacher: Teacher,
    shards: Annotated[
        list[str],
        typer.Option(
            metavar="DIR",
            help="Folder of a set. Give it again for more; sets of one method count as repetitions.",
        ),
    ],
    real: Annotated[str, typer.Option(metavar="SRC", help="Real training images to compare with.")],
    eval: Evaluation,
    student: Annotated[list[str], typer.Option(help="A student. Can be given again.")],
    bits: Annotated[
        list[str], typer.Option(help="Bits of weights and activations, as in W4A4. Can be given again.")
    ],
    out: Annotated[str, typer.Option(metavar="PATH", help="Folder for the report.")],
    weights: Weights = GAP.weights,
    seeds: Annotated[
        int, typer.Option(help="How many times each student is fitted, with other random numbers.")
    ] = GAP.seeds,
    count: Annotated[
        int | None, typer.Option(help="Images per set. Without it, as many as the smallest set has.")
    ] = GAP.count,
    first_last: FirstLast = GAP.first_last,
    passes: Passes = None,
    fit: FitPhotos = IMAGES.fit,
    class_names: ClassNames = IMAGES.class_names,
    set_: Annotated[list[str] | None, setting("a student", "STUDENT.KEY")] = None,
    show_real: Annotated[
        bool, typer.Option("--show-real", help="Put real images on the contact sheet.")
    ] = GAP.show_real,
    resume: Resume = False,
    jobs: Jobs = None,
    offline: Offline = OFFLINE,
    precision: Precision = RUNTIME.precision,
    compile: Compile = RUNTIME.compile,
    threads: Threads = RUNTIME.threads,
    device: Device = RUNTIME.device,
) -> None:
    """Measure how much synthetic images lose to real ones."""
    from zsq import api

    values = asked(context)
    data = api.measure_gap(students=values.pop("student"), **values)
    _show(data, out)


def run(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or a TOML file; see `zsq list recipes`.")],
    out: Annotated[
        str | None, typer.Option(metavar="PATH", help="Folder for the run. Without it, outputs/RECIPE.")
    ] = None,
    resume: Resume = False,
    budget_hours: Annotated[
        float | None, typer.Option(help="Start no new work after this many hours.")
    ] = None,
    jobs: Jobs = None,
    fit: FitPhotos = IMAGES.fit,
    class_names: ClassNames = IMAGES.class_names,
    offline: Offline = OFFLINE,
    precision: Precision = RUNTIME.precision,
    compile: Compile = RUNTIME.compile,
    threads: Threads = RUNTIME.threads,
    device: Device = RUNTIME.device,
) -> None:
    """Run a recipe: generate, fit students, measure the gap, report."""
    from zsq import api

    data, folder = api.run(**asked(context))
    _show(data, folder)


def _show(data: Any, folder: str | Path) -> None:
    from rich.console import Console

    from zsq.core.processes import Processes
    from zsq.report.tables import gap_table

    if not Processes.started().first:
        return
    typer.echo(data.verdict + "\n")
    Console().print(gap_table(data.rows, data.gaps))
    typer.echo(f"report: {Path(folder) / 'report.html'}")
