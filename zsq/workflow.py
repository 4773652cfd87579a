"""A recipe: generate every source, fit every student on it, measure the gap, report. What `zsq run` calls."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from zsq import gap
from zsq.config import GenerateConfig, Recipe, RecipeSource, RuntimeConfig
from zsq.contract import Bits, FittedStudent, QuantizedTensor, Teacher
from zsq.engine.cost import forward_gflops, seconds_per_image_iteration
from zsq.engine.statistics import Alignment, TappedTeacher, set_sums
from zsq.errors import NoBatchNormError
from zsq.evaluate import score_teacher
from zsq.gap import REAL, RunRecord, StudentSpec
from zsq.generators import method_class
from zsq.images import ImageSet, load_images
from zsq.progress import Reporter, duration
from zsq.report.build import build_report
from zsq.report.data import ReportData
from zsq.runfolder import open_run
from zsq.runtime import Runtime
from zsq.shards.reader import ShardDataset
from zsq.students import create
from zsq.synthesize import generate
from zsq.teacher import load_teacher

FITS_FILE = "fits.jsonl"
SHEET_IMAGES = 40
STEP_COST = 1.7  # a training step of a student, in passes of synthesis


class Budget:
    """Wall-clock time a command may take; None is unlimited."""

    def __init__(self, hours: float | None) -> None:
        """Starts now."""
        self.ends = None if hours is None else time.monotonic() + hours * 3600

    def spent(self) -> bool:
        """Whether no new piece of work should begin."""
        return self.ends is not None and time.monotonic() >= self.ends


class FitLog:
    """Finished fits on disk, one JSON line each, for resuming; a torn last line is dropped."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier run left."""
        self.path = path
        self.records: list[RunRecord] = []
        self.tensors: dict[str, list[QuantizedTensor]] = {}
        if not path.exists():
            return
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            self._remember(entry["record"], [QuantizedTensor(**row) for row in entry["tensors"]])

    def add(self, record: RunRecord, fitted: FittedStudent) -> None:
        """Append one fit."""
        entry = {"record": record, "tensors": [vars(tensor) for tensor in fitted.tensors]}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self._remember(record, list(fitted.tensors))

    def _remember(self, record: RunRecord, tensors: list[QuantizedTensor]) -> None:
        self.records.append(record)
        self.tensors[f"{record['student']} {record['bits']}"] = tensors


@dataclass(frozen=True)
class Protocol:
    """What is compared, apart from the sources: the same for a recipe and for `zsq gap`."""

    title: str
    teacher: Teacher
    eval: ImageSet
    real_sets: Sequence[ImageSet]
    students: Sequence[StudentSpec]
    seeds: int
    show_real: bool
    runtime: Runtime
    settings: Mapping[str, Any]


class Bench:
    """A protocol under way in a folder: shard sets, finished fits, the report."""

    def __init__(self, protocol: Protocol, out: Path, reporter: Reporter) -> None:
        """Score the teacher; read the fits of an earlier call."""
        self.protocol, self.out, self.reporter = protocol, out, reporter
        self.teacher_logits, self.teacher_accuracy = score_teacher(
            protocol.teacher, protocol.eval, protocol.runtime
        )
        self.fits = FitLog(out / FITS_FILE)
        self.sets: dict[str, list[Path]] = {}

    def arms(self, num_sets: int) -> dict[str, list[Tensor]]:
        """Source -> pixels of its first `num_sets` shard sets, as many as the real sets hold."""
        count = len(self.protocol.real_sets[0])
        arms = {REAL: [images.pixels for images in self.protocol.real_sets[:num_sets]]}
        for source, folders in self.sets.items():
            arms[source] = [ShardDataset(folder).pixels()[:count] for folder in folders[:num_sets]]
        return arms

    def fit(self, num_sets: int, budget: Budget) -> None:
        """Fit and score every student on the first `num_sets` shard sets, minus what is done."""
        p = self.protocol
        arms = self.arms(num_sets)
        left = gap.count_runs(arms, p.students, p.seeds) - len(self.fits.records)
        with self.reporter.job("students", left) as job, p.runtime.threads_set():

            def keep(record: RunRecord, fitted: FittedStudent) -> None:
                self.fits.add(record, fitted)
                job.advance(1, **record["metrics"])

            gap.measure_gap(
                p.teacher,
                arms,
                p.eval,
                p.students,
                p.seeds,
                p.runtime,
                done=list(self.fits.records),
                on_run=keep,
                should_stop=budget.spent,
                teacher_logits=self.teacher_logits,
            )

    def report(self) -> ReportData:
        """Write the report of what is finished."""
        p = self.protocol
        rows = gap.rows_from_runs(self.fits.records)
        first_sets = {source: sets[0] for source, sets in self.arms(1).items() if sets}
        names, distances = bn_distances(p.teacher, first_sets, p.runtime)
        data = ReportData(
            title=p.title,
            teacher={
                "name": p.teacher.name,
                "weights_sha256": p.teacher.weights_sha256,
                "accuracy": self.teacher_accuracy,
                "num_outputs": p.teacher.num_outputs,
                "evaluation_images": len(p.eval),
            },
            settings={**p.settings, "runtime": p.runtime.record()},
            rows=rows,
            gaps=gap.gaps_from_rows(rows),
            layer_names=names,
            bn_distance=distances,
            cost=self._costs(),
            sheets={source: pixels[:SHEET_IMAGES] for source, pixels in first_sets.items()},
            quantized_tensors=self.fits.tensors,
            show_real=p.show_real,
        )
        build_report(data, self.out)
        return data

    def _costs(self) -> dict[str, float]:
        """Teacher passes per image of each source, where its shards say so."""
        options = {
            source: ShardDataset(sets[0]).provenance.options for source, sets in self.sets.items() if sets
        }
        return {source: float(values.get("iterations", 0)) for source, values in options.items()}


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    budget_hours: float | None = None,
    reporter: Reporter | None = None,
    on_report: Callable[[ReportData], None] = lambda data: None,
) -> ReportData:
    """Run or continue a recipe in `out`; the report is written anew after each shard set.

    Args:
        budget_hours: no new shard set and no new fit begins after this time.
        on_report: called with the report's data after each shard set.

    Raises:
        ZsqError: whatever a stage raises; nothing finished is lost.
    """
    reporter = reporter or Reporter(quiet=True)
    budget = Budget(budget_hours)
    protocol = recipe_protocol(recipe)
    open_run(out, {"command": "run", **protocol.settings}, resume)
    events = out / "events.jsonl"
    reporter.events.path = events
    bench = Bench(protocol, out, reporter)
    say_estimate(recipe, protocol, reporter)
    data = None
    for shard_set in range(recipe.generate.shard_sets):
        if budget.spent():
            reporter.say("the time budget is spent; --resume completes the table")
            break
        for source in recipe.sources:
            folder = out / f"{source.method}-{shard_set}"
            config = source_config(recipe, source, shard_set)
            generate(config, folder, resume=True, teacher=protocol.teacher, reporter=reporter)
            reporter.events.path = events
            bench.sets.setdefault(source.method, []).append(folder)
        bench.fit(shard_set + 1, budget)
        data = bench.report()
        on_report(data)
    return data or bench.report()


def recipe_protocol(recipe: Recipe) -> Protocol:
    """Load what a recipe names.

    Raises:
        ZsqError: a teacher, image source, student or option that cannot work.
    """
    weights = recipe.teacher.weights
    teacher = load_teacher(
        recipe.located(recipe.teacher.name), Path(recipe.located(weights)) if weights else None
    )
    if recipe.teacher.expected_accuracy is not None:
        teacher = replace(teacher, expected_accuracy=recipe.teacher.expected_accuracy)
    students = [
        StudentSpec(student.name, Bits.parse(bits), student.set, student.first_last)
        for student in recipe.students
        for bits in student.bits
    ]
    plan = recipe.generate
    num_fits = len(students) * (len(recipe.sources) + 1) * plan.shard_sets * recipe.seeds
    gflops = STEP_COST * forward_gflops(teacher) * num_fits * max(fit_images(s, teacher) for s in students)
    runtime = Runtime.resolve(**recipe.runtime.model_dump(), total_gflops=gflops / len(students))
    return Protocol(
        title=recipe.title,
        teacher=teacher.to(runtime.device),
        eval=load_images(recipe.located(recipe.eval), teacher.spec),
        real_sets=load_images(recipe.located(recipe.real), teacher.spec).disjoint_sets(
            plan.shard_sets, plan.count, plan.seed
        ),
        students=students,
        seeds=recipe.seeds,
        show_real=recipe.show_real,
        runtime=runtime,
        settings=recipe.model_dump(mode="json"),
    )


def source_config(recipe: Recipe, source: RecipeSource, shard_set: int) -> GenerateConfig:
    """What `zsq generate` would be called with for one shard set of one source."""
    plan = recipe.generate
    return GenerateConfig(
        teacher=recipe.teacher.name,
        weights=recipe.teacher.weights,
        method=source.method,
        count=plan.count,
        batch=source.batch,
        shard_size=plan.shard_size,
        seed=plan.seed + shard_set,
        iterations=source.iterations or plan.iterations,
        set=source.set,
        runtime=recipe.runtime,
    )


def say_estimate(recipe: Recipe, protocol: Protocol, reporter: Reporter) -> None:
    """How long the whole recipe takes on this machine, before it begins: from one timed forward pass."""
    plan, teacher = recipe.generate, protocol.teacher
    rate = seconds_per_image_iteration(teacher, 128)
    passes = 0
    for source in recipe.sources:
        config = source_config(recipe, source, 0)
        cls = method_class(source.method)
        options = cls.options_class.resolve(source.method, teacher.spec, config.set, config.iterations)
        passes += plan.count * getattr(options, "iterations", 0)
    arms = (len(recipe.sources) + 1) * recipe.seeds
    fits = sum(fit_images(spec, teacher) * STEP_COST + len(protocol.eval) for spec in protocol.students)
    seconds = plan.shard_sets * rate * (passes + arms * fits)
    reporter.say(
        f"{recipe.title}: {plan.shard_sets} sets of {plan.count} images from {len(recipe.sources)} methods, "
        f"{plan.shard_sets * arms * len(protocol.students)} fits; about {duration(seconds)} uncompiled"
    )


def fit_images(spec: StudentSpec, teacher: Teacher) -> int:
    """Training images that one fit goes through; 0 for a student that does not train."""
    options = create(spec.name, teacher.spec, spec.options, Runtime()).options.model_dump()
    return options.get("iterations", 0) * options.get("batch", 0)


@dataclass(frozen=True)
class GapRun:
    """`zsq gap` as asked for."""

    title: str
    teacher: str
    weights: str | None
    shards: tuple[str, ...]
    real: str
    eval: str
    students: tuple[StudentSpec, ...]
    seeds: int
    count: int | None
    show_real: bool
    runtime: RuntimeConfig

    def settings(self) -> dict[str, Any]:
        """As JSON holds it."""
        return json.loads(json.dumps(asdict(replace(self, runtime=None)), default=str))  # type: ignore[arg-type]


def run_gap(run: GapRun, out: Path, *, resume: bool = False, reporter: Reporter | None = None) -> ReportData:
    """Measure the gap of existing shard sets; the report goes to `out`.

    Raises:
        ZsqError: whatever a stage raises; finished fits are kept.
    """
    reporter = reporter or Reporter(quiet=True)
    teacher = load_teacher(run.teacher, Path(run.weights) if run.weights else None)
    sets = shard_sets_by_source([Path(folder) for folder in run.shards])
    datasets = [ShardDataset(folder) for folders in sets.values() for folder in folders]
    count = run.count or min(len(dataset) for dataset in datasets)
    num_sets = max(len(folders) for folders in sets.values())
    runtime = Runtime.resolve(**run.runtime.model_dump())
    protocol = Protocol(
        title=run.title,
        teacher=teacher.to(runtime.device),
        eval=load_images(run.eval, teacher.spec),
        real_sets=load_images(run.real, teacher.spec).disjoint_sets(num_sets, count, 0),
        students=run.students,
        seeds=run.seeds,
        show_real=run.show_real,
        runtime=runtime,
        settings=run.settings(),
    )
    open_run(out, {"command": "gap", **protocol.settings}, resume)
    reporter.events.path = out / "events.jsonl"
    bench = Bench(protocol, out, reporter)
    bench.sets = sets
    bench.fit(num_sets, Budget(None))
    return bench.report()


def shard_sets_by_source(folders: list[Path]) -> dict[str, list[Path]]:
    """Shard sets by method; a method with several option sets becomes several sources.

    Raises:
        ImagesError, ShardError: a folder without shards, or with damaged ones.
    """
    options: dict[str, list[dict[str, Any]]] = {}
    found: dict[tuple[str, int], list[Path]] = {}
    for folder in folders:
        provenance = ShardDataset(folder).provenance
        variants = options.setdefault(provenance.method, [])
        if provenance.options not in variants:
            variants.append(provenance.options)
        found.setdefault((provenance.method, variants.index(provenance.options)), []).append(folder)
    return {
        method if not index else f"{method} {index + 1}": paths for (method, index), paths in found.items()
    }


def bn_distances(
    teacher: Teacher, arms: dict[str, Tensor], runtime: Runtime
) -> tuple[list[str], dict[str, list[float]]]:
    """Per BN layer and source, mean_c[(m - M)^2 + (s - S)^2] over the whole set; empty without BN."""
    try:
        tapped = TappedTeacher(teacher)
    except NoBatchNormError:
        return [], {}
    alignment = Alignment("set")
    distances = {}
    for source, pixels in arms.items():
        chunks = [teacher.spec.pixels_to_standard(part.to(runtime.device)) for part in pixels.split(128)]
        distances[source] = [alignment.layer(sums).item() for sums in set_sums(tapped, chunks)]
    return tapped.names, distances
