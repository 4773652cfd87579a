"""Comparisons that end in a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zsq.api.given import RuntimeGiven, folder_of, images_given, runtime_given, several, teacher_of, text_of
from zsq.config import GAP, IMAGES, OFFLINE, GapConfig, ImagesConfig, validated
from zsq.core.modes import usual_modes
from zsq.core.progress import Reporter
from zsq.core.records import valid
from zsq.recipefile import load_recipe
from zsq.runfolder import folder_out, plain_name

if TYPE_CHECKING:
    from zsq.report.data import ReportData


@usual_modes()
def measure_gap(
    teacher: str | Path,
    shards: Sequence[str | Path],
    real: str | Path,
    eval: str | Path,
    students: Sequence[str],
    bits: Sequence[str],
    out: str | Path,
    *,
    weights: str | Path | None = None,
    seeds: int = GAP.seeds,
    count: int | None = GAP.count,
    first_last: int | None = GAP.first_last,
    passes: Sequence[str] = GAP.passes,
    fit: str | None = IMAGES.fit,
    class_names: str | Path | None = IMAGES.class_names,
    set: Mapping[str, Any] | None = None,
    show_real: bool = GAP.show_real,
    resume: bool = False,
    jobs: int | None = None,
    offline: bool = OFFLINE,
    runtime: RuntimeGiven = None,
    reporter: Reporter | None = None,
) -> ReportData:
    """Fit every student on real images and on every shard set, and report the gap in `out`.

    Shard sets of one source are replicates. `set` has keys STUDENT.OPTION; `passes` surround every student;
    `fit` and `class_names` are as in `quantize`. `jobs` processes share the fits, of 1 thread each unless
    `runtime` says more; their number changes nothing but the time.

    Raises:
        ZsqError: one class per cause, see `zsq.core.errors`.

    Example:
        >>> shards = zsq.generate("embedded:digits", "noise", count=64, out="noise")
        >>> train, test = "embedded:digits:train", "embedded:digits:test"
        >>> data = zsq.measure_gap(
        ...     "embedded:digits", [shards], real=train, eval=test, students=["ptq"], bits=["W8A8"], out="gap"
        ... )
        >>> sorted({row.source for row in data.rows})
        ['noise', 'real']
    """
    from zsq.core.jobs import in_jobs
    from zsq.workflow import run_gap

    values = {
        "teacher": teacher_of(teacher),
        "shards": tuple(text_of(folder) for folder in several(shards)),
        "real": text_of(real),
        "eval": text_of(eval),
        "students": several(students),
        "bits": several(bits),
        "weights": text_of(weights),
        "seeds": seeds,
        "count": count,
        "first_last": first_last,
        "passes": several(passes),
        **images_given(fit, class_names),
        "set": set or {},
        "show_real": show_real,
        "offline": offline,
        "runtime": runtime_given(runtime),
    }
    call = partial(run_gap, validated(GapConfig, values, "gap"), folder_out(out), resume=resume)
    return in_jobs(valid(int | None, jobs, "jobs"), call, reporter=reporter)


@usual_modes()
def run(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    budget_hours: float | None = None,
    jobs: int | None = None,
    fit: str | None = IMAGES.fit,
    class_names: str | Path | None = IMAGES.class_names,
    offline: bool = OFFLINE,
    runtime: RuntimeGiven = None,
    reporter: Reporter | None = None,
) -> tuple[ReportData, Path]:
    """Run a recipe by its name or path; the report's data and the run's folder.

    `fit` and `class_names` are as in `quantize`, in place of the recipe's own. `jobs` is as in `measure_gap`;
    the processes share the images too.

    Raises:
        ZsqError: one class per cause, see `zsq.core.errors`.

    Example:
        >>> from pathlib import Path
        >>> written = Path("small.toml").write_text('''
        ... title = "Noise against real images"
        ... real = "embedded:digits:train"
        ... eval = "embedded:digits:test"
        ... teacher = { name = "embedded:digits" }
        ... generate = { count = 64 }
        ... sources = [{ method = "noise" }]
        ... students = [{ name = "ptq", bits = ["W4A4"] }]
        ... ''')
        >>> data, folder = zsq.run("small.toml", out="small")
        >>> (folder / "report.html").exists()
        True
    """
    from zsq.core.jobs import in_jobs
    from zsq.workflow import run_recipe

    asked = validated(ImagesConfig, images_given(fit, class_names), "run")
    recipe = str(recipe)
    loaded = load_recipe(recipe).reading_images(asked)
    if offline:
        loaded = loaded.model_copy(update={"offline": True})
    if runtime is not None:
        loaded = loaded.with_runtime(**runtime_given(runtime).model_dump(exclude_defaults=True))
    folder = folder_of(out, plain_name(recipe), resume)
    jobs = valid(int | None, jobs, "jobs")
    budget_hours = valid(float | None, budget_hours, "budget_hours")
    call = partial(run_recipe, loaded, folder, resume=resume, budget_hours=budget_hours)
    return in_jobs(jobs, call, reporter=reporter), folder
