"""Plan minus what is done -> method -> shards -> manifest. Work units are split over processes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from zsq.config import GenerateConfig, config_sha256
from zsq.contract import SyntheticBatch, Teacher
from zsq.core.errors import ShardError, StorageError
from zsq.core.memory import shortage_said
from zsq.core.processes import Processes, failing_together
from zsq.core.progress import Reporter
from zsq.core.runtime import compiled_folder
from zsq.core.seal import Seal, SealRecord, merged, watched
from zsq.core.version import __version__
from zsq.core.wording import quantity
from zsq.datasetcard.writing import write_run_card
from zsq.engine.scoring import Scorer
from zsq.images.imageset import said
from zsq.plan import WorkUnit
from zsq.runfolder import make_folder, open_run
from zsq.shards.manifest import (
    MANIFEST_NAME,
    Manifest,
    MethodRecord,
    TeacherRecord,
    library_versions,
    read_manifest,
    write_manifest,
)
from zsq.shards.schema import ShardContent, ShardEntry, ShardProvenance, shard_name
from zsq.shards.verify import verify_shard
from zsq.shards.writer import write_shard
from zsq.synthesis.forecast import check_memory, forecast_lines, what_to_lower
from zsq.synthesis.resolved import ResolvedRun, counts_of, resolve


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
        ZsqError: see `resolve`; RunFolderError: the folder is in the way; StorageError: the disk refused;
            MemoryShortageError: the run needs more than there is.
    """
    with watched(config.sealed):
        return make(resolve(config, out, teacher, counts_of(config, out, resume)), resume, reporter)


@failing_together()
def make(job: ResolvedRun, resume: bool, reporter: Reporter | None) -> Path:
    """What `generate` does, of a run that is resolved; the same errors."""
    with watched(job.config.sealed) as seal:
        if seal is not None:
            seal.shut(job.out, compiled_folder() if job.runtime.compile else None)
        return _make(job, resume, reporter, seal)


def _make(job: ResolvedRun, resume: bool, reporter: Reporter | None, seal: Seal | None) -> Path:
    out, processes = job.out, Processes.started()
    check_memory(job, processes.local_count)
    if processes.first:
        open_run(out, job.resolved(), resume, grows=("count", "counts"), whole=MANIFEST_NAME)
    processes.wait()
    events = out / "events.jsonl" if processes.first else None
    reporter = processes.spoken(reporter).logging_to(events)
    for line in said(job.images) if job.images is not None else ():
        reporter.say(line)
    make_folder(job.shards)
    start = time.perf_counter()
    found = [(unit, _finished(job, unit, reporter)) for unit in job.plan.units]
    missing = [unit for unit, entries in found if entries is None]
    if not missing and _stated(out, [entry for _, entries in found for entry in entries or ()], reporter):
        return out
    processes.wait()
    with job.runtime.in_force(), shortage_said(what_to_lower(job)):
        made = _make_units(job, missing, processes, reporter)
    processes.wait()
    sealed = _seal_record(seal, processes)
    if processes.first:
        _write_manifest(job, made, time.perf_counter() - start, sealed)
        reporter.say(
            f"{quantity(job.plan.count, 'image')} in {quantity(job.plan.num_shards, 'shard')}: {out}"
        )
    return out


def _stated(out: Path, entries: list[ShardEntry], reporter: Reporter) -> bool:
    """Whether a whole manifest states these shards; damage is said, and the manifest written again."""
    if not (out / MANIFEST_NAME).exists():
        return False
    try:
        if list(read_manifest(out).shards) == entries:
            return True
        reporter.say(f"{out / MANIFEST_NAME} states other shards; it is written again")
    except ShardError as error:
        reporter.say(f"{error}; it is written again")
    return False


def _make_units(job: ResolvedRun, missing: list[WorkUnit], processes: Processes, reporter: Reporter) -> int:
    """Make this process's share of the missing units; image-iterations of all processes."""
    if not missing:
        return 0
    for line in forecast_lines(job, missing):
        reporter.say(line)
    mine = missing[processes.rank :: processes.count]
    with reporter.job(f"{job.method.name} on {job.teacher.name}", _work(job, mine)) as log:
        # Rank 0 makes what all share, the others then find it.
        for turn in (processes.first, not processes.first):
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
    scores = scorer.score(pixels)
    attention = scores.attention
    targets = (
        torch.cat([b.targets_NK for b in made if b.targets_NK is not None])
        if made[0].targets_NK is not None
        else None
    )
    labels = targets.argmax(1) if targets is not None else torch.full((len(pixels),), -1)
    soft = targets is not None and bool((targets.amax(1) < 1).any())
    boxes = [image for batch in made if batch.boxes is not None for image in batch.boxes]
    contents, first = [], 0
    for size in unit.shard_sizes:
        rows = slice(first, first + size)
        contents.append(
            ShardContent(
                pixels=pixels[rows].numpy(),
                labels=labels[rows].numpy(),
                logits=None if scores.logits_NK is None else scores.logits_NK[rows].numpy(),
                bn_distance=scores.bn_distance_N[rows].numpy(),
                patch_entropy=None if attention is None else attention.patch_entropy_N[rows].numpy(),
                head_similarity=None if attention is None else attention.head_similarity_N[rows].numpy(),
                targets=targets[rows].numpy().astype(np.float16) if soft and targets is not None else None,
                boxes=tuple(boxes[rows]) if made[0].boxes is not None else None,
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


def _seal_record(seal: Seal | None, processes: Processes) -> SealRecord | None:
    """What all processes of a sealed run opened; in the first of them.

    Raises:
        SealError: one of them wanted to open something else.
    """
    if seal is None:
        return None
    seal.check()
    records = processes.gathered(seal.record())
    return merged(records, processes.address) if records else None


def _write_manifest(
    job: ResolvedRun, image_iterations: int, seconds: float, sealed: SealRecord | None
) -> None:
    entries: list[ShardEntry] = []
    for unit in job.plan.units:
        found = _finished(job, unit)
        if found is None:
            raise StorageError(f"shard {unit.first_shard} was written, and is missing or damaged now")
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
        method=MethodRecord(
            name=job.method.name,
            options=job.options,
            data_read=job.data_read,
            labels=job.method.box_labels,
        ),
        seed=job.plan.seed,
        num_images=job.plan.count,
        shards=tuple(entries),
        seconds=round(seconds, 3),
        image_iterations_per_second=round(image_iterations / seconds, 1),
        data_read=job.data_read,
        sealed=sealed is not None,
        seal=sealed,
    )
    write_run_card(job.out, manifest)
    write_manifest(job.out, manifest)
