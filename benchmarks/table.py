"""Run a recipe as a benchmark: `python benchmarks/table.py RECIPE [--budget-hours H] [--jobs N]`.

Continues `outputs/RECIPE`, keeps finished fits in `benchmarks/results/RECIPE.json`, and takes up the fits
found there, so that a table can be completed in several sittings and on several machines. The bootstrap
replicates of an embedding teacher or a detector stay in `outputs/RECIPE`: without that folder its fits are
made again.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from common import RESULTS, BudgetHours, Jobs, Threads, machine

from zsq.core.files import atomic_write_text
from zsq.core.jobs import in_jobs
from zsq.core.progress import Reporter
from zsq.measure.gap import gaps_from_rows, rows_from_runs
from zsq.measure.protocol import RunRecord
from zsq.recipefile import Recipe, load_recipe
from zsq.report.data import ReportData
from zsq.tasks import TASKS
from zsq.workflow import run_recipe

SHOWN = (
    "title", "teacher", "settings", "rows", "gaps", "bn_distance", "intra_class_distance", "cost",
    "contrasts", "roc", "choices", "leakage",
)  # fmt: skip


def main(
    recipe: Annotated[str, typer.Argument(help="Name or path of a recipe.")],
    budget_hours: BudgetHours = None,
    threads: Threads = None,
    jobs: Jobs = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default outputs/RECIPE.")] = None,
    rewrite: Annotated[bool, typer.Option(help="Compute the kept table again, fit nothing.")] = False,
) -> None:
    """Run or continue the recipe and keep its table."""
    name = Path(recipe).stem
    target = RESULTS / f"{name}.json"
    if rewrite:
        write(target, computed_again(json.loads(target.read_text(encoding="utf-8"))))
        return
    loaded = load_recipe(recipe)
    if threads is not None:
        loaded = loaded.with_runtime(threads=threads)
    finished = fits_of(target, loaded) if target.exists() else []

    def keep(data: ReportData, fits: list[RunRecord]) -> None:
        shown = {key: value for key, value in data.as_json().items() if key in SHOWN}
        command = f"python benchmarks/table.py {recipe}"
        write(target, {"command": command, "machine": machine(), **shown, "fits": fits})

    call = partial(run_recipe, loaded, out or Path("outputs") / name, resume=True, budget_hours=budget_hours)
    in_jobs(jobs, call, reporter=Reporter(), finished=finished, on_report=keep)


def fits_of(target: Path, recipe: Recipe) -> list[RunRecord]:
    """The fits of a committed table, if its images are those of the recipe.

    Raises:
        BadParameter: they are not: a fit's record does not say how its images were made.
    """
    table = json.loads(target.read_text(encoding="utf-8"))
    # What was resolved, such as the machine's precision, is not a recipe's to state.
    stated = Recipe.model_fields.keys() & table["settings"].keys() - {"runtime"}
    before = Recipe(**{key: table["settings"][key] for key in stated})
    same = before.generate.model_copy(update={"shard_sets": recipe.generate.shard_sets}) == recipe.generate
    same = same and all(getattr(before, key) == getattr(recipe, key) for key in ("teacher", "real", "eval"))
    known = {source.label: source for source in before.sources}
    if not same or any(known.get(source.label, source) != source for source in recipe.sources):
        raise typer.BadParameter(f"{target} was made of other images; move it away")
    return list(table["fits"])


def computed_again(table: dict[str, Any]) -> dict[str, Any]:
    """The table with rows and gaps of its fits; those of replicates stay, since no table keeps replicates."""
    if TASKS[table["teacher"].get("task", "classify")].has_replicates:
        return table
    rows = rows_from_runs(table["fits"])
    gaps = gaps_from_rows(rows)
    return {**table, "rows": [asdict(row) for row in rows], "gaps": [asdict(gap) for gap in gaps]}


def write(target: Path, table: dict[str, Any]) -> None:
    """Keep a table: its `fits` without bootstrap replicates, which the intervals in `rows`, `gaps` and
    `contrasts` are made of."""
    fits = [{key: value for key, value in fit.items() if key != "replicates"} for fit in table["fits"]]
    atomic_write_text(target, json.dumps({**table, "fits": fits}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
