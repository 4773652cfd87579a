"""What all kinds of export share: a writer that is fed images in order, a reader that gives them back."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from zsq.core.errors import ExportError, first_line
from zsq.core.files import open_regular
from zsq.exports.export_json import BESIDE, CARD_NAMES, RECORD_NAME, SUMS_NAME, ExportRecord, Layout, Range
from zsq.images.photos import UNREADABLE

# What readers of arrays, archives and pictures raise on files that are damaged or not theirs.
DAMAGED = (*UNREADABLE, tarfile.TarError)

SAFE_NAME = re.compile(r"[0-9A-Za-z_-]+(\.[0-9A-Za-z]+)?(/[0-9A-Za-z_-]+\.[0-9A-Za-z]+)?")
MAX_SUMS_LINE = 256


class Sums:
    """SHA256SUMS as it grows: a line per finished file, in the order of the images."""

    def __init__(self, folder: Path) -> None:
        """Start the list in `folder`."""
        self.folder = folder
        self._file = (folder / SUMS_NAME).open("w", encoding="ascii", newline="\n")

    def add(self, path: Path) -> None:
        """Sync the finished file to the disk and list it."""
        with path.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        self._file.write(f"{digest}  {path.relative_to(self.folder).as_posix()}\n")

    def close(self) -> str:
        """Finish the list; its own sha256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return hashlib.sha256((self.folder / SUMS_NAME).read_bytes()).hexdigest()


def listed_files(folder: Path) -> Iterator[str]:
    """Names in SHA256SUMS, in order, without those of a dataset card.

    Raises:
        ExportError: no list, or a line that names no file inside of the export.
    """
    path = folder / SUMS_NAME
    with readable(path), io.TextIOWrapper(open_regular(path), encoding="ascii") as lines:
        while line := lines.readline(MAX_SUMS_LINE):
            name = line[66:].rstrip("\n")
            if name in CARD_NAMES:
                continue
            if not SAFE_NAME.fullmatch(name):
                raise ExportError(f"{path} names '{name}'", "files inside of the export")
            yield name


def files_in(folder: Path) -> Iterator[str]:
    """What lies in an export, or in a folder of it, but not beside the images of every kind."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name not in BESIDE and not path.is_dir():
            yield name


class Writer(ABC):
    """Takes the images in order; never holds more than what one `add` brings."""

    ranges: ClassVar[tuple[Range, ...]] = ("uint8", "unit", "norm")
    default_layout: ClassVar[Layout] = "nchw"

    def __init__(self, folder: Path, record: ExportRecord) -> None:
        """Write into `folder`; `record` states everything but the hash of the list of files."""
        self.folder = folder
        self.record = record
        self.sums = Sums(folder)

    @abstractmethod
    def add(self, pixels_NCHW: np.ndarray, labels_N: np.ndarray, first_image: int) -> None:
        """Append uint8 images and their labels (-1: none), those of one shard."""

    def close(self) -> str:
        """Finish all files; the sha256 of their list."""
        return self.sums.close()

    @staticmethod
    @abstractmethod
    def use(record: ExportRecord) -> tuple[str, str, str]:
        """Three lines of Python that read the files from inside the folder."""


class Reader(AbstractContextManager["Reader"], ABC):
    """Gives the images back in order."""

    def __init__(self, folder: Path, record: ExportRecord) -> None:
        """Open what `record` describes.

        Raises:
            ExportError: missing, damaged or other files than the record says.
        """
        self.folder = folder
        self.record = record

    @abstractmethod
    def take(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The next `count` images: uint8 (count, C, H, W) and labels int64 (count,).

        Raises:
            ExportError: they are not there, or are not what the record says.
        """

    @abstractmethod
    def check_end(self) -> None:
        """Raise ExportError where there is more than the record says."""

    def __exit__(self, *_: object) -> None:
        """Nothing stays open."""


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Make one line of whatever a damaged file raises."""
    try:
        yield
    except DAMAGED as error:
        raise ExportError(f"{path} is damaged or missing ({first_line(error)})", "an intact export") from None


def png_bytes(pixels_CHW: np.ndarray) -> bytes:
    """Lossless PNG of one uint8 image of 1 or 3 channels."""
    array = pixels_CHW[0] if len(pixels_CHW) == 1 else pixels_CHW.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG")
    return buffer.getvalue()


def png_pixels(data: bytes, record: ExportRecord) -> np.ndarray:
    """uint8 (C, H, W) of one PNG; refused before it is decoded where its header says another shape."""
    channels, height, width = record.image.shape
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        found = (image.mode, image.height, image.width)
        expected = ("L" if channels == 1 else "RGB", height, width)
        if found != expected:
            raise ExportError(f"a picture is {found}", f"{expected} as {RECORD_NAME} says")
        return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)
