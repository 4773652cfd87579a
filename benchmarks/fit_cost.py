"""Time and peak memory of a fit: `python benchmarks/fit_cost.py RECIPE [--threads N]`.

Each student of the recipe fits its first set of real images once, in a process of its own, compilation
included. Kept in benchmarks/results/RECIPE-cost.json, where finished students are not measured again.
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from common import Results, run_again
from memory import peak_mb

from zsq.recipefile import load_recipe
from zsq.workflow import recipe_protocol


def one_fit(recipe: str, index: int, threads: int) -> dict[str, Any]:
    """Seconds of student `index`, and the process's peak memory before and after."""
    loaded = load_recipe(recipe).with_runtime(threads=threads)
    protocol = recipe_protocol(loaded)
    chosen, teacher, runtime = protocol.students[index], protocol.teacher, protocol.runtime
    spec = chosen.spec
    before, start = peak_mb(), time.perf_counter()
    with runtime.in_force():
        chosen.student.fit(teacher, protocol.real_sets[0].pixels, spec.bits, first_last=spec.first_last)
    seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 1), "peak_mb": round(peak_mb()), "peak_mb_before": round(before)}


def main(
    recipe: Annotated[str, typer.Argument(help="Name or path of a recipe.")],
    threads: Annotated[int, typer.Option(help="Threads.")] = 2,
    index: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure the students that are missing."""
    if index is not None:
        typer.echo(json.dumps(one_fit(recipe, index, threads)))
        return
    command = f"python benchmarks/fit_cost.py {recipe} --threads {threads}"
    results = Results(f"{Path(recipe).stem}-cost", command)
    students = [(student.name, bits) for student in load_recipe(recipe).students for bits in student.bits]
    for number, (name, bits) in enumerate(students):
        again = (__file__, recipe, "--threads", str(threads), "--index", str(number))
        results.once("fits", f"{name} {bits}", partial(run_again, *again))


if __name__ == "__main__":
    typer.run(main)
