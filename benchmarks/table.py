"""Run a recipe as a benchmark: `python benchmarks/table.py RECIPE [--source LABEL ...] [--budget-hours H]`.

Continues `outputs/RECIPE`, keeps finished fits in `benchmarks/results/RECIPE.json`, and takes up the fits
found there, so that a table can be completed in several sittings and on several machines. The bootstrap
replicates of an embedding teacher or a detector stay in `outputs/RECIPE`: without that folder its fits are
made again.

With `--source` only these sources are made and measured, in a folder of their own, and join the kept table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
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
from zsq.measure.protocol import REAL, RunRecord, fit_key
from zsq.recipefile import Recipe, load_recipe
from zsq.report.data import ReportData
from zsq.tasks import TASKS
from zsq.workflow import run_recipe

# Of a table's entries, those that are by source, at some depth.
BY_SOURCE = ("bn_distance", "intra_class_distance", "cost", "choices", "leakage")
SHOWN = (
    "title", "teacher", "settings", "rows", "gaps", "bn_distance", "intra_class_distance", "cost",
    "contrasts", "roc", "choices", "leakage",
)  # fmt: skip


def main(
    recipe: Annotated[str, typer.Argument(help="Name or path of a recipe.")],
    budget_hours: BudgetHours = None,
    threads: Threads = None,
    jobs: Jobs = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default outputs/RECIPE[-LABEL...].")] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Label of a source: only these. Repeat for several.")
    ] = None,
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
    kept = json.loads(target.read_text(encoding="utf-8")) if target.exists() else None
    if source and kept and _has_replicates(kept):
        raise typer.BadParameter("a table with bootstrap replicates is made in one: leave --source out")
    finished = fits_of(target, loaded) if kept else []
    labels = [each.label for each in loaded.sources]
    if source:
        loaded = only(loaded, source)
    folder = Path("outputs") / "-".join((name, *(source or ())))

    def keep(data: ReportData, fits: list[RunRecord]) -> None:
        shown = {key: value for key, value in data.as_json().items() if key in SHOWN}
        command = f"python benchmarks/table.py {recipe}"
        made = {"command": command, "machine": machine(), **shown, "fits": fits}
        write(target, joined(kept, made, labels) if source and kept else made)

    call = partial(run_recipe, loaded, out or folder, resume=True, budget_hours=budget_hours)
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


def only(recipe: Recipe, labels: Sequence[str]) -> Recipe:
    """The recipe with the sources of these labels alone.

    Raises:
        BadParameter: it has no such source.
    """
    known = {each.label: each for each in recipe.sources}
    unknown = next((label for label in labels if label not in known), None)
    if unknown is not None:
        raise typer.BadParameter(f"no source {unknown}; expected one of {', '.join(known)}")
    return recipe.model_copy(update={"sources": tuple(known[label] for label in known if label in labels)})


def joined(kept: dict[str, Any], made: dict[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """The kept table with what was made of some sources, in the order of `labels`."""
    arms = [REAL, *labels]
    fits = {fit_key(fit): fit for fit in (*kept["fits"], *made["fits"]) if fit["source"] in arms}.values()
    students = list(dict.fromkeys(map(_student_of, fits)))

    def place(fit: RunRecord) -> tuple[int, ...]:
        """As in `Protocol.fits`."""
        return fit["shard_set"], fit["seed"], students.index(_student_of(fit)), arms.index(fit["source"])

    both = (*kept["settings"]["sources"], *made["settings"]["sources"])
    sources = {each["name"] or each["method"]: each for each in both}
    settings = {**made["settings"], "sources": [sources[label] for label in labels if label in sources]}
    by_source = {key: _merged(kept[key], made.get(key, {})) for key in BY_SOURCE if key in kept}
    joint = {**kept, **made, **by_source, "settings": settings, "fits": sorted(fits, key=place)}
    return computed_again(joint)


def _has_replicates(table: dict[str, Any]) -> bool:
    return TASKS[table["teacher"].get("task", "classify")].has_replicates


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The entries of both at every depth; where both have a value, the new one."""
    both = {
        key: _merged(old[key], new[key]) if isinstance(new[key], dict) else new[key]
        for key in old.keys() & new.keys()
    }
    return {**old, **new, **both}


def _student_of(fit: RunRecord) -> str:
    """What names the student of a fit: the same for all sets."""
    return fit_key({**fit, "source": "", "shard_set": 0, "seed": 0, "num_images": 0})


def computed_again(table: dict[str, Any]) -> dict[str, Any]:
    """The table with rows and gaps of its fits; those of replicates stay, since no table keeps replicates."""
    if _has_replicates(table):
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
