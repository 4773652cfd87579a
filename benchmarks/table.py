"""Run a recipe as a benchmark: `python benchmarks/table.py RECIPE [--budget-hours H]`.

Continues `outputs/RECIPE`, keeps finished fits in `benchmarks/results/RECIPE.json`, and takes up the fits
found there, so that a table can be completed in several sittings and on several machines.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from zsq.bench import machine
from zsq.config import RuntimeConfig, load_recipe
from zsq.files import atomic_write_text
from zsq.gap import RunRecord
from zsq.progress import Reporter
from zsq.report.data import ReportData
from zsq.workflow import run_recipe

RESULTS = Path(__file__).parent / "results"
SHOWN = (
    "title", "teacher", "settings", "rows", "gaps", "bn_distance", "intra_class_distance", "cost",
    "contrasts", "roc",
)  # fmt: skip


def main(
    recipe: Annotated[str, typer.Argument(help="Name or path of a recipe.")],
    budget_hours: Annotated[float | None, typer.Option(help="Begin nothing new after this time.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default outputs/RECIPE.")] = None,
) -> None:
    """Run or continue the recipe and keep its table."""
    name = Path(recipe).stem
    target = RESULTS / f"{name}.json"
    loaded = load_recipe(recipe)
    if threads is not None:
        loaded = loaded.model_copy(update={"runtime": RuntimeConfig(threads=threads)})
    finished = json.loads(target.read_text(encoding="utf-8"))["fits"] if target.exists() else []

    def keep(data: ReportData, fits: list[RunRecord]) -> None:
        shown = {key: value for key, value in data.as_json().items() if key in SHOWN}
        table = {
            "command": f"python benchmarks/table.py {recipe}",
            "machine": machine(),
            **shown,
        }
        atomic_write_text(target, with_fits(json.dumps(table, indent=1), fits))

    run_recipe(
        loaded,
        out or Path("outputs") / name,
        resume=True,
        budget_hours=budget_hours,
        reporter=Reporter(),
        finished=finished,
        on_report=keep,
    )


def with_fits(table: str, fits: list[RunRecord]) -> str:
    """A JSON object with `fits` as its last entry; the hundreds of replicates of a fit on one line."""
    lines = []
    for fit in fits:
        plain = {key: value for key, value in fit.items() if key not in ("replicates", "roc")}
        text = json.dumps(plain, indent=1)
        for key in ("replicates", "roc"):
            if key in fit:
                text = f"{text[:-2]},\n {json.dumps(key)}: {json.dumps(fit[key])}\n}}"
        lines.append("  " + text.replace("\n", "\n  "))
    return f"{table[:-2]},\n " + '"fits": [\n' + ",\n".join(lines) + "\n ]\n}\n"


if __name__ == "__main__":
    typer.run(main)
