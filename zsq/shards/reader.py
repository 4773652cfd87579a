"""Reads shards: one file with every check, or a run as a torch data set that opens files in the worker.

A shard may come from anywhere. Before anything is read, its structure must be exactly what the writer makes:
plain chunked arrays of the schema's types whose bytes are all in the file. That leaves no way to name other
files, to run filters, or to declare more than the file holds.
"""

from __future__ import annotations

import bisect
import itertools
import json
import operator
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zsq.core.boxes import Target, no_boxes
from zsq.core.errors import ImagesError, ShardError, first_line
from zsq.core.imagespec import ImageSpec
from zsq.core.wording import quantity
from zsq.shards.manifest import MANIFEST_NAME, find_shards, read_manifest
from zsq.shards.schema import (
    ARRAYS,
    ATTRIBUTES,
    BOX_ARRAYS,
    DIAGNOSTICS,
    OPTIONAL_ARRAYS,
    ShardContent,
    ShardEntry,
    ShardProvenance,
    check_content,
)
from zsq.shards.writer import chunk_shape

CHECKSUM_BYTES = 4
MIN_IMAGE_BYTES = 1 + 8 + 4  # a pixel, a label and a BN distance

# Open files per process: enough for a shuffled walk over a few thousand images without reopening.
MAX_OPEN_FILES = 16


def read_shard(path: Path | str) -> tuple[ShardContent, ShardProvenance]:
    """Read and check a whole shard; the arrays are the caller's own.

    Raises:
        ShardError: missing, truncated, damaged, hostile, or not in the format.
    """
    path = Path(path)
    with ShardFile(path) as shard:
        content = ShardContent(
            pixels=shard.read("pixels"),
            labels=shard.read("labels"),
            bn_distance=shard.read("bn_distance"),
            **{
                name: shard.read(name) if shard.has(name) else None
                for name in ("logits", "targets", "patch_entropy", "head_similarity")
            },
            boxes=shard.boxes() if shard.has("box_ends") else None,
        )
        check_content(content, shard.provenance.spec, path.name)
        return content, shard.provenance


class ShardFile:
    """One open shard whose structure has been checked; rows are read as they are asked for."""

    def __init__(self, path: Path) -> None:
        """Open `path`.

        Raises:
            ShardError: missing, truncated, damaged, hostile, or not in the format.
        """
        self.path = path
        with _shard_errors(path):
            if not path.is_file():
                raise ShardError(f"{path} is missing", "a shard file")
            self._file = h5py.File(path, "r", driver="sec2", locking=False)
        try:
            with _shard_errors(path):
                self.provenance = _read_provenance(self._file, path)
                self._arrays = _checked_arrays(self._file, path)
                shape, stated = self._arrays["pixels"].shape[1:], self.provenance.spec.shape
                if shape != stated:
                    raise ShardError(f"{path}: images of {shape}", f"{stated} of its image spec")
        except BaseException:
            self._file.close()
            raise
        self.num_images = len(self._arrays["pixels"])

    def __enter__(self) -> ShardFile:
        """The open file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the file; reading is over."""
        self._file.close()

    def has(self, name: str) -> bool:
        """Whether the shard stores that array."""
        return name in self._arrays

    def read(self, name: str, rows: int | slice = slice(None)) -> Any:
        """Rows of an array.

        Raises:
            ShardError: a chunk's checksum is wrong.
        """
        with _shard_errors(self.path):
            return self._arrays[name][rows]

    def boxes(self, first: int = 0, end: int | None = None) -> tuple[Target, ...]:
        """The boxes of the images from `first` to before `end`, or of the rest.

        Raises:
            ShardError: a checksum is wrong, or ends of boxes are not in order.
        """
        end = self.num_images if end is None else end
        ends = self.read("box_ends", slice(max(first - 1, 0), end))
        ends = ends if first else np.append(0, ends)
        total = self._arrays["boxes"].shape[0] if self.has("boxes") else 0
        whole = ends[-1] == total or end < self.num_images
        if not whole or ends[0] < 0 or ends[-1] > total or (np.diff(ends) < 0).any():
            raise ShardError(
                f"{self.path}: box_ends are not counts that rise to {total} boxes", "such counts"
            )
        if total == 0:
            return tuple(no_boxes() for _ in ends[1:])
        rows, sizes = slice(int(ends[0]), int(ends[-1])), np.diff(ends).tolist()
        parts = (torch.from_numpy(self.read(name, rows)).split(sizes) for name in ("boxes", "box_labels"))
        return tuple({"boxes": boxes, "labels": labels} for boxes, labels in zip(*parts, strict=True))


@contextmanager
def _shard_errors(path: Path) -> Iterator[None]:
    """HDF5 reports damage by half a dozen exception types; make them one line."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise ShardError(
            f"{path} is damaged or not a shard ({first_line(error)})", "an intact file"
        ) from None


def _read_provenance(file: h5py.File, path: Path) -> ShardProvenance:
    values = {}
    for name in ATTRIBUTES:
        if not h5py.h5a.exists(file.id, name.encode()):
            raise ShardError(f"{path} has no attribute {name}", "a zsq shard")
        attribute = h5py.h5a.open(file.id, name.encode())
        kind = attribute.get_type()
        is_text = isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str()
        if not is_text or attribute.shape != () or kind.get_size() > path.stat().st_size:
            raise ShardError(f"{path}: attribute {name} is not a text", "a fixed-length JSON string")
        text = np.empty((), dtype=f"S{kind.get_size()}")
        attribute.read(text)
        values[name] = json.loads(text.item())
        # A lone half of a surrogate pair is JSON, but no text that could be written anywhere.
        json.dumps(values[name], ensure_ascii=False).encode()
    return ShardProvenance.from_attributes(values, path.name)


def _checked_arrays(file: h5py.File, path: Path) -> dict[str, h5py.Dataset]:
    names = {name.decode() for name in file.id}
    if not set(ARRAYS) - OPTIONAL_ARRAYS <= names <= set(ARRAYS):
        raise ShardError(f"{path} holds {', '.join(sorted(names)) or 'nothing'}", f"only {', '.join(ARRAYS)}")
    for name in names:
        if file.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            raise ShardError(f"{path}: {name} is a link to something else", "an array in the file itself")
    arrays = {name: file[name] for name in ARRAYS if name in names}
    for name, array in arrays.items():
        _check_layout(name, array, path)
    _check_boxes(arrays, path)
    stored = sum(array.id.get_storage_size() for array in arrays.values())
    if stored > path.stat().st_size:
        raise ShardError(f"{path}: arrays share their bytes", "each array with its own")
    return arrays


def _check_boxes(arrays: dict[str, h5py.Dataset], path: Path) -> None:
    """The arrays of boxes belong together; without a box the end of each image's stands alone."""
    shapes = {name: arrays[name].shape for name in ("box_ends", *BOX_ARRAYS) if name in arrays}
    if not shapes:
        return
    total = shapes.get("boxes", (0,))[0]
    expected = {"box_ends": arrays["pixels"].shape[:1]}
    if len(shapes) > 1:
        expected |= {"boxes": (total, 4), "box_labels": (total,)}
    if shapes != expected:
        raise ShardError(f"{path}: arrays of boxes have shapes {shapes}", f"{expected}")


def _check_layout(name: str, array: Any, path: Path) -> None:
    """Refuse virtual and external storage, filters, pointers, and shapes whose bytes are not in the file."""
    if not isinstance(array, h5py.Dataset):
        raise ShardError(f"{path}: {name} is not an array", "an array")
    dtype, ndim = ARRAYS[name]
    # Pixels of signals have an axis fewer; that they agree with the spec is checked with their shape.
    ranks = (ndim - 1, ndim) if name == "pixels" else (ndim,)
    if not array.id.get_type().equal(h5py.h5t.py_create(dtype)) or array.id.rank not in ranks:
        raise ShardError(f"{path}: {name} has another type or rank", f"{dtype} with {ndim} dimensions")
    layout = array.id.get_create_plist()
    filters = [layout.get_filter(index)[0] for index in range(layout.get_nfilters())]
    if layout.get_layout() != h5py.h5d.CHUNKED or filters != [h5py.h5z.FILTER_FLETCHER32]:
        raise ShardError(f"{path}: {name} is stored in another way", "chunks with checksums only")
    if 0 in array.shape or layout.get_chunk() != chunk_shape(name, array.shape):
        raise ShardError(f"{path}: {name} has shape {array.shape} in other chunks", "one image per chunk")
    num_chunks = array.shape[0] // chunk_shape(name, array.shape)[0]
    num_values = 1
    for length in array.shape:
        num_values *= length
    declared = num_values * dtype.itemsize + num_chunks * CHECKSUM_BYTES
    if array.id.get_storage_size() != declared:
        raise ShardError(f"{path}: {name} declares {declared} bytes that are not all there", "a whole array")


class ShardDataset(Dataset[dict[str, Any]]):
    """All images of a run (or of its `shards/`) in order; safe to hand to workers, forked or spawned.

    An item is `pixels` uint8 tensor (C, H, W), `label` int (-1: none), `index` int, and, where asked for,
    `logits` and `targets` float32 tensors (K,). Without a manifest every shard file in the folder counts.

    Example:
        >>> folder = zsq.generate("embedded:digits", "noise", count=8, out="noise")
        >>> images = zsq.ShardDataset(folder, with_logits=True)
        >>> len(images), images[0]["logits"].shape
        (8, torch.Size([10]))
    """

    def __init__(self, folder: Path | str, *, with_logits: bool = False, with_targets: bool = False) -> None:
        """Find the shards and open the first; images are read when asked for.

        Raises:
            ImagesError: no shards there, or no logits or targets in them.
            ShardError: a missing or damaged shard or manifest.
        """
        found = find_shards(folder)
        self.paths = found.paths
        self._opened: OrderedDict[int, ShardFile] = OrderedDict()
        self._process = os.getpid()
        if (found.run / MANIFEST_NAME).exists():
            entries = read_manifest(folder).shards
            self.paths = tuple(found.shards / entry.file for entry in entries)
            counts = [_stated_images(path, entry) for path, entry in zip(self.paths, entries, strict=True)]
        else:
            counts = [_num_images(path) for path in self.paths]
        self._ends = list(itertools.accumulate(counts))
        self._columns = [name for name, on in (("logits", with_logits), ("targets", with_targets)) if on]
        with ShardFile(self.paths[0]) as first:
            self.provenance = first.provenance
            missing = [name for name in self._columns if not first.has(name)]
            self._has_boxes = first.has("box_ends")
            self._diagnostics = [name for name in DIAGNOSTICS if first.has(name)]
        if missing:
            raise ImagesError(f"{folder} stores no {missing[0]}", f"shards with {missing[0]}")

    @property
    def spec(self) -> ImageSpec:
        """Of all images."""
        return self.provenance.spec

    @property
    def num_images(self) -> int:
        """Images in all shards."""
        return self._ends[-1]

    def __len__(self) -> int:
        """Images in all shards."""
        return self.num_images

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one image; only its chunk is decoded.

        Raises:
            IndexError: outside the set.
            ShardError: the shard is missing or damaged.
        """
        index = range(self.num_images)[operator.index(index)]
        number = bisect.bisect_right(self._ends, index)
        shard, row = self._shard(number), index - self._start(number)
        label = int(shard.read("labels", row))
        item = {"pixels": torch.from_numpy(shard.read("pixels", row)), "label": label, "index": index}
        return item | {name: torch.from_numpy(shard.read(name, row)).float() for name in self._columns}

    def pixels(self, indices: Sequence[int] | np.ndarray | None = None) -> Tensor:
        """Images in memory: uint8 (N, C, H, W), all or those at `indices`."""
        return torch.from_numpy(self._gather("pixels", indices))

    def labels(self, indices: Sequence[int] | np.ndarray | None = None) -> Tensor:
        """Labels in memory: int64 (N,), all or those at `indices`; -1 where there is none."""
        return torch.from_numpy(self._gather("labels", indices))

    def diagnostics(self) -> dict[str, Tensor]:
        """What the teacher says of each image, see `ShardContent`: name -> float32 (N,), without those that
        are NaN of every image."""
        found = {name: torch.from_numpy(self._gather(name, None)) for name in self._diagnostics}
        return {name: values for name, values in found.items() if not values.isnan().all()}

    def boxes(self, indices: Sequence[int] | np.ndarray | None = None) -> tuple[Target, ...] | None:
        """The boxes of all images or those at `indices`, see `zsq.core.boxes`; None where none are stored."""
        if not self._has_boxes:
            return None
        rows = self._rows(indices)
        numbers = np.searchsorted(self._ends, rows, side="right").tolist()
        found: list[Target] = []
        for row, number in zip(rows.tolist(), numbers, strict=True):
            at = row - self._start(number)
            found += self._shard(number).boxes(at, at + 1)
        return tuple(found)

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind."""
        return self.__dict__ | {"_opened": OrderedDict()}

    def _gather(self, name: str, indices: Sequence[int] | np.ndarray | None) -> np.ndarray:
        rows = self._rows(indices)
        gathered = np.empty((len(rows), *(self.spec.shape if name == "pixels" else ())), ARRAYS[name][0])
        numbers = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(numbers).tolist():
            here = np.flatnonzero(numbers == number)
            stored = rows[here] - self._start(number)
            first = stored.min()
            block = self._shard(number).read(name, slice(first, stored.max() + 1))
            gathered[here] = block[stored - first]
        return gathered

    def _rows(self, indices: Sequence[int] | np.ndarray | None) -> np.ndarray:
        """int64 indices; all without any."""
        if indices is None:
            return np.arange(self.num_images)
        rows = np.asarray(indices)
        if rows.size and not np.issubdtype(rows.dtype, np.integer):
            raise IndexError(f"indices of {rows.dtype}; expected whole numbers")
        if rows.ndim != 1:
            raise IndexError("a single index; expected a list of them")
        if rows.size and not 0 <= rows.min() <= rows.max() < self.num_images:
            raise IndexError(f"indices {rows.min()} to {rows.max()}; expected 0 to {self.num_images - 1}")
        return rows.astype(np.int64)

    def _start(self, number: int) -> int:
        return self._ends[number - 1] if number else 0

    def _shard(self, number: int) -> ShardFile:
        """From this process's open files; those inherited across a fork are closed first."""
        if self._process != os.getpid():
            while self._opened:
                self._opened.popitem()[1].close()
            self._process = os.getpid()
        if number not in self._opened:
            self._opened[number] = self._open(number)
        self._opened.move_to_end(number)
        if len(self._opened) > MAX_OPEN_FILES:
            self._opened.popitem(last=False)[1].close()
        return self._opened[number]

    def _open(self, number: int) -> ShardFile:
        shard = ShardFile(self.paths[number])
        start, end = self._start(number), self._ends[number]
        found = (shard.provenance.first_image, shard.num_images)
        if found != (start, end - start):
            raise ShardError(
                f"{shard.path} holds {quantity(found[1], 'image')} from number {found[0]}",
                f"{end - start} from number {start}",
                "a shard is missing or from another run",
            )
        if shard.provenance.shared() != self.provenance.shared():
            raise ShardError(f"{shard.path} comes from another run", f"the run of {self.paths[0].name}")
        return shard


def _stated_images(path: Path, entry: ShardEntry) -> int:
    """What the manifest says, unless the file is too small for so many: a row for each would be asked for."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ShardError(f"{path} cannot be read: {error.strerror}", "a shard file") from None
    if entry.num_images > size // MIN_IMAGE_BYTES:
        raise ShardError(
            f"the manifest states {quantity(entry.num_images, 'image')} in {path}", f"what {size} bytes hold"
        )
    return entry.num_images


def _num_images(path: Path) -> int:
    with ShardFile(path) as shard:
        return shard.num_images
