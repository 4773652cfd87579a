"""Export as WebDataset tar files: `<number>.png` or `<number>.npy`, and `<number>.cls` with a label."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zsq.core.errors import ExportError, MissingExtraError
from zsq.core.files import open_regular
from zsq.core.wording import quantity
from zsq.exports.export_json import ExportRecord
from zsq.exports.kinds import Reader, Writer, listed_files, png_bytes, png_pixels, readable
from zsq.images.photos import MAX_FILE_BYTES

KEY_DIGITS = 8


class WebDatasetWriter(Writer):
    """One tar file per shard; uint8 as PNG, other ranges as one array per image."""

    def __init__(self, folder: Path, record: ExportRecord) -> None:
        """Find the package before anything is written.

        Raises:
            MissingExtraError: it is not installed.
        """
        self._tar_writer = _tar_writer()
        super().__init__(folder, record)
        self._num_files = 0

    def add(self, pixels_NCHW: np.ndarray, labels_N: np.ndarray, first_image: int) -> None:
        """One tar file."""
        path = self.folder / f"images-{self._num_files:05d}.tar"
        self._num_files += 1
        values = pixels_NCHW if self.record.layout == "png" else self.record.encode(pixels_NCHW)
        ending, encode = ("png", png_bytes) if self.record.layout == "png" else ("npy", _npy_bytes)
        # A fixed time, and nobody's name: equal images give equal files.
        with self._tar_writer(str(path), encoder=False, mtime=0.0, user="", group="") as tar:
            for number, (value, label) in enumerate(zip(values, labels_N, strict=True), first_image):
                sample = {"__key__": f"{number:0{KEY_DIGITS}d}", ending: encode(value)}
                tar.write(sample if label < 0 else sample | {"cls": str(label).encode()})
        self.sums.add(path)

    @staticmethod
    def use(record: ExportRecord) -> tuple[str, str, str]:
        """With the webdataset package."""
        files = f"images-{{00000..{record.num_shards - 1:05d}}}.tar"
        ending = "png" if record.layout == "png" else "npy"
        decoder = "l8" if record.image.channels == 1 else "rgb8"
        return (
            "import webdataset as wds",
            f"samples = wds.WebDataset('{files}', shardshuffle=False).decode('{decoder}')",
            f"image = next(iter(samples))['{ending}']  # 'cls' is the label, where there is one",
        )


class WebDatasetReader(Reader):
    """Reads the tar files with the standard library; only the members that the writer makes are taken."""

    def __init__(self, folder: Path, record: ExportRecord) -> None:
        """Open the list."""
        super().__init__(folder, record)
        self._samples = self._all_samples()

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Decode the next samples."""
        record = self.record
        is_png = record.layout == "png"
        shape = record.image.shape if is_png else record.image_shape
        values = np.empty((count, *shape), np.uint8 if is_png else record.stored_dtype)
        labels = np.empty(count, np.int64)
        for index in range(count):
            sample = next(self._samples, None)
            if sample is None:
                raise ExportError(f"{self.folder} ends early", quantity(record.num_images, "image"))
            data, labels[index] = sample
            with readable(self.folder):
                values[index] = png_pixels(data, record) if is_png else self._array(data)
        return (values if is_png else record.decode(values)), labels

    def check_end(self) -> None:
        """No sample is left over."""
        if next(self._samples, None) is not None:
            raise ExportError(f"{self.folder} holds more than {quantity(self.record.num_images, 'image')}")

    def _array(self, data: bytes) -> np.ndarray:
        array = np.load(io.BytesIO(data), allow_pickle=False)
        if array.shape != self.record.image_shape or array.dtype != self.record.stored_dtype:
            raise ExportError(f"an array of {array.shape} {array.dtype}", f"{self.record.image_shape}")
        return array

    def _all_samples(self) -> Iterator[tuple[bytes, int]]:
        ending = "png" if self.record.layout == "png" else "npy"
        number = 0
        for name in listed_files(self.folder):
            for members in self._grouped(self.folder / name):
                key = f"{number:0{KEY_DIGITS}d}"
                if f"{key}.{ending}" not in members or len(members) > 2:
                    raise ExportError(f"{name} holds {', '.join(members)}", f"{key}.{ending} next")
                label = members.get(f"{key}.cls")
                with readable(self.folder / name):
                    yield members[f"{key}.{ending}"], -1 if label is None else int(label)
                number += 1

    def _grouped(self, path: Path) -> Iterator[dict[str, bytes]]:
        """The members of each sample: consecutive files of one key."""
        group: dict[str, bytes] = {}
        for name, data in _members(path):
            if group and name.split(".")[0] != next(iter(group)).split(".")[0]:
                yield group
                group = {}
            group[name] = data
        if group:
            yield group


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    with readable(path), open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            source = tar.extractfile(member) if member.isreg() else None
            if source is None or member.size > MAX_FILE_BYTES:
                raise ExportError(f"{path}: {member.name} is not a small file", "images and labels only")
            yield member.name, source.read()


def _npy_bytes(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(values), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _tar_writer() -> Any:
    try:
        from webdataset import TarWriter
    except ImportError:
        raise MissingExtraError("webdataset", "webdataset") from None
    return TarWriter
