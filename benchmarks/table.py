"""Run a recipe as a benchmark: `python benchmarks/table.py RECIPE [--budget-hours H]`.

Continues `outputs/RECIPE`, keeps finished fits in `benchmarks/results/RECIPE.json`, and takes up the fits
found there, so that a table can be completed in several sittings and on several machines.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from common import RESULTS, BudgetHours, Threads

from zsq.bench import machine
from zsq.config import Recipe, RuntimeConfig, load_recipe
from zsq.core.files import atomic_write_text
from zsq.core.progress import Reporter
from zsq.measure.protocol import RunRecord
from zsq.report.data import ReportData
from zsq.workflow import run_recipe

SHOWN = (
    "title", "teacher", "settings", "rows", "gaps", "bn_distance", "intra_class_distance", "cost",
    "contrasts", "roc",
)  # fmt: skip


def main(
    recipe: Annotated[str, typer.Argument(help="Name or path of a recipe.")],
    budget_hours: BudgetHours = None,
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default outputs/RECIPE.")] = None,
) -> None:
    """Run or continue the recipe and keep its table."""
    name = Path(recipe).stem
    target = RESULTS / f"{name}.json"
    loaded = load_recipe(recipe)
    if threads is not None:
        loaded = loaded.model_copy(update={"runtime": RuntimeConfig(threads=threads)})
    finished = fits_of(target, loaded) if target.exists() else []

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
