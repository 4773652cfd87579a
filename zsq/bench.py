"""A comparison under way in a folder: each finished fit is kept, and a report can be written at any time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from torch import Tensor

from zsq.contract import FittedStudent, QuantizedTensor
from zsq.core.errors import MismatchError, OptionError
from zsq.core.processes import Processes
from zsq.core.progress import Reporter
from zsq.fitlog import FitEntry, FitLog
from zsq.generators import available_methods
from zsq.measure import gap
from zsq.measure.audits import Audit, Auditor, identities_of, planted
from zsq.measure.choices import choices_by_student
from zsq.measure.contrasts import contrasts
from zsq.measure.evaluate import Reference, score_teacher
from zsq.measure.layernoise import BOTH, StudentNoise, layer_noise
from zsq.measure.protocol import NOISE, REAL, Protocol, RunRecord, by_student, fit_key, student_at_bits
from zsq.measure.setfacts import SetFigures, set_figures
from zsq.report.build import build_report
from zsq.report.data import ReportData
from zsq.runfolder import held_folder, open_run
from zsq.shards.reader import ShardDataset
from zsq.tasks.embed import Embed
from zsq.tasks.metrics import against_teacher

EVENTS_FILE = "events.jsonl"
SHEET_IMAGES = 40
# Of the evaluation images, and the layers that are tried alone, to say which layers hurt: few enough to be
# small beside scoring a student.
LAYER_IMAGES, LAYERS_TRIED = 32, 10


class Budget:
    """Wall-clock time a command may take; None is unlimited."""

    def __init__(self, hours: float | None) -> None:
        """Starts now.

        Raises:
            OptionError: below zero.
        """
        if hours is not None and not hours >= 0:
            raise OptionError(f"--budget-hours {hours:g}", "0 or more")
        self.ends = None if hours is None else time.monotonic() + hours * 3600

    def spent(self) -> bool:
        """Whether no new piece of work should begin."""
        return self.ends is not None and time.monotonic() >= self.ends


class Bench:
    """A protocol under way in a folder: shard sets, finished fits, the report."""

    def __init__(self, protocol: Protocol, out: Path, reference: Reference, reporter: Reporter) -> None:
        """Take up the fits that the folder holds; see `opened_bench`."""
        self.protocol, self.out, self.reference = protocol, out, reference
        self.processes = Processes.started()
        events = out / EVENTS_FILE if self.processes.first else None
        self.reporter = self.processes.spoken(reporter).logging_to(events)
        self.fits = FitLog(out, self.processes.rank)
        if self.processes.first:
            self.fits.collect()
        self._share()
        self.sets: dict[str, list[Path]] = {}
        self.audits: dict[str, Audit] = {}
        self.figures: dict[tuple[str, ...], SetFigures] = {}

    def _share(self) -> None:
        """Each process knows the fits of all."""
        if self.processes.count == 1:
            return
        self.processes.wait()
        if self.processes.first:
            self.fits.collect()
        self.processes.wait()
        if not self.processes.first:
            self.fits.read()
        self.processes.wait()

    def adopt(self, records: Iterable[RunRecord], sources: Iterable[str]) -> None:
        """Take fits made elsewhere for finished, where they are of this protocol and one of `sources`.

        Fits without the replicates that their task has are made again: there would be no intervals.
        """
        arms = dict.fromkeys((REAL, *sources), self.protocol.real_sets)
        own = self.protocol.belonging(records, arms)
        if self.protocol.teacher.task.has_replicates:
            own = [record for record in own if "replicates" in record]
        if self.processes.first:
            self.fits.adopt(own)
        self._share()

    def arms(self, num_sets: int) -> dict[str, list[Tensor]]:
        """Source -> pixels of its first `num_sets` shard sets, as many as the protocol asks for."""
        p = self.protocol
        arms = {REAL: [images.pixels for images in p.real_sets[:num_sets]]}
        for source, folders in self.sets.items():
            count = p.images_of(source)
            arms[source] = [ShardDataset(folder).pixels()[:count] for folder in folders[:num_sets]]
        return arms

    def fit(self, num_sets: int, budget: Budget) -> None:
        """Fit and score every student on the first `num_sets` shard sets, minus what is done; the processes
        of the job share the fits."""
        p = self.protocol
        arms = self.arms(num_sets)
        finished = p.belonging(self.fits.records, arms)
        left = len(p.fits(arms)) - len(finished)
        counted = self.processes.counted()
        with self.reporter.job("students", left) as job, p.runtime.in_force():

            def keep(record: RunRecord, fitted: FittedStudent) -> None:
                layers = None
                try:
                    layers = self._layers(record, fitted)
                finally:  # whatever comes of the look at its layers, the fit is done
                    self.fits.add(record, fitted.tensors, layers)
                job.advance(counted(), **record["metrics"])

            gap.fit_and_score(
                p, arms, self.reference, done=finished, on_run=keep, should_stop=budget.spent,
                processes=self.processes,
            )  # fmt: skip
        self._share()

    def entries(self) -> list[FitEntry]:
        """All finished fits, in the protocol's order whoever made them."""
        fits = self.protocol.fits({REAL: self.protocol.real_sets, **self.sets})
        place = {fit_key(fit.record()): number for number, fit in enumerate(fits)}
        return sorted(self.fits.entries, key=lambda entry: place.get(fit_key(entry.record), len(place)))

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
        """The report of what is finished, which the first process writes."""
        p, entries = self.protocol, self.entries()
        records = [entry.record for entry in entries]
        rows = gap.rows_from_runs(records)
        replicates = gap.replicates_of(records)
        first_sets = {source: sets[0] for source, sets in self.arms(1).items() if sets}
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
            **vars(self._figures(first_sets)),
            cost=self._costs(),
            sheets={source: pixels[:SHEET_IMAGES] for source, pixels in first_sets.items()},
            quantized_tensors=quantized_tensors(entries),
            layers=layers_that_hurt(entries),
            contrasts=contrasts(rows, replicates),
            roc=roc_curves(records),
            choices=choices_by_student(records),
            leakage=self._leakage(first_sets),
            show_real=p.show_real,
        )
        if self.processes.first:
            build_report(data, self.out)
        return data

    def _figures(self, sets: Mapping[str, Tensor]) -> SetFigures:
        """Of first sets, which stay the same from report to report."""
        sources = tuple(sets)
        if sources not in self.figures:
            self.figures[sources] = set_figures(self.protocol.teacher, sets, self.protocol.runtime)
        return self.figures[sources]

    @cached_property
    def _auditor(self) -> Auditor:
        p, owned = self.protocol, self.protocol.owned
        assert owned is not None
        identities = identities_of(p.teacher, owned.train, owned.holdout)
        return Auditor(p.teacher, owned.train.pixels, owned.holdout.pixels, p.runtime, identities)

    def _leakage(self, sets: Mapping[str, Tensor]) -> dict[str, Audit]:
        """What each set reveals, where the owner's images are known; a set is audited once."""
        owned = self.protocol.owned
        if owned is None or not self.processes.first:
            return {}
        judged = dict(sets)
        made = next((source for source in sets if source not in (REAL, NOISE)), None)
        if owned.planted and made is not None:
            copies = planted(sets[made], owned.train.pixels, owned.planted)
            judged[f"{made} with {owned.planted} copies"] = copies
        for source, pixels in judged.items():
            if source not in self.audits:
                self.audits[source] = self._auditor.audit(pixels)
        return dict(self.audits)

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


@contextmanager
def opened_bench(
    protocol: Protocol,
    out: Path,
    command: str,
    resume: bool,
    reporter: Reporter,
    shards: Iterable[Tensor] = (),
) -> Iterator[Bench]:
    """Score the teacher, then make the folder or take it up again with the fits of an earlier call. Until the
    block ends no other command works in it.

    Args:
        shards: uint8 (N, C, H, W) images that are there already: fits on others are not taken up.

    Raises:
        ZsqError: a teacher that does not measure what it should, or evaluation images of another network.
        RunFolderError: the folder is in the way, was made with other settings, or is at work.
    """
    reference = score_teacher(protocol.teacher, protocol.eval, protocol.runtime)
    first = Processes.started().first
    if first:
        images = {
            "evaluation_sha256": protocol.eval.tensors,
            "real_sha256": [each.pixels for each in protocol.real_sets],
            "synthetic_sha256": shards,
        }
        digests = {name: tensors_sha256(tensors) for name, tensors in images.items()}
        open_run(out, {"command": command, **protocol.settings, **digests}, resume)
    with held_folder(out) if first else nullcontext():
        yield Bench(protocol, out, reference, reporter)


def tensors_sha256(tensors: Iterable[Tensor]) -> str:
    """Of the bytes of all, one after the other."""
    digest = sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def quantized_tensors(entries: Iterable[FitEntry]) -> dict[str, list[QuantizedTensor]]:
    """Student and bits -> its table of quantized tensors."""
    return {student_at_bits(entry.record): entry.tensors for entry in entries if entry.tensors}


def layers_that_hurt(entries: Iterable[FitEntry]) -> dict[str, dict[str, StudentNoise]]:
    """Student and bits -> source -> its layers."""
    found: dict[str, dict[str, StudentNoise]] = {}
    for entry in entries:
        if entry.layers is not None:
            found.setdefault(student_at_bits(entry.record), {})[entry.record["source"]] = entry.layers
    return found


def roc_curves(records: Iterable[RunRecord]) -> dict[str, dict[str, list[float]]]:
    """Student and bits -> source -> TAR in points at `ROC_FARS`, mean over fits; empty for classifiers."""
    return {
        student: {source: np.mean(curves, axis=0).tolist() for source, curves in sources.items()}
        for student, sources in by_student(records, "roc").items()
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
