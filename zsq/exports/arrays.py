"""Exports of one array for all images: `npy`, `npz` (two members, no compression) and `raw` bytes."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from zsq.core.errors import ExportError
from zsq.core.files import open_regular
from zsq.core.wording import quantity
from zsq.exports.export_json import ExportRecord, Layout
from zsq.exports.kinds import Reader, Writer, readable

LABELS = np.dtype("<i8")
ARCHIVE = "images.npz"

# The earliest time a zip member can have: equal images give equal files.
EPOCH = (1980, 1, 1, 0, 0, 0)


class RawWriter(Writer):
    """`images.bin` and `labels.bin`: nothing but values in C order, little-endian."""

    ending = ".bin"

    def __init__(self, folder: Path, record: ExportRecord) -> None:
        """Open both files."""
        super().__init__(folder, record)
        self.paths = [folder / f"{name}{self.ending}" for name in ("images", "labels")]
        self._files = [path.open("wb") for path in self.paths]
        shapes = ((record.num_images, *record.image_shape), (record.num_images,))
        for file, shape, dtype in zip(self._files, shapes, (record.stored_dtype, LABELS), strict=True):
            self.begin(file, shape, dtype)

    def begin(self, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Write what stands before the values: nothing."""

    def add(self, pixels_NCHW: np.ndarray, labels_N: np.ndarray, first_image: int) -> None:
        """Append the values."""
        for file, values in zip(self._files, (self.record.encode(pixels_NCHW), labels_N), strict=True):
            file.write(np.ascontiguousarray(values).data)

    def close(self) -> str:
        """Finish both files."""
        for file, path in zip(self._files, self.paths, strict=True):
            file.close()
            self.sums.add(path)
        return super().close()

    @staticmethod
    def use(record: ExportRecord) -> tuple[str, str, str]:
        """With numpy alone."""
        shape = (record.num_images, *record.image_shape)
        return (
            "import numpy as np",
            f"images = np.memmap('images.bin', '{record.stored_dtype.str}', 'r', shape={shape})",
            "labels = np.fromfile('labels.bin', '<i8')",
        )


class NpyWriter(RawWriter):
    """`images.npy` and `labels.npy`."""

    ending = ".npy"

    def begin(self, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Write numpy's header, which says how many values will come."""
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)

    @staticmethod
    def use(record: ExportRecord) -> tuple[str, str, str]:
        """Mapped, so that nothing is read before it is used."""
        return (
            "import numpy as np",
            "images = np.load('images.npy', mmap_mode='r', allow_pickle=False)",
            "labels = np.load('labels.npy', allow_pickle=False)",
        )


class NpzWriter(NpyWriter):
    """`images.npz` with `images` and `labels`; uint8 in the layout nhwc is what zsq itself reads as SRC."""

    default_layout: ClassVar[Layout] = "nhwc"

    def close(self) -> str:
        """Put both arrays into the archive."""
        with zipfile.ZipFile(self.folder / ARCHIVE, "w", zipfile.ZIP_STORED) as archive:
            for file, path in zip(self._files, self.paths, strict=True):
                file.close()
                member = zipfile.ZipInfo(path.name, EPOCH)
                with path.open("rb") as values, archive.open(member, "w", force_zip64=True) as target:
                    shutil.copyfileobj(values, target)
                path.unlink()
        self.sums.add(self.folder / ARCHIVE)
        return self.sums.close()

    @staticmethod
    def use(record: ExportRecord) -> tuple[str, str, str]:
        """Both members."""
        return (
            "import numpy as np",
            f"archive = np.load('{ARCHIVE}', allow_pickle=False)",
            "images, labels = archive['images'], archive['labels']",
        )


class ArrayReader(Reader):
    """Reads `raw`, `npy` and `npz`, values in the order they lie in."""

    def __init__(self, folder: Path, record: ExportRecord) -> None:
        """Open the files and check what they say of themselves."""
        super().__init__(folder, record)
        self._stack = ExitStack()
        with readable(folder), ExitStack() as stack:
            self._images, self._labels = self._open(stack)
            if record.to != "raw":
                self._check_header(
                    self._images, (record.num_images, *record.image_shape), record.stored_dtype
                )
                self._check_header(self._labels, (record.num_images,), LABELS)
            self._stack = stack.pop_all()

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self._stack.close()

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Decoded."""
        values = self._read(self._images, self.record.stored_dtype, (count, *self.record.image_shape))
        labels = self._read(self._labels, LABELS, (count,))
        return self.record.decode(values), labels.astype(np.int64)

    def check_end(self) -> None:
        """No byte is left over."""
        with readable(self.folder):
            if self._images.read(1) or self._labels.read(1):
                raise ExportError(
                    f"{self.folder} holds more than {quantity(self.record.num_images, 'image')}"
                )

    def _open(self, stack: ExitStack) -> Sequence[Any]:
        if self.record.to == "npz":
            archive = stack.enter_context(
                zipfile.ZipFile(stack.enter_context(open_regular(self.folder / ARCHIVE)))
            )
            return [stack.enter_context(archive.open(f"{name}.npy")) for name in ("images", "labels")]
        ending = "bin" if self.record.to == "raw" else "npy"
        paths = (self.folder / f"{name}.{ending}" for name in ("images", "labels"))
        return [stack.enter_context(open_regular(path)) for path in paths]

    def _check_header(self, file: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ExportError(f"{self.folder}: another version of numpy's format", "1.0")
        found = np.lib.format.read_array_header_1_0(file)
        if found != (shape, False, dtype):
            raise ExportError(f"{self.folder}: an array of {found[0]} {found[2]}", f"{shape} {dtype}")

    def _read(self, file: Any, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        wanted = dtype.itemsize * int(np.prod(shape))
        with readable(self.folder):
            data = file.read(wanted)
        if len(data) != wanted:
            raise ExportError(f"{self.folder} ends early", quantity(self.record.num_images, "image"))
        return np.frombuffer(data, dtype).reshape(shape)
