"""A recipe: generate every source, fit every student on it, measure the gap, report. What `zsq run` calls."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zsq import gap
from zsq.config import GenerateConfig, Recipe, RecipeSource
from zsq.contract import Bits, FittedStudent, QuantizedTensor, Teacher
from zsq.engine.cost import forward_gflops
from zsq.engine.statistics import EPSILON, Alignment, TappedTeacher, set_sums
from zsq.errors import NoBatchNormError, ZsqError
from zsq.evaluate import score_teacher
from zsq.gap import NOISE, REAL, RunRecord, StudentSpec
from zsq.images import ImageSet, load_images
from zsq.progress import Reporter, duration
from zsq.report.build import build_report
from zsq.report.data import ReportData
from zsq.runfolder import open_run
from zsq.runtime import Runtime
from zsq.shards.manifest import read_manifest
from zsq.shards.reader import ShardDataset
from zsq.synthesize import generate, resolve
from zsq.teacher import load_teacher

FITS_FILE = "fits.jsonl"
SHEET_IMAGES = 40
STUDENT_PASSES = 3  # forward passes of cost per training image and step, for the compile rule


class Budget:
    """Wall-clock time a command may take; None is unlimited."""

    def __init__(self, hours: float | None) -> None:
        """Starts now."""
        self.ends = None if hours is None else time.monotonic() + hours * 3600

    def spent(self) -> bool:
        """Whether no new piece of work should begin."""
        return self.ends is not None and time.monotonic() >= self.ends


class FitLog:
    """Finished fits on disk, one JSON line each, so that a run can be resumed; a torn last line is dropped."""

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


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    budget_hours: float | None = None,
    reporter: Reporter | None = None,
    on_report: Callable[[ReportData], None] = lambda data: None,
) -> ReportData:
    """Run or continue a recipe in `out`; the report is written anew after what this call finished.

    Args:
        budget_hours: no new shard set and no new fit begins after this time.
        on_report: called with the report's data after each finished shard set of fits.

    Raises:
        ZsqError: whatever a stage raises; nothing finished is lost.
    """
    reporter = reporter or Reporter(quiet=True)
    budget = Budget(budget_hours)
    teacher = recipe_teacher(recipe)
    open_run(out, {"command": "run", **recipe.model_dump(mode="json", exclude={"runtime"})}, resume)
    reporter.events.path = out / "events.jsonl"
    bench = Bench(recipe, teacher, out, reporter)
    say_estimate(bench)
    for shard_set in range(recipe.generate.shard_sets):
        if budget.spent():
            break
        bench.synthesize(shard_set)
        bench.fit(shard_set + 1, budget)
        on_report(bench.report())
    if budget.spent():
        reporter.say("the time budget is spent; run again with --resume to complete the table")
    return bench.report()


def recipe_teacher(recipe: Recipe) -> Teacher:
    """The recipe's teacher, with the recipe's expected accuracy over the card's."""
    weights = Path(recipe.teacher.weights) if recipe.teacher.weights else None
    teacher = load_teacher(recipe.teacher.name, weights)
    if recipe.teacher.expected_accuracy is not None:
        teacher = replace(teacher, expected_accuracy=recipe.teacher.expected_accuracy)
    return teacher


def student_specs(recipe: Recipe) -> list[StudentSpec]:
    """Every student at every bit width."""
    return [
        StudentSpec(student.name, Bits.parse(bits), student.set, student.first_last)
        for student in recipe.students
        for bits in student.bits
    ]


class Bench:
    """A recipe under way: its teacher, images, finished shard sets and fits."""

    def __init__(self, recipe: Recipe, teacher: Teacher, out: Path, reporter: Reporter) -> None:
        """Load the images and score the teacher."""
        self.recipe, self.out, self.reporter = recipe, out, reporter
        self.eval = load_images(recipe.eval, teacher.spec)
        self.real = load_images(recipe.real, teacher.spec)
        self.real_sets = self.real.disjoint_sets(
            recipe.generate.shard_sets, recipe.generate.count, recipe.generate.seed
        )
        self.students = student_specs(recipe)
        self.runtime = Runtime.resolve(**recipe.runtime.model_dump(), total_gflops=self._fit_gflops(teacher))
        self.teacher = teacher.to(self.runtime.device)
        self.teacher_logits, self.teacher_accuracy = score_teacher(self.teacher, self.eval, self.runtime)
        self.fits = FitLog(out / FITS_FILE)
        self.sets: dict[str, list[Path]] = {source.method: [] for source in recipe.sources}

    def _fit_gflops(self, teacher: Teacher) -> float:
        return STUDENT_PASSES * forward_gflops(teacher) * self.recipe.generate.count * 100

    def source_config(self, source: RecipeSource, shard_set: int) -> GenerateConfig:
        """What `zsq generate` would be called with."""
        plan = self.recipe.generate
        return GenerateConfig(
            teacher=self.recipe.teacher.name,
            weights=self.recipe.teacher.weights,
            method=source.method,
            count=plan.count,
            batch=source.batch,
            shard_size=plan.shard_size,
            seed=plan.seed + shard_set,
            iterations=None if source.method == NOISE else source.iterations or plan.iterations,
            set=source.set,
            runtime=self.recipe.runtime,
        )

    def synthesize(self, shard_set: int) -> None:
        """Make one shard set of every source."""
        for source in self.recipe.sources:
            folder = self.out / f"{source.method}-{shard_set}"
            config = self.source_config(source, shard_set)
            generate(config, folder, resume=True, teacher=self.teacher, reporter=self.reporter)
            self.reporter.events.path = self.out / "events.jsonl"
            self.sets[source.method].append(folder)

    def arms(self, num_sets: int) -> dict[str, list[Tensor]]:
        """Source -> pixels of its first `num_sets` shard sets."""
        arms = {REAL: [images.pixels for images in self.real_sets[:num_sets]]}
        for method, folders in self.sets.items():
            arms[method] = [ShardDataset(folder).pixels() for folder in folders[:num_sets]]
        return arms

    def fit(self, num_sets: int, budget: Budget) -> None:
        """Fit and score every student on the first `num_sets` shard sets, minus what is done."""
        arms = self.arms(num_sets)
        total = gap.count_runs(arms, self.students, self.recipe.seeds)
        with self.reporter.job("students", total) as job, self.runtime.threads_set():
            gap.measure_gap(
                self.teacher,
                arms,
                self.eval,
                self.students,
                self.recipe.seeds,
                self.runtime,
                done=list(self.fits.records),
                on_run=lambda record, fitted: (self.fits.add(record, fitted), job.advance(1)),
                should_stop=budget.spent,
                teacher_logits=self.teacher_logits,
            )

    def report(self) -> ReportData:
        """Write the report of what is finished."""
        rows = gap.rows_from_runs(self.fits.records)
        num_sets = min((len(folders) for folders in self.sets.values()), default=0)
        arms = {source: sets[0] for source, sets in self.arms(min(num_sets, 1)).items() if sets}
        names, distances = bn_distances(self.teacher, arms, self.runtime)
        data = ReportData(
            title=self.recipe.title,
            teacher={
                "name": self.teacher.name,
                "weights_sha256": self.teacher.weights_sha256,
                "accuracy": self.teacher_accuracy,
                "num_outputs": self.teacher.num_outputs,
                "evaluation_images": len(self.eval),
            },
            settings=self.recipe.model_dump(mode="json") | {"resolved_runtime": self.runtime.record()},
            rows=rows,
            gaps=gap.gaps_from_rows(rows),
            layer_names=names,
            bn_distance=distances,
            cost=self._costs(),
            sheets={source: pixels[:SHEET_IMAGES] for source, pixels in arms.items()},
            quantized_tensors=self.fits.tensors,
            show_real=self.recipe.show_real,
        )
        build_report(data, self.out)
        return data

    def _costs(self) -> dict[str, float]:
        return {
            method: float(read_manifest(folders[0]).method.options.get("iterations", 0))
            for method, folders in self.sets.items()
            if folders
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


def say_estimate(bench: Bench) -> None:
    """How long the whole recipe takes, before it begins."""
    plan = bench.recipe.generate
    seconds = 0.0
    for source in bench.recipe.sources:
        job = resolve(bench.source_config(source, 0), bench.out, bench.teacher)
        seconds += job.seconds_estimate(plan.count) * plan.shard_sets
    bench.reporter.say(
        f"{bench.recipe.title}: {plan.shard_sets} sets of {plan.count} images, synthesis about "
        f"{duration(seconds)}, {gap.count_runs(bench.arms(0), bench.students, 1)} fits"
    )
