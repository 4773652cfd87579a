"""Finished fits in a run's folder, one JSON line each, for resuming."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError

from zsq.contract import QuantizedTensor
from zsq.core.errors import RunFolderError
from zsq.core.files import atomic_write_bytes, read_regular
from zsq.core.progress import append_line
from zsq.core.records import Record, first_fault
from zsq.measure.layernoise import StudentNoise
from zsq.measure.protocol import RunRecord, fit_key

FITS_FILE = "fits.jsonl"
MAX_FITS_BYTES = 2**30


class FitEntry(Record):
    """One line of the log. `layers` are of the first fit of a source alone, and of a student whose layers
    stand for the teacher's."""

    record: RunRecord
    tensors: list[QuantizedTensor]
    layers: StudentNoise | None = None


class FitLog:
    """The log of a run that processes may share.

    The first process appends to `fits.jsonl`. Each other one has a file of its own until the first collects
    it.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        """Nothing is read yet."""
        self.folder, self.path = folder, folder / FITS_FILE
        self.own = self.path if rank == 0 else folder / f"fits-{rank}.jsonl"
        self.entries: list[FitEntry] = []

    @property
    def records(self) -> list[RunRecord]:
        """The fits, in the order in which they were finished."""
        return [entry.record for entry in self.entries]

    def read(self) -> None:
        """Take what `fits.jsonl` holds: of lines for the same fit the first, and no last line that a kill cut
        short.

        Raises:
            RunFolderError: the file cannot be read, or a whole line is no fit.
        """
        known: dict[str, FitEntry] = {}
        for entry in _entries(self.path):
            known.setdefault(fit_key(entry.record), entry)
        self.entries = list(known.values())

    def collect(self) -> None:
        """Move what other processes left into `fits.jsonl`, and read it all; for the first process alone.

        Raises:
            RunFolderError: as `read`. StorageError: the disk refused.
        """
        _cut_torn_line(self.path)
        self.read()
        known = {fit_key(record) for record in self.records}
        for path in sorted(self.folder.glob("fits-*.jsonl")):
            for entry in _entries(path):
                if fit_key(entry.record) not in known:
                    known.add(fit_key(entry.record))
                    self.add(entry.record, entry.tensors, entry.layers)
            path.unlink()

    def add(
        self, record: RunRecord, tensors: Sequence[QuantizedTensor], layers: StudentNoise | None = None
    ) -> None:
        """Append one fit."""
        entry = FitEntry(record=record, tensors=list(tensors), layers=layers)
        held = {"record": record, "tensors": [asdict(tensor) for tensor in tensors]}
        append_line(self.own, json.dumps(held | ({} if layers is None else {"layers": asdict(layers)})))
        self.entries.append(entry)

    def adopt(self, records: Iterable[RunRecord]) -> None:
        """Add fits finished elsewhere, such as those of a committed table, where there are none yet."""
        known = {fit_key(record) for record in self.records}
        for record in records:
            if fit_key(record) not in known:
                known.add(fit_key(record))
                self.add(record, [])


def _entries(path: Path) -> list[FitEntry]:
    entries = []
    for number, line in enumerate(_lines(path), 1):
        if not line.endswith(b"\n"):
            break
        try:
            entries.append(FitEntry.model_validate_json(line))
        except ValidationError as error:
            found = f"{path} line {number}: {first_fault(error)}"
            raise RunFolderError(found, "a fit", "remove that line: the fit is made again") from None
    return entries


def _cut_torn_line(path: Path) -> None:
    lines = _lines(path)
    if lines and not lines[-1].endswith(b"\n"):
        atomic_write_bytes(path, b"".join(lines[:-1]))


def _lines(path: Path) -> list[bytes]:
    try:
        return read_regular(path, MAX_FITS_BYTES).splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}", "the fits of this run") from None
