"""`zsq generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from zsq.cli.options import (
    Compile,
    Device,
    Effort,
    Method,
    Offline,
    Precision,
    Seed,
    Teacher,
    Threads,
    Weights,
    asked,
    setting,
)
from zsq.config import GENERATE, OFFLINE, RUNTIME


def generate(
    context: typer.Context,
    teacher: Teacher,
    method: Method = None,
    weights: Weights = GENERATE.weights,
    count: Annotated[
        int | None,
        typer.Option(help="Number of images. Without it, as many as the resumed run has, or the default."),
    ] = GENERATE.count,
    batch: Annotated[
        int | None, typer.Option(help="How many images are made together. Without it, the method decides.")
    ] = GENERATE.batch,
    shard_size: Annotated[
        int, typer.Option(help="Largest number of images in one file.")
    ] = GENERATE.shard_size,
    seed: Seed = GENERATE.seed,
    out: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Folder for the run. Without it, outputs/TEACHER-METHOD."),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(help="Number of optimisation steps. Schedules are scaled to it. Overrides --effort."),
    ] = GENERATE.iterations,
    effort: Effort = GENERATE.effort,
    real: Annotated[
        str | None, typer.Option(metavar="SRC", help="Real images. Only a method that reads some takes them.")
    ] = GENERATE.real,
    set_: Annotated[list[str] | None, setting("the method")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run that is in the folder. A larger --count adds images."
        ),
    ] = False,
    sealed: Annotated[
        bool,
        typer.Option(
            "--sealed", help="Refuse to open data files and sockets. The manifest lists what was opened."
        ),
    ] = GENERATE.sealed,
    offline: Offline = OFFLINE,
    precision: Precision = RUNTIME.precision,
    compile: Compile = RUNTIME.compile,
    threads: Threads = RUNTIME.threads,
    device: Device = RUNTIME.device,
) -> None:
    """Make calibration images from a teacher, as HDF5 shards."""
    from zsq import api

    folder = api.generate(**asked(context))
    from zsq.core.processes import Processes

    if Processes.started().first:
        typer.echo(folder)
