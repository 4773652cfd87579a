"""The formats of `zsq export`, in one table. What writes and reads a format is imported when it is asked for,
so that the command line can name them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from zsq.exports.kinds import Reader, Writer


class Kind(NamedTuple):
    """How one format is written and read."""

    writer: type[Writer]
    reader: type[Reader]


def _files() -> Kind:
    from zsq.exports.files import FilesReader, FilesWriter

    return Kind(FilesWriter, FilesReader)


def _imagefolder() -> Kind:
    from zsq.exports.imagefolder import ImageFolderReader, ImageFolderWriter

    return Kind(ImageFolderWriter, ImageFolderReader)


def _npy() -> Kind:
    from zsq.exports.arrays import ArrayReader, NpyWriter

    return Kind(NpyWriter, ArrayReader)


def _npz() -> Kind:
    from zsq.exports.arrays import ArrayReader, NpzWriter

    return Kind(NpzWriter, ArrayReader)


def _raw() -> Kind:
    from zsq.exports.arrays import ArrayReader, RawWriter

    return Kind(RawWriter, ArrayReader)


def _webdataset() -> Kind:
    from zsq.exports.webdataset import WebDatasetReader, WebDatasetWriter

    return Kind(WebDatasetWriter, WebDatasetReader)


FORMATS: dict[str, Callable[[], Kind]] = {
    "files": _files,
    "imagefolder": _imagefolder,
    "npy": _npy,
    "npz": _npz,
    "raw": _raw,
    "webdataset": _webdataset,
}
