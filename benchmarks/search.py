"""A queue of fits that can be stopped and shared: `python benchmarks/search.py NAME [--jobs N]`.

NAME is one of `experiments.py`. Keeps what is finished in benchmarks/results/sources.json.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import search
import typer
from common import BudgetHours, Jobs, Results, Threads
from experiments import EXPERIMENTS, Loaded, Trial, facts, trials

from zsq.bench import Budget
from zsq.core.jobs import in_jobs
from zsq.core.processes import Processes
from zsq.core.runtime import Runtime


def main(
    name: Annotated[str, typer.Argument(help="Experiment.")],
    budget_hours: BudgetHours = None,
    threads: Threads = 1,
    jobs: Jobs = None,
) -> None:
    """Measure what is missing and keep it."""
    if name not in EXPERIMENTS:
        raise typer.BadParameter(f"one of {', '.join(EXPERIMENTS)}")
    # By the name under which other processes import it.
    in_jobs(jobs, partial(search.measure, name, budget_hours, threads))


def measure(name: str, budget_hours: float | None, threads: int | None) -> None:
    """Measure the share of this process; each row is kept as soon as it is there."""
    asked, budget = EXPERIMENTS[name], Budget(budget_hours)
    results, processes = Results("sources", "python benchmarks/search.py NAME"), Processes.started()
    missing = processes.agreed([place for place, row in enumerate(rows(name)) if not results.has(row)])
    if not missing:
        return
    runtime = Runtime.resolve(threads=threads)
    with runtime.in_force():
        loaded = Loaded(asked, runtime)
        for place in processes.taken(missing):
            if budget.spent():
                break
            trial: Trial = trials(asked)[place]
            row = rows(name)[place] | {"agreement": round(loaded.agreement(trial), 2)}
            results.add(row, order=lambda row: row["experiment"])
    processes.wait()


def rows(name: str) -> list[dict[str, Any]]:
    """What names each fit of an experiment, in order."""
    return [facts(name, EXPERIMENTS[name], trial) for trial in trials(EXPERIMENTS[name])]


if __name__ == "__main__":
    typer.run(main)
