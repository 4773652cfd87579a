"""Whether fits of one commit are faster than those of another: `python benchmarks/fit_speed.py BEFORE AFTER`.

Both commits fit the same students on the same random images in turns, `--rounds` times, each fit in a process
of its own and short: nothing is compiled, and what a fit does before its first step counts too. Keeps the
seconds, and the median over rounds of the ratio before / after, in benchmarks/results/fit-speed.json.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from commits import checked_out, run_in

DATA = Path(os.environ.get("ZSQ_DATA", "../shared/data")).resolve()
RESNET20 = ("cifar10:resnet20", DATA / "cifar10_jpeg" / "resnet20.pt")
FASTEST_DET = (f"file:{DATA / 'detector' / 'fastestdet.toml'}", None)


class Job(NamedTuple):
    """A student on one teacher and number of images."""

    network: str
    teacher: tuple[str, Path | None]
    student: str
    bits: str
    num_images: int
    options: dict[str, Any]


JOBS = (
    Job("ResNet-20", RESNET20, "genie-m", "W4A4", 256, {"iterations": 30}),
    Job("ResNet-20", RESNET20, "qdrop", "W4A4", 256, {"iterations": 30}),
    Job("ResNet-20", RESNET20, "lsq-kd", "W4A4", 256, {"iterations": 10}),
    Job("FastestDet", FASTEST_DET, "genie-m", "W4A8", 24, {"iterations": 2, "batch": 8}),
)


def seconds_of(job: Job, threads: int) -> float:
    """Wall time of one fit, with the zsq that is imported."""
    import torch

    from zsq.core.runtime import Runtime
    from zsq.students import create
    from zsq.teacher import load_teacher
    from zsq.widths import Bits

    teacher = load_teacher(*job.teacher)
    runtime = Runtime.resolve("cpu", compile="off", threads=threads)
    student = create(job.student, teacher.spec, job.options, runtime)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        0, 256, (job.num_images, *teacher.spec.shape), dtype=torch.uint8, generator=generator
    )
    with runtime.in_force():
        start = time.perf_counter()
        student.fit(teacher, pixels, Bits.parse(job.bits), first_last=None)
        seconds = time.perf_counter() - start
    return seconds


def main(
    before: Annotated[str, typer.Argument(help="A commit.")],
    after: Annotated[str, typer.Argument(help="Another commit.")] = "HEAD",
    rounds: Annotated[int, typer.Option(help="Fits of each commit.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads.")] = 2,
    job: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Time both commits in turns."""
    if job is not None:
        typer.echo(json.dumps(seconds_of(JOBS[job], threads)))
        return
    # Children run in other folders.
    os.environ["ZSQ_DATA"] = str(DATA)
    with checked_out(before) as old, checked_out(after) as new:
        rows = [compared(index, (old, new), rounds, threads) for index in range(len(JOBS))]
    keep(before, after, threads, rows)


def compared(index: int, trees: tuple[Path, Path], rounds: int, threads: int) -> dict[str, Any]:
    """One job by both commits in turns."""
    job, found = JOBS[index], []
    arguments = ("", "--threads", str(threads), "--job", str(index))
    for _ in range(rounds):
        before, after = (float(run_in(tree, __file__, arguments, threads).splitlines()[-1]) for tree in trees)
        found.append((before, after))
        typer.echo(f"{job.network}, {job.student}: {before:.1f} s, {after:.1f} s", err=True)
    return {
        "network": job.network,
        "student": f"{job.student} {job.bits}",
        "images": job.num_images,
        "options": job.options,
        "before": [round(before, 2) for before, _ in found],
        "after": [round(after, 2) for _, after in found],
        "ratio": round(statistics.median(before / after for before, after in found), 2),
    }


def keep(before: str, after: str, threads: int, rows: list[dict[str, Any]]) -> None:
    """Into benchmarks/results/fit-speed.json."""
    from common import Results

    results = Results("fit-speed", f"python benchmarks/fit_speed.py {before} {after} --threads {threads}")
    results.write(threads=threads, rows=rows)


if __name__ == "__main__":
    typer.run(main)
