"""Plan minus what is done -> method -> shards -> manifest. Work units are split over processes."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from zsq.config import DEFAULT_COUNT, GenerateConfig, PositiveInt, config_sha256
from zsq.contract import Generator, SyntheticBatch, Teacher
from zsq.core.effort import Effort
from zsq.core.errors import OptionError, RunFolderError, ShardError
from zsq.core.imagespec import ImageSpec
from zsq.core.options import Options
from zsq.core.processes import Processes
from zsq.core.progress import Reporter
from zsq.core.runtime import Runtime
from zsq.core.version import __version__
from zsq.engine.estimate import Work, forecast, forward_gflops, seconds_per_image_iteration
from zsq.engine.finite import require_finite_outputs
from zsq.engine.scoring import Scorer
from zsq.generators import default_effort, effort_iterations, measured, method_class, require
from zsq.images.sources import ImageSet, images_for, said
from zsq.plan import Plan, WorkUnit
from zsq.runfolder import RUN_FILE, open_run, stored_options
from zsq.shards.manifest import (
    MANIFEST_NAME,
    Manifest,
    MethodRecord,
    TeacherRecord,
    library_versions,
    write_manifest,
)
from zsq.shards.schema import ShardContent, ShardEntry, ShardProvenance, shard_name
from zsq.shards.verify import verify_shard
from zsq.shards.writer import write_shard
from zsq.teacher import load_teacher


@dataclass(frozen=True)
class ResolvedRun:
    """A run with everything resolved, before anything is written."""

    config: GenerateConfig
    teacher: Teacher
    method: Generator
    plan: Plan
    runtime: Runtime
    out: Path
    images: ImageSet | None = None

    @property
    def data_read(self) -> str:
        """What of the real world the run reads: nothing, where `--real` names images made without any."""
        if self.images is not None and self.images.provenance is not None:
            return self.images.provenance.data_read
        return self.method.facts.data_read

    @property
    def shards(self) -> Path:
        """Folder of the shards."""
        return self.out / "shards"

    @property
    def options(self) -> dict[str, Any]:
        """The method's resolved options, as JSON holds them."""
        return self.method.options.model_dump(mode="json")

    def resolved(self) -> dict[str, Any]:
        """What decides the bytes; the content of `run.json`."""
        return {
            "command": "generate",
            "teacher": self.teacher.name,
            "weights_sha256": self.teacher.weights_sha256,
            "method": self.method.name,
            "set": self.options,
            "real": self.config.real,
            **({"real_sha256": _images_sha256(self.images)} if self.images is not None else {}),
            "count": self.plan.count,
            **({"counts": list(self.plan.counts)} if self.plan.earlier else {}),
            "batch": self.plan.batch,
            "shard_size": self.plan.shard_size,
            "seed": self.plan.seed,
            **self.runtime.record(),
        }


def method_options(
    config: GenerateConfig, spec: ImageSpec, count: int
) -> tuple[type[Generator], int, Options]:
    """The method that a configuration names, its batch, and its options for `count` images of `spec`.

    Raises:
        UnknownNameError: no such method.
        OptionError: an option that it does not have, or a wrong value.
    """
    cls = method_class(config.method)
    batch = min(config.batch or cls.default_batch(spec), count)
    effort = config.effort or default_effort(spec)
    iterations = config.iterations or effort_iterations(cls, spec, effort)
    return cls, batch, cls.options_class.resolve(config.method, spec, config.set, iterations, batch)


def counts_of(config: GenerateConfig, out: Path, resume: bool) -> tuple[int, ...]:
    """Images after the first run in `out` and after each extension; the last is what is asked for.

    Raises:
        RunFolderError: the run there has more images than are asked for, or says nothing readable.
    """
    stored = stored_options(out) if resume else {}
    if not stored:
        return (config.count or DEFAULT_COUNT,)
    try:
        counts = TypeAdapter(tuple[PositiveInt, ...]).validate_python(stored.get("counts", [stored["count"]]))
        last = counts[-1]
    except (ValidationError, LookupError):
        found = f"{out / RUN_FILE} does not say how many images"
        raise RunFolderError(found, "the folder of an earlier run", "choose another --out") from None
    if config.count is not None and config.count < last:
        raise RunFolderError(
            f"--resume with count = {config.count}",
            f"at least the {last} images of {out}",
            "a set can be extended but not cut; quantize and gap take a --count of their own",
        )
    return counts if config.count in (None, last) else (*counts, config.count)


def resolve(
    config: GenerateConfig, out: Path, teacher: Teacher | None = None, counts: tuple[int, ...] = ()
) -> ResolvedRun:
    """Check every option and build the parts; writes nothing.

    Args:
        counts: see `Plan.counts`; what the first run had decides batch and runtime of all extensions.

    Raises:
        ZsqError: an option, a teacher or a combination of both that cannot work.
    """
    cls = method_class(config.method)
    if config.real is not None and not cls.facts.needs_real:
        raise OptionError(f"--real {config.real}", f"no --real: {config.method} reads no images")
    if config.real is None and cls.facts.needs_real:
        what = f"{cls.facts.data_read}, or the folder of a zsq run"
        raise OptionError(f"{config.method} without --real", f"--real SRC: {what}")
    if teacher is None:
        weights = Path(config.weights) if config.weights is not None else None
        teacher = load_teacher(config.teacher, weights)
    require(config.method, teacher)
    require_finite_outputs(teacher)
    counts = counts or (config.count or DEFAULT_COUNT,)
    _, batch, options = method_options(config, teacher.spec, counts[0])
    passes = cls.teacher_passes(options, counts[0])
    runtime = Runtime.resolve(
        **config.runtime.model_dump(),
        total_gflops=forward_gflops(teacher) * passes if passes else 0.0,
    )
    plan = Plan(
        count=counts[-1],
        batch=batch,
        shard_size=config.shard_size,
        seed=config.seed,
        batches_per_group=cls.batches_per_group,
        earlier=counts[:-1],
    )
    method = cls(teacher.to(runtime.device), options, runtime)
    images = None
    if config.real is not None:
        images = images_for(teacher, config.real, one_per_class=True)
        method.read(images.pixels, images.labels)
    return ResolvedRun(config, teacher, method, plan, runtime, out, images)


def _images_sha256(images: ImageSet) -> str:
    parts = (images.pixels.numpy().tobytes(), images.labels.numpy().tobytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def generate(
    config: GenerateConfig,
    out: Path,
    *,
    resume: bool = False,
    teacher: Teacher | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Make the images and return the run's folder, which `zsq verify` accepts.

    Args:
        out: the run's folder; must be empty or absent unless `resume`.
        resume: finish what the folder holds, and extend it where `config.count` is larger.
        teacher: one that is loaded already; else `config.teacher` is loaded.

    Raises:
        ZsqError: see `resolve`; RunFolderError: the folder is in the way; StorageError: the disk refused.
    """
    job = resolve(config, out, teacher, counts_of(config, out, resume))
    processes = Processes.started()
    if processes.rank == 0:
        open_run(out, job.resolved(), resume, grows=("count", "counts"), whole=MANIFEST_NAME)
    processes.wait()
    events = out / "events.jsonl" if processes.rank == 0 else None
    reporter = (reporter or Reporter(quiet=True)).logging_to(events)
    for line in said(job.images) if job.images is not None else ():
        reporter.say(line)
    job.shards.mkdir(exist_ok=True)
    start = time.perf_counter()
    missing = [unit for unit in job.plan.units if _finished(job, unit, reporter) is None]
    if not missing and (out / MANIFEST_NAME).exists():
        return out
    processes.wait()
    with job.runtime.threads_set():
        made = _make_units(job, missing, processes, reporter)
    processes.wait()
    if processes.rank == 0:
        _write_manifest(job, made, time.perf_counter() - start)
        reporter.say(f"{job.plan.count} images in {job.plan.num_shards} shards: {out}")
    return out


def _make_units(job: ResolvedRun, missing: list[WorkUnit], processes: Processes, reporter: Reporter) -> int:
    """Make this process's share of the missing units; image-iterations of all processes."""
    if not missing:
        return 0
    if job.plan.earlier:
        reporter.say(_extension(job.plan))
    _say_estimate(job, missing, reporter)
    mine = missing[processes.rank :: processes.count]
    with reporter.job(f"{job.method.name} on {job.teacher.name}", _work(job, mine)) as log:
        # Rank 0 makes what all share, the others then find it.
        for turn in (processes.rank == 0, processes.rank != 0):
            if turn:
                job.method.prepare(job.plan.seed, job.out / "prepared", log)
            processes.wait()
        scorer = Scorer(job.teacher, job.runtime)
        with ThreadPoolExecutor(1) as writer:
            writing = None
            for unit in mine:
                made = [job.method.synthesize(group, log) for group in unit.groups]
                contents = _contents(job, unit, made, scorer)
                if writing is not None:
                    writing.result()
                writing = writer.submit(_write_unit, job, unit, contents)
            if writing is not None:
                writing.result()
    return _work(job, missing)


def _work(job: ResolvedRun, units: list[WorkUnit]) -> int:
    """Image-iterations that `units` take, or their images where the method has none."""
    images = sum(unit.num_images for unit in units)
    return job.method.teacher_passes(job.method.options, images) or images


def _contents(
    job: ResolvedRun, unit: WorkUnit, made: list[SyntheticBatch], scorer: Scorer
) -> list[ShardContent]:
    """What each shard of the unit holds."""
    pixels = job.teacher.spec.standard_to_pixels(torch.cat([batch.standard_NCHW.cpu() for batch in made]))
    logits, distances = scorer.score(pixels)
    targets = (
        torch.cat([b.targets_NK for b in made if b.targets_NK is not None])
        if made[0].targets_NK is not None
        else None
    )
    labels = targets.argmax(1) if targets is not None else torch.full((len(pixels),), -1)
    soft = targets is not None and bool((targets.amax(1) < 1).any())
    contents, first = [], 0
    for size in unit.shard_sizes:
        rows = slice(first, first + size)
        contents.append(
            ShardContent(
                pixels=pixels[rows].numpy(),
                labels=labels[rows].numpy(),
                logits=logits[rows].numpy(),
                bn_distance=distances[rows].numpy(),
                targets=targets[rows].numpy().astype(np.float16) if soft and targets is not None else None,
            )
        )
        first += size
    return contents


def _write_unit(job: ResolvedRun, unit: WorkUnit, contents: list[ShardContent]) -> None:
    """Write the unit's shards, while the next unit is being made."""
    first = 0
    for index, content in enumerate(contents, unit.first_shard):
        write_shard(job.shards / shard_name(index), content, _provenance(job, unit, first))
        first += len(content.pixels)


def _provenance(job: ResolvedRun, unit: WorkUnit, offset: int) -> ShardProvenance:
    return ShardProvenance(
        teacher=job.teacher.name,
        teacher_sha256=job.teacher.weights_sha256,
        spec=job.teacher.spec,
        method=job.method.name,
        options=job.options,
        seed=job.plan.seed,
        groups=tuple(group.index for group in unit.groups),
        first_image=unit.groups[0].first_image + offset,
        data_read=job.data_read,
    )


def _finished(job: ResolvedRun, unit: WorkUnit, reporter: Reporter | None = None) -> list[ShardEntry] | None:
    """The unit's shards where all are there and whole, else None; damage is said, and made again."""
    entries = []
    offset = 0
    for index, size in enumerate(unit.shard_sizes, unit.first_shard):
        path = job.shards / shard_name(index)
        if not path.exists():
            return None
        try:
            entry, provenance = verify_shard(path)
            if provenance != _provenance(job, unit, offset) or entry.num_images != size:
                raise ShardError(f"{path} holds other images than this run's")
        except ShardError as error:
            if reporter is not None:
                reporter.say(f"{error}; its images are made again")
            return None
        entries.append(entry)
        offset += size
    return entries


def _extension(plan: Plan) -> str:
    before, added = plan.earlier[-1], plan.count - plan.earlier[-1]
    own = ", a group of their own: statistics of a whole set are those of these alone"
    return (
        f"{before} images stay as they are, {added} are added{own if plan.batches_per_group is None else ''}"
    )


def _say_estimate(job: ResolvedRun, missing: list[WorkUnit], reporter: Reporter) -> None:
    images = sum(unit.num_images for unit in missing)
    passes = job.method.teacher_passes(job.method.options, images)
    per_pass = seconds_per_image_iteration(job.teacher, job.plan.batch) if passes else 0.0
    fresh = len(missing) == len(job.plan.units)
    others = _other_efforts(job) if fresh and passes else []
    line = forecast(Work(passes, job.runtime), others, images, per_pass)
    per_image = int(np.prod(job.teacher.spec.shape)) + 4 * job.teacher.num_outputs + 64
    reporter.say(f"{job.method.name}: {line}, {images * per_image / 1e6:.1f} MB on disk")
    if "--effort" in line:
        reporter.say(f"{job.method.name}, measured: {measured(type(job.method))}")


def _other_efforts(job: ResolvedRun) -> list[Work]:
    """The whole run at the efforts that would give it other iterations."""
    cls, spec, config = type(job.method), job.teacher.spec, job.config
    gflops = forward_gflops(job.teacher)
    found = []
    for effort in get_args(Effort):
        iterations = effort_iterations(cls, spec, effort)
        options = cls.options_class.resolve(cls.name, spec, config.set, iterations, job.plan.batch)
        passes = cls.teacher_passes(options, job.plan.count)
        if passes != cls.teacher_passes(job.method.options, job.plan.count):
            runtime = Runtime.resolve(**config.runtime.model_dump(), total_gflops=gflops * passes)
            found.append(Work(passes, runtime, effort))
    return found


def _write_manifest(job: ResolvedRun, image_iterations: int, seconds: float) -> None:
    entries: list[ShardEntry] = []
    for unit in job.plan.units:
        found = _finished(job, unit)
        if found is None:
            raise ShardError(f"shard {unit.first_shard} is missing", "all shards", "run again with --resume")
        entries += found
    resolved = job.resolved()
    manifest = Manifest(
        zsq_version=__version__,
        libraries=library_versions(),
        device=torch.device(job.runtime.device).type,
        runtime=job.runtime.record() | {"compile": job.runtime.compile and not job.runtime.failures},
        config=resolved,
        config_sha256=config_sha256(resolved),
        teacher=TeacherRecord.of(job.teacher),
        method=MethodRecord(name=job.method.name, options=job.options, data_read=job.data_read),
        seed=job.plan.seed,
        num_images=job.plan.count,
        shards=tuple(entries),
        seconds=round(seconds, 3),
        image_iterations_per_second=round(image_iterations / seconds, 1),
        data_read=job.data_read,
    )
    write_manifest(job.out, manifest)
