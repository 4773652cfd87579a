"""Time and peak memory of a fit: `python benchmarks/fit_cost.py RECIPE [--threads N]`.

Each student of the recipe fits its first set of real images once, in a process of its own, compilation
included. Kept in benchmarks/results/RECIPE-cost.json, where finished students are not measured again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from memory import peak_mb

from zsq.bench import machine
from zsq.config import RuntimeConfig, load_recipe
from zsq.core.files import atomic_write_text
from zsq.workflow import recipe_protocol

RESULTS = Path(__file__).parent / "results"


def one_fit(recipe: str, index: int, threads: int) -> dict[str, Any]:
    """Seconds of student `index`, and the process's peak memory before and after."""
    loaded = load_recipe(recipe).model_copy(update={"runtime": RuntimeConfig(threads=threads)})
    protocol = recipe_protocol(loaded)
    chosen, teacher, runtime = protocol.students[index], protocol.teacher, protocol.runtime
    spec = chosen.spec
    before, start = peak_mb(), time.perf_counter()
    with runtime.threads_set():
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
    target = RESULTS / f"{Path(recipe).stem}-cost.json"
    kept: dict[str, Any] = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {"fits": {}}
    kept |= {"command": f"python benchmarks/fit_cost.py {recipe} --threads {threads}", "machine": machine()}
    students = [(student.name, bits) for student in load_recipe(recipe).students for bits in student.bits]
    for number, (name, bits) in enumerate(students):
        if f"{name} {bits}" not in kept["fits"]:
            again = [sys.executable, __file__, recipe, "--threads", str(threads), "--index", str(number)]
            printed = subprocess.run(again, check=True, capture_output=True, text=True).stdout
            kept["fits"][f"{name} {bits}"] = json.loads(printed.splitlines()[-1])
            atomic_write_text(target, json.dumps(kept, indent=1) + "\n")
        typer.echo(f"{name} {bits}: {kept['fits'][f'{name} {bits}']}")


if __name__ == "__main__":
    typer.run(main)
