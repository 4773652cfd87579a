"""A comparison under way in a folder: each finished fit is kept, and a report can be written at any time."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from zsq.contract import FittedStudent, QuantizedTensor
from zsq.core.errors import MismatchError, RunFolderError
from zsq.core.files import atomic_write_bytes, read_regular
from zsq.core.progress import Reporter, append_line
from zsq.core.records import Record, first_fault
from zsq.generators import available_methods
from zsq.measure import gap
from zsq.measure.contrasts import contrasts
from zsq.measure.evaluate import score_teacher
from zsq.measure.layernoise import BOTH, StudentNoise, layer_noise
from zsq.measure.protocol import REAL, Protocol, RunRecord
from zsq.measure.setfacts import bn_distances, intra_class_distances
from zsq.report.build import build_report
from zsq.report.data import ReportData
from zsq.runfolder import open_run
from zsq.shards.manifest import library_versions
from zsq.shards.reader import ShardDataset
from zsq.tasks.embed import Embed
from zsq.tasks.metrics import against_teacher

FITS_FILE = "fits.jsonl"
MAX_FITS_BYTES = 2**30
EVENTS_FILE = "events.jsonl"
SHEET_IMAGES = 40
# Of the evaluation images, and the layers that are tried alone, to say which layers hurt: few enough to be
# small beside scoring a student.
LAYER_IMAGES, LAYERS_TRIED = 32, 10


class Budget:
    """Wall-clock time a command may take; None is unlimited."""

    def __init__(self, hours: float | None) -> None:
        """Starts now."""
        self.ends = None if hours is None else time.monotonic() + hours * 3600

    def spent(self) -> bool:
        """Whether no new piece of work should begin."""
        return self.ends is not None and time.monotonic() >= self.ends


class FitEntry(Record):
    """One line of the log. `layers` are of the first fit of a source alone, and of a student whose layers
    stand for the teacher's."""

    record: RunRecord
    tensors: list[QuantizedTensor]
    layers: StudentNoise | None = None


class FitLog:
    """Finished fits on disk, one JSON line each, for resuming."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier run left; a last line that a kill cut short is removed.

        Raises:
            RunFolderError: the file cannot be read, or a whole line is no fit.
        """
        self.path = path
        self.records: list[RunRecord] = []
        self.tensors: dict[str, list[QuantizedTensor]] = {}
        # "student bits" -> source -> its layers.
        self.layers: dict[str, dict[str, StudentNoise]] = {}
        try:
            lines = read_regular(path, MAX_FITS_BYTES).splitlines(keepends=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise RunFolderError(f"{path} cannot be read: {error.strerror}", "the fits of this run") from None
        whole = [line for line in lines if line.endswith(b"\n")]
        if whole != lines:
            atomic_write_bytes(path, b"".join(whole))
        for number, line in enumerate(whole, 1):
            try:
                entry = FitEntry.model_validate_json(line)
            except ValidationError as error:
                found = f"{path} line {number}: {first_fault(error)}"
                raise RunFolderError(found, "a fit", "remove that line: the fit is made again") from None
            self._remember(entry)

    def add(
        self, record: RunRecord, tensors: Sequence[QuantizedTensor], layers: StudentNoise | None = None
    ) -> None:
        """Append one fit."""
        entry = FitEntry(record=record, tensors=list(tensors), layers=layers)
        held = {"record": record, "tensors": [asdict(tensor) for tensor in tensors]}
        append_line(self.path, json.dumps(held | ({} if layers is None else {"layers": asdict(layers)})))
        self._remember(entry)

    def adopt(self, records: Iterable[RunRecord]) -> None:
        """Add fits finished elsewhere, such as those of a committed table."""
        for record in records:
            if record not in self.records:
                self.add(record, [])

    def _remember(self, entry: FitEntry) -> None:
        self.records.append(entry.record)
        student = f"{entry.record['student']} {entry.record['bits']}"
        if entry.tensors:
            self.tensors[student] = entry.tensors
        if entry.layers is not None:
            self.layers.setdefault(student, {})[entry.record["source"]] = entry.layers


class Bench:
    """A protocol under way in a folder: shard sets, finished fits, the report."""

    def __init__(self, protocol: Protocol, out: Path, command: str, resume: bool, reporter: Reporter) -> None:
        """Score the teacher, then make the folder or take it up again with the fits of an earlier call.

        Raises:
            ZsqError: a teacher that does not measure what it should, or evaluation images of another network.
            RunFolderError: the folder is in the way, or was made with other settings.
        """
        self.protocol, self.out = protocol, out
        self.reference = score_teacher(protocol.teacher, protocol.eval, protocol.runtime)
        open_run(out, {"command": command, **protocol.settings}, resume)
        self.reporter = reporter.logging_to(out / EVENTS_FILE)
        self.fits = FitLog(out / FITS_FILE)
        self.sets: dict[str, list[Path]] = {}

    def adopt(self, records: Iterable[RunRecord], sources: Iterable[str]) -> None:
        """Take fits made elsewhere for finished, where they are of this protocol and one of `sources`.

        An embedder's fits without replicates are made again: there would be no intervals.
        """
        arms = dict.fromkeys((REAL, *sources), self.protocol.real_sets)
        own = self.protocol.belonging(records, arms)
        if isinstance(self.protocol.teacher.task, Embed):
            own = [record for record in own if "replicates" in record]
        self.fits.adopt(own)

    def arms(self, num_sets: int) -> dict[str, list[Tensor]]:
        """Source -> pixels of its first `num_sets` shard sets, as many as the real sets hold."""
        count = self.protocol.num_images
        arms = {REAL: [images.pixels for images in self.protocol.real_sets[:num_sets]]}
        for source, folders in self.sets.items():
            arms[source] = [ShardDataset(folder).pixels()[:count] for folder in folders[:num_sets]]
        return arms

    def fit(self, num_sets: int, budget: Budget) -> None:
        """Fit and score every student on the first `num_sets` shard sets, minus what is done."""
        p = self.protocol
        arms = self.arms(num_sets)
        finished = p.belonging(self.fits.records, arms)
        left = len(p.fits(arms)) - len(finished)
        with self.reporter.job("students", left) as job, p.runtime.threads_set():

            def keep(record: RunRecord, fitted: FittedStudent) -> None:
                self.fits.add(record, fitted.tensors, self._layers(record, fitted))
                job.advance(1, **record["metrics"])

            gap.measure_gap(p, arms, self.reference, done=finished, on_run=keep, should_stop=budget.spent)

    def _layers(self, record: RunRecord, fitted: FittedStudent) -> StudentNoise | None:
        """Which layers hurt, of the first fit on a source; None where a student's layers are not the
        teacher's."""
        if record["shard_set"] or record["seed"]:
            return None
        p = self.protocol
        pixels = p.eval.pixels[:LAYER_IMAGES]
        try:
            return layer_noise(fitted, p.teacher, pixels, p.runtime, layers=LAYERS_TRIED, parts=(BOTH,))
        except MismatchError:
            return None

    def report(self) -> ReportData:
        """Write the report of what is finished."""
        p = self.protocol
        rows = gap.rows_from_runs(self.fits.records)
        replicates = gap.replicates_of(self.fits.records)
        first_sets = {source: sets[0] for source, sets in self.arms(1).items() if sets}
        names, distances = bn_distances(p.teacher, first_sets, p.runtime)
        data = ReportData(
            title=p.title,
            teacher={
                "name": p.teacher.name,
                "weights_sha256": p.teacher.weights_sha256,
                **self._quality(),
                "num_outputs": p.teacher.num_outputs,
                "evaluation_images": len(p.eval),
                **self._task_facts(),
            },
            settings={**p.settings, "runtime": p.runtime.record()},
            rows=rows,
            gaps=gap.gaps_from_rows(rows, replicates),
            layer_names=names,
            bn_distance=distances,
            intra_class_distance=intra_class_distances(p.teacher, first_sets, p.runtime),
            cost=self._costs(),
            sheets={source: pixels[:SHEET_IMAGES] for source, pixels in first_sets.items()},
            quantized_tensors=self.fits.tensors,
            layers=self.fits.layers,
            contrasts=contrasts(rows, replicates),
            roc=roc_curves(self.fits.records),
            show_real=p.show_real,
        )
        build_report(data, self.out)
        return data

    def _quality(self) -> dict[str, float | None]:
        """The teacher's own figure on the evaluation images, where its task has one."""
        name = self.protocol.teacher.task.quality
        return {} if name is None else {name: self.reference.quality}

    def _task_facts(self) -> dict[str, Any]:
        """The name of a task besides classification, and what else labels say of the teacher."""
        p, scores = self.protocol, self.reference.teacher_scores
        if p.teacher.task.has_classes:
            return {}
        metrics = {} if scores is None else scores.metrics
        others = {
            name: value
            for name, value in metrics.items()
            if name != p.teacher.task.quality and not against_teacher(name)
        }
        embeds = isinstance(p.teacher.task, Embed)
        identities = {"identities": len(p.eval.labels.unique())} if embeds else {}
        return {"task": p.teacher.task.name, **identities, **others}

    def _costs(self) -> dict[str, float]:
        """Teacher passes per image of each source, where its shards say so."""
        costs = {
            source: passes_per_image(ShardDataset(sets[0])) for source, sets in self.sets.items() if sets
        }
        return {source: cost for source, cost in costs.items() if cost is not None}


def roc_curves(records: Iterable[RunRecord]) -> dict[str, dict[str, list[float]]]:
    """Student and bits -> source -> TAR in points at `ROC_FARS`, mean over fits; empty for classifiers."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for record in records:
        if "roc" in record:
            of_student = found.setdefault(f"{record['student']} {record['bits']}", {})
            of_student.setdefault(record["source"], []).append(record["roc"])
    return {
        student: {source: np.mean(curves, axis=0).tolist() for source, curves in sources.items()}
        for student, sources in found.items()
    }


def passes_per_image(images: ShardDataset) -> float | None:
    """Teacher passes per image, with a method's shared training counted in.

    None for images whose method or options this installation does not know.
    """
    origin = images.provenance
    cls = available_methods().get(origin.method)
    if cls is None:
        return None
    try:
        options = cls.options_class(**origin.options)
    except ValidationError:
        return None
    return cls.teacher_passes(options, len(images)) / len(images)


def machine() -> dict[str, str]:
    """What measured times depend on: system, processor, libraries."""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        **library_versions(),
    }
