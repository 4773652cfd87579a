"""What `zsq run` and `zsq gap` do: load what is named, make or find shard sets, fit students, report."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from zsq.bench import Budget, opened_bench
from zsq.config import GapConfig, ImagesConfig, RuntimeConfig
from zsq.contract import Teacher
from zsq.core.errors import MismatchError, OptionError
from zsq.core.imagespec import ImageSpec
from zsq.core.processes import Processes, failing_together
from zsq.core.progress import Reporter, duration
from zsq.core.runtime import Runtime
from zsq.core.selection import split_source
from zsq.core.wording import other_than, quantity
from zsq.engine.estimate import STEP_COST, estimated_seconds, fit_passes, forward_gflops, score_passes
from zsq.images.imageset import ImageSet, photo_fits_of, said
from zsq.images.shared import (
    check_compared,
    check_different,
    check_known_membership,
    digests_of,
    named,
    warn_of_scored,
)
from zsq.images.sources import images_for
from zsq.measure.protocol import (
    REAL,
    Owned,
    PlannedFit,
    Protocol,
    ResolvedStudent,
    RunRecord,
    StudentSpec,
    fit_key,
    resolve_students,
)
from zsq.recipechecks import check_recipe
from zsq.recipefile import Recipe, RecipeSource, RecipeStudent, source_config
from zsq.report.data import ReportData
from zsq.shards.manifest import MANIFEST_NAME
from zsq.shards.reader import ShardDataset
from zsq.students import own_defaults, own_defaults_line
from zsq.synthesis.resolved import check_method, method_options
from zsq.synthesis.synthesize import generate
from zsq.tasks.embed import Embed
from zsq.teacher import load_teacher
from zsq.widths import Bits, Rows, read_widths


@failing_together()
def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    budget_hours: float | None = None,
    reporter: Reporter | None = None,
    finished: Iterable[RunRecord] = (),
    on_report: Callable[[ReportData, list[RunRecord]], None] = lambda data, fits: None,
) -> ReportData:
    """Run or continue a recipe in `out`; the report is written anew after each shard set. The processes of a
    job share images and fits.

    Args:
        budget_hours: no new shard set and no new fit begins after this time.
        finished: fits made elsewhere; those of this recipe are not repeated.
        on_report: called after each shard set with the report's data and all fits so far, in
            the first process.

    Raises:
        ZsqError: whatever generation, a fit or the report raises; nothing finished is lost.
    """
    processes, budget = Processes.started(), Budget(budget_hours)
    reporter = processes.spoken(reporter)
    recipe = recipe.model_copy(update={"runtime": _of_rank(recipe.runtime, processes)})
    protocol = recipe_protocol(recipe)
    say_images(protocol, reporter)
    say_own_defaults(protocol, reporter)
    with opened_bench(protocol, out, "run", resume, reporter) as bench:
        bench.adopt(finished, [source.label for source in recipe.sources])
        say_estimate(recipe, protocol, bench.fits.records, out, reporter)
        data = None
        for shard_set in range(recipe.generate.shard_sets):
            if processes.agreed(budget.spent()):
                break
            for source in recipe.sources:
                folder = _made_set(recipe, source, shard_set, out, protocol.teacher, reporter)
                bench.sets.setdefault(source.label, []).append(folder)
            bench.fit(shard_set + 1, budget)
            data = bench.report()
            if processes.first:
                on_report(data, [entry.record for entry in bench.entries()])
        if budget.spent():
            reporter.say("the time budget is spent: run the same command with --resume to complete the table")
        return data or bench.report()


def _of_rank(runtime: RuntimeConfig, processes: Processes) -> RuntimeConfig:
    return runtime.model_copy(update={"threads": processes.threads(runtime.threads)})


def _made_set(
    recipe: Recipe, source: RecipeSource, shard_set: int, out: Path, teacher: Teacher, reporter: Reporter
) -> Path:
    """The folder of one shard set, made or completed."""
    config = source_config(recipe, source, shard_set)
    folder = _set_folder(out, source, shard_set)
    return generate(config, folder, resume=True, teacher=teacher, reporter=reporter)


def _set_folder(out: Path, source: RecipeSource, shard_set: int) -> Path:
    return out / f"{source.label}-{shard_set}"


def recipe_protocol(recipe: Recipe) -> Protocol:
    """Load what a recipe names.

    Raises:
        ZsqError: a teacher, image source, student or option that cannot work.
    """
    check_recipe(recipe)
    teacher = _recipe_teacher(recipe)
    specs, plan = _recipe_students(recipe), recipe.generate
    runtime = _recipe_runtime(recipe, teacher, specs)
    sources = (recipe.located_images(recipe.real), recipe.located_images(recipe.eval))
    real, evaluation = _images(teacher, *sources, recipe.images)
    check_identities(teacher, real, evaluation)
    students = resolve_students(specs, teacher.spec, runtime)
    for source in recipe.sources:
        check_method(source_config(recipe, source, 0), teacher)
    protocol = Protocol(
        teacher=teacher.to(runtime.device),
        eval=evaluation,
        real_sets=real.disjoint_sets(plan.shard_sets, plan.count, plan.seed),
        students=students,
        seeds=recipe.seeds,
        runtime=runtime,
        title=recipe.title,
        show_real=recipe.show_real,
        settings=recipe.model_dump(mode="json")
        | own_defaults_of(students, teacher.spec)
        | photo_fits_of(real=real, eval=evaluation),
        owned=_owned(recipe, teacher),
        counts={source.label: source.count for source in recipe.sources if source.count},
    )
    protocol.check_students()
    return protocol


def _owned(recipe: Recipe, teacher: Teacher) -> Owned | None:
    """Images of known membership. Where they are those of `real`, the real sets are among them."""
    asked, seed = recipe.audit, recipe.generate.seed
    if asked is None:
        return None
    train, holdout = (
        images_for(teacher, recipe.located_images(source), recipe.images)
        for source in (asked.train, asked.holdout)
    )
    seen, unseen = (each.disjoint_sets(1, min(asked.count, len(each)), seed)[0] for each in (train, holdout))
    check_known_membership(seen, unseen)
    return Owned(seen, unseen, min(asked.planted, len(seen), *map(recipe.count_of, recipe.sources)))


def _recipe_teacher(recipe: Recipe) -> Teacher:
    weights = recipe.teacher.weights
    teacher = load_teacher(
        recipe.located_teacher,
        recipe.located_file(weights) if weights else None,
        offline=recipe.offline,
    )
    if recipe.teacher.expected_accuracy is None:
        return teacher
    return replace(teacher, expected_accuracy=recipe.teacher.expected_accuracy)


def _recipe_students(recipe: Recipe) -> list[StudentSpec]:
    return [
        StudentSpec(
            s.name,
            Bits.parse(bits).with_rows(_recipe_widths(recipe, s)),
            s.set,
            s.first_last,
            s.passes,
            s.shard_sets,
            s.called,
        )
        for s in recipe.students
        for bits in s.bits
    ]


def _recipe_widths(recipe: Recipe, student: RecipeStudent) -> Rows:
    widths = student.widths
    return read_widths(recipe.located_file(widths)) if isinstance(widths, str) else widths


def _recipe_runtime(recipe: Recipe, teacher: Teacher, specs: Sequence[StudentSpec]) -> Runtime:
    """Compiled where one student of the recipe, over all its fits, trains long enough for that to pay."""
    plan = recipe.generate
    # A student belongs to a runtime: these are for the estimate only.
    students = resolve_students(specs, teacher.spec, Runtime())
    num_fits = (len(recipe.sources) + 1) * plan.shard_sets * recipe.seeds
    trained = max(each.student.images_trained(teacher, plan.count, each.spec.bits) for each in students)
    gflops = STEP_COST * forward_gflops(teacher) * num_fits * trained
    return Runtime.resolve(**recipe.runtime.model_dump(), total_gflops=gflops)


def _images(teacher: Teacher, real: str, evaluation: str, asked: ImagesConfig) -> tuple[ImageSet, ImageSet]:
    """The real images, whose labels nobody reads, and the labelled ones."""
    return images_for(teacher, real, asked), images_for(teacher, evaluation, asked, labelled=True)


def check_identities(teacher: Teacher, real: ImageSet, evaluation: ImageSet) -> None:
    """Refuse images of an embedding teacher where an identity of one source both calibrates and is scored.

    Raises:
        MismatchError: one does.
    """
    one_source = split_source(real.source)[0] == split_source(evaluation.source)[0]
    if not (isinstance(teacher.task, Embed) and one_source):
        return
    shared = sorted(set(real.labels.tolist()) & set(evaluation.labels.tolist()) - {-1})
    if shared:
        raise MismatchError(
            f"identity {shared[0]} of {evaluation.source} is in the real and in the evaluation images",
            "each identity in one of them",
            "divide them, as in SRC#labels=0-9 and SRC#labels=10-29",
        )


def say_estimate(
    recipe: Recipe, protocol: Protocol, finished: Iterable[RunRecord], out: Path, reporter: Reporter
) -> None:
    """How long what is left of the recipe takes on this machine, before it begins: from one timed teacher
    pass. The processes of a job share it.

    Args:
        finished: fits that are not made again; shard sets that `out` holds are not either.
    """
    plan, teacher, making = recipe.generate, protocol.teacher, 0
    for source in recipe.sources:
        count = protocol.images_of(source.label)
        method, _, options = method_options(source_config(recipe, source, 0), teacher.spec, count)
        folders = (_set_folder(out, source, shard_set) for shard_set in range(plan.shard_sets))
        missing = sum(not (folder / MANIFEST_NAME).exists() for folder in folders)
        making += missing * method.teacher_passes(options, count)
    images = (
        f"{quantity(plan.shard_sets, 'set')} of {quantity(plan.count, 'image')}"
        f"{other_than(plan.count, protocol.counts)} from {quantity(len(recipe.sources), 'source')}, "
    )
    arms = dict.fromkeys((REAL, *(source.label for source in recipe.sources)), protocol.real_sets)
    fits = _time_of_fits(protocol, arms, finished, making)
    reporter.say(f"{recipe.title}: {images}{fits}")


def _time_of_fits(
    protocol: Protocol, arms: Mapping[str, Sized], finished: Iterable[RunRecord], making: int = 0
) -> str:
    """How many fits there are, and how long those take that are not finished, after `making` more passes."""
    fits, done = protocol.fits(arms), {fit_key(record) for record in protocol.belonging(finished, arms)}
    passes = making + _fit_passes([fit for fit in fits if fit_key(fit.record()) not in done], protocol)
    share = round(passes / Processes.started().count)
    seconds = estimated_seconds(protocol.teacher, 128, share, protocol.runtime)
    already, left = (f", {len(done)} of them done", " left") if done else ("", "")
    return f"{quantity(len(fits), 'fit')}{already}; about {duration(seconds)}{left}"


def _fit_passes(fits: Iterable[PlannedFit], protocol: Protocol) -> float:
    """The teacher passes that these fits and their scores take as long as."""
    passes, trained = 0.0, dict[Hashable, PlannedFit]()
    for fit in fits:
        passes += score_passes(len(protocol.eval))
        trained.setdefault(fit.training, fit)
    alike: dict[Hashable, float] = {}  # by set and seed nothing changes, and some students look at a network
    for fit in trained.values():
        key = (fit.student.training, fit.num_images)
        if key not in alike:
            student, bits = fit.student.student, fit.student.spec.bits
            alike[key] = fit_passes(student, protocol.teacher, fit.num_images, bits)
        passes += alike[key]
    return passes


def own_defaults_of(students: Iterable[ResolvedStudent], spec: ImageSpec) -> dict[str, Any]:
    """Settings entry that lists defaults of ours in place of published ones; empty where there are none."""
    found = {each.spec.name: own_defaults(each.student, spec) for each in students}
    declared = {name: options for name, options in found.items() if options}
    return {"own_defaults": declared} if declared else {}


def say_images(protocol: Protocol, reporter: Reporter) -> None:
    """What there is to say of how the real images were read."""
    real = protocol.real_sets
    for line in said(*real, protocol.eval):
        reporter.say(line)
    warn_of_scored(map(named, real), protocol.eval)


def say_own_defaults(protocol: Protocol, reporter: Reporter) -> None:
    """Say one line per student that has defaults of our own in place of published ones."""
    spec = protocol.teacher.spec
    lines = (own_defaults_line(each.spec.name, each.student, spec) for each in protocol.students)
    for line in dict.fromkeys(line for line in lines if line):
        reporter.say(line)


@failing_together()
def run_gap(
    config: GapConfig, out: Path, *, resume: bool = False, reporter: Reporter | None = None
) -> ReportData:
    """Measure the gap of existing shard sets; the report goes to `out`. A job's processes share the fits.

    Raises:
        ZsqError: whatever a fit or the report raises; finished fits are kept.
    """
    processes = Processes.started()
    reporter = processes.spoken(reporter)
    config = config.model_copy(update={"runtime": _of_rank(config.runtime, processes)})
    specs, title = _gap_students(config), f"Gap to real images: {config.teacher}"
    weights = Path(config.weights) if config.weights else None
    teacher = load_teacher(config.teacher, weights, offline=config.offline)
    sets = shard_sets_by_source([Path(folder) for folder in config.shards])
    datasets = [ShardDataset(folder) for folder in config.shards]
    count = config.count or min(len(dataset) for dataset in datasets)
    pixels = [dataset.pixels()[:count] for dataset in datasets]
    shown = list(zip(config.shards, map(digests_of, pixels), strict=True))
    check_different(shown)
    num_sets = max(len(folders) for folders in sets.values())
    runtime = Runtime.resolve(**config.runtime.model_dump())
    real, evaluation = _images(teacher, config.real, config.eval, config)
    check_identities(teacher, real, evaluation)
    students = resolve_students(specs, teacher.spec, runtime)
    asked = [{**asdict(spec), "bits": str(spec.bits)} for spec in specs]
    settings = {**config.model_dump(mode="json"), "title": title, "students": asked}
    protocol = Protocol(
        teacher=teacher.to(runtime.device),
        eval=evaluation,
        real_sets=real.disjoint_sets(num_sets, count, 0),
        students=students,
        seeds=config.seeds,
        runtime=runtime,
        title=title,
        show_real=config.show_real,
        settings=settings
        | own_defaults_of(students, teacher.spec)
        | photo_fits_of(real=real, eval=evaluation),
    )
    protocol.check_students()
    say_images(protocol, reporter)
    check_compared(shown, protocol.real_sets)
    warn_of_scored(shown, protocol.eval)
    say_own_defaults(protocol, reporter)
    with opened_bench(protocol, out, "gap", resume, reporter, pixels) as bench:
        bench.sets = sets
        arms = {REAL: protocol.real_sets, **sets}
        reporter.say(f"{title}: {_time_of_fits(protocol, arms, bench.fits.records)}")
        bench.fit(num_sets, Budget(None))
        return bench.report()


def _gap_students(config: GapConfig) -> list[StudentSpec]:
    """One per student and width; `config.set` has keys STUDENT.OPTION."""
    options: dict[str, dict[str, Any]] = {name: {} for name in config.students}
    for key, value in config.set.items():
        name, _, option = key.partition(".")
        if name not in options or not option:
            raise OptionError(f"--set {key}", f"STUDENT.KEY=VALUE with a student of {', '.join(options)}")
        options[name][option] = value
    return [
        StudentSpec(name, Bits.parse(width), options[name], config.first_last, config.passes)
        for name in config.students
        for width in config.bits
    ]


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
