"""Seconds until images are good enough, beside model-compression-toolkit.

`python benchmarks/fidelity.py run [--mct PYTHON]`, where PYTHON is that of an environment with
benchmarks/consumers/mct.txt. Images are good enough where ResNet-20 at W4A4 is, with each of three sets, at
most half a point behind its mean over three sets of 256 real images. Each tool tries more images and passes
until its images are.

Everything runs on one thread, in processes of its own. Seconds are those of the core. Rows are kept in
benchmarks/results/fidelity.json, or fidelity-avx2.json with AVX2 alone; finished ones are not measured again.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import RESNET20, TEST, BudgetHours, Results, load_resnet20, run_again, synthetic, training_images
from mct_images import as_shards, images_of_the_tool

import zsq
from zsq.bench import Budget
from zsq.config import QuantizeConfig
from zsq.core.progress import Reporter
from zsq.core.runtime import Runtime
from zsq.measure.protocol import REAL
from zsq.measure.quantize import Places, Preparation, quantized
from zsq.report.tables import DASH, Grid, number

KIND = "fidelity-avx2" if torch.backends.cpu.get_cpu_capability() == "AVX2" else "fidelity"
METHOD, TOOL = "varied", "model-compression-toolkit"
SETS, BEHIND = 3, 0.5
# Images and passes, from the least work to the most.
LADDER = ((64, 10), (64, 25), (64, 50), (128, 50), (256, 50), (64, 250), (256, 100), (256, 250))
REAL_IMAGES = 256
STUDENT, BITS, OPTIONS = "genie-m", "W4A4", {"iterations": 200}

SHOWN = ("images_seconds", "seconds", "accuracy")

app = typer.Typer(add_completion=False)


@app.command()
def run(
    mct: Annotated[str | None, typer.Option(help="Python with model-compression-toolkit.")] = None,
    budget_hours: BudgetHours = None,
) -> None:
    """Measure what is missing."""
    results = Results(KIND, "python benchmarks/fidelity.py run --mct PYTHON")
    measure = partial(row, results, Budget(budget_hours))
    real = [measure(sys.executable, REAL, REAL_IMAGES, 0, index)["accuracy"] for index in range(SETS)]
    least = statistics.mean(real) - BEHIND
    tools = {METHOD: sys.executable} | ({TOOL: mct} if mct else {})
    for source, python in tools.items():
        for images, passes in LADDER:
            found = (measure(python, source, images, passes, index) for index in range(SETS))
            # A set that is too far behind ends the try.
            if all(each["accuracy"] >= least for each in found):
                break


def row(
    results: Results, budget: Budget, python: str, source: str, images: int, passes: int, index: int
) -> dict[str, Any]:
    """Seconds of the images of one set and of the student on them, and its accuracy; measured if not kept.

    Raises:
        Exit: no time is left.
    """
    facts = {"source": source, "images": images, "passes": passes, "set": index}
    for kept in results.rows():
        if facts.items() <= kept.items():
            return kept
    if budget.spent():
        raise typer.Exit
    found = {**facts}
    with tempfile.TemporaryDirectory() as folder:
        made, before = Path(folder) / ("made.pt" if source == TOOL else "made"), _core_seconds()
        if source != REAL:
            command = (__file__, "make", source, str(images), str(passes), str(index), str(made))
            found["images_seconds"] = run_again(*command, python=python)
        if source == TOOL:
            as_shards(made, Path(folder) / "shards")
            made = Path(folder) / "shards"
        found["accuracy"] = run_again(__file__, "fit", source, str(index), str(made))
        found["seconds"] = round(_core_seconds() - before, 1)
    results.add(found, order=_order)
    return found


def _order(row: dict[str, Any]) -> tuple[int, int, int]:
    return (REAL, METHOD, TOOL).index(row["source"]), row["images"] * row["passes"], row["set"]


def _core_seconds() -> float:
    """Of all processes that have ended: on one thread, the time they take where nothing else runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@app.command(hidden=True)
def make(source: str, images: int, passes: int, index: int, out: Path) -> None:
    """The images of one set; core seconds, without those of the start, on stdout."""
    torch.set_num_threads(1)
    load_resnet20()  # the first time takes longer
    start = time.process_time()
    if source == METHOD:
        synthetic(METHOD, out, count=images, iterations=passes, seed=index)
    else:
        torch.save(images_of_the_tool(images, passes, index), out)
    typer.echo(round(time.process_time() - start, 1))


@app.command(hidden=True)
def fit(source: str, index: int, made: Path) -> None:
    """The student on one set; its accuracy on stdout."""
    torch.set_num_threads(1)
    teacher = load_resnet20()
    if source == REAL:
        images = training_images(teacher.spec).disjoint_sets(SETS, REAL_IMAGES, 0)[index]
    else:
        images = zsq.load_images(made, teacher.spec)
    config = QuantizeConfig(
        teacher=RESNET20, student=STUDENT, bits=BITS, eval=TEST, first_last=8, set=OPTIONS, seed=index
    )
    prepared = Preparation.of(config, teacher, Runtime(threads=1), Places())
    typer.echo(round(quantized(prepared, images, Reporter()).metrics["accuracy"], 2))


def fidelity_grid(kind: str) -> Grid:
    """Core seconds and accuracy of each try, means over its sets; `kind` names the file of results."""
    header = ("source", "images", "passes", "s for images", "s in all", "accuracy", "each set")
    tries: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for kept in Results(kind).rows():
        tries.setdefault((kept["source"], kept["images"], kept["passes"]), []).append(kept)
    lines = []
    for (source, images, passes), sets in tries.items():
        mean = {key: statistics.mean(each[key] for each in sets) for key in SHOWN if key in sets[0]}
        made = (str(passes), f"{mean['images_seconds']:.0f}") if passes else (DASH, DASH)
        each_set = ", ".join(number(each["accuracy"]) for each in sets)
        lines.append(
            (source, str(images), *made, f"{mean['seconds']:.0f}", number(mean["accuracy"]), each_set)
        )
    return Grid(header, tuple(lines), 1)


if __name__ == "__main__":
    app()
