"""Photos in: class folders or an archive of them, decoded to uint8 pixels and labels.

`zsq.images.class_names` says what the folders' names mean; `unlabelled/` reads as -1, and so does a folder of
photos alone. A photo of the teacher's size is taken as it is, others Pillow scales as torchvision has it do.
Foreign files are never unpacked to disk, and are checked for their size before they are decoded.
"""

from __future__ import annotations

import io
import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zsq.core.errors import ImagesError, MismatchError, first_line
from zsq.core.files import read_regular
from zsq.core.imagespec import ImageSpec
from zsq.core.memory import available_bytes
from zsq.core.photofit import PhotoFit
from zsq.core.wording import quantity
from zsq.images.class_names import ANY_ORDER, UNLABELLED, ClassNames

# Pillow's parsers for what people store photos in; its others start programs or are rarely tested.
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)

# Conversion from more than 8 bits clips instead of scaling.
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")

REFUSED = "resize the images first, or pass --fit crop or --fit stretch where the command has it"

MAX_SIDE = 16_384
MAX_FILE_BYTES = 256 * 2**20
MAX_SET_BYTES = 64 * 2**30
SHARE_OF_MEMORY = 0.75  # of what is free: the rest is for what is computed with the images
LARGE_PHOTO = 16 * 2**20  # pixels; decoded in every thread at once, such photos are a set of their own

# What Pillow, zipfile, numpy and torchvision raise on files that are damaged or not theirs.
UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    SyntaxError,
    TypeError,
    EOFError,
    ImportError,
    MemoryError,
    ArithmeticError,
    AttributeError,
    LookupError,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)

# Pillow lets go of the interpreter while it decodes; tasks of one small image each would cost more than that.
DECODING_THREADS = min(8, os.cpu_count() or 1)
IMAGES_PER_TASK = 64


REFUSE = PhotoFit(how="refuse")
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class Reading:
    """How a source is read; see `zsq.images.sources.load_images`."""

    spec: ImageSpec | None = None
    limit: int | None = None
    one_per_class: bool = False
    class_names: ClassNames = ANY_ORDER
    fit: PhotoFit = REFUSE


class Photos(NamedTuple):
    """Pixels uint8 (N, C, H, W), labels int64 (N,), -1 for none, what there is to say of them, and how photos
    of other sizes were fitted."""

    pixels: Tensor
    labels: Tensor
    notes: tuple[str, ...]
    photo_fit: str | None


def read_folders(folder: Path, reading: Reading) -> Photos:
    """A folder of class folders."""
    names = _photos_at(folder, "*/*") or _photos_at(folder, "*")
    classes = [path.name for path in folder.iterdir() if path.is_dir() and not _is_hidden(Path(path.name))]
    names, labels, notes = _chosen(str(folder), names, classes, reading)

    def file(index: int) -> Image.Image:
        data = read_regular(folder / names[index], MAX_FILE_BYTES)
        return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)

    pixels, photo_fit = decoded(names, file, reading)
    return Photos(pixels, labels, notes, photo_fit)


def read_archive(path: Path, reading: Reading) -> Photos:
    """A .zip of class folders."""

    def member(index: int) -> Image.Image:
        data = read_member(archive, members[names[index]], MAX_FILE_BYTES)
        return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)

    with opened_archive(path) as archive:
        entries = ((PurePosixPath(info.filename), info) for info in archive.infolist())
        members = {str(entry): info for entry, info in entries if is_image(entry)}
        classes = {PurePosixPath(name).parent.name for name in members}
        names, labels, notes = _chosen(str(path), list(members), classes, reading)
        pixels, photo_fit = decoded(names, member, reading)
        return Photos(pixels, labels, notes, photo_fit)


def opened_archive(path: Path) -> zipfile.ZipFile:
    """A .zip to read.

    Raises:
        ImagesError: it is none, or damaged.
    """
    try:
        return zipfile.ZipFile(path)
    except UNREADABLE as error:
        raise ImagesError(f"{path} cannot be read ({first_line(error)})", "an intact .zip") from None


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most_bytes: int) -> bytes:
    """The content of one file of a .zip.

    Raises:
        ValueError: larger than `most_bytes`.
        OSError, RuntimeError, zipfile.BadZipFile, zlib.error, ...: damaged; see `UNREADABLE`.
    """
    if info.file_size > most_bytes:
        raise ValueError(f"{info.file_size} bytes unpacked, at most {most_bytes} are taken")
    return archive.read(info)


def decoded(
    names: Sequence[str],
    open_image: Callable[[int], Image.Image],
    reading: Reading,
    num_threads: int = DECODING_THREADS,
) -> tuple[Tensor, str | None]:
    """uint8 (N, C, H, W) of the images that `open_image` opens (the decoding itself happens here), and how
    those of other sizes were fitted."""
    spec, fit = reading.spec, reading.fit if reading.spec else REFUSE
    channels = spec.channels if spec else 3
    if channels not in (1, 3):
        raise MismatchError(f"photos for a teacher of {quantity(channels, 'channel')}", "1 or 3 channels")
    if spec is not None and spec.is_signal:
        found = f"photos for a teacher of signals {'x'.join(map(str, spec.shape))}"
        raise MismatchError(found, "one array (N, C, L) as .npy, .npz, .pt or .safetensors, or shards")

    def load(index: int) -> np.ndarray:
        with open_image(index) as image:
            height, width = size
            other[index] = (image.height, image.width) != size
            if other[index] and fit.how == "refuse":
                found = f"{names[index]} is {image.width}x{image.height} px (WxH)"
                whose = "as the teacher takes" if spec else "as the first image"
                raise MismatchError(found, f"{width}x{height} {whose}", REFUSED)
            if image.width * image.height > LARGE_PHOTO:
                at_once = min(num_threads, len(names))
                found = f"{names[index]} is {image.width}x{image.height} px, {at_once} such at once"
                check_bytes(found, at_once * channels * image.width * image.height)
            if image.mode in DEEP_MODES:
                raise ValueError(f"mode {image.mode}, more than 8 bits a channel")
            converted = image.convert("L" if channels == 1 else "RGB")
            array = np.asarray(fitted_to(converted, size, fit) if other[index] else converted)
        return array.reshape(height, width, channels).transpose(2, 0, 1)

    def fill(first: int) -> None:
        for index in range(first, min(first + IMAGES_PER_TASK, len(names))):
            with named(names[index]):
                pixels[index] = load(index)

    with named(names[0]), open_image(0) as first:
        size = spec.plane if spec else (first.height, first.width)
    check_memory(names[0], len(names), (channels, *size))
    pixels, other = np.empty((len(names), channels, *size), np.uint8), np.zeros(len(names), bool)
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(fill, range(0, len(names), IMAGES_PER_TASK)):
            pass
    if not other.any():
        return torch.from_numpy(pixels), None
    said = f"{other.sum()} of {len(names)} photos fitted to {size[1]}x{size[0]} px: {fit}"
    return torch.from_numpy(pixels), said


def fitted_to(
    image: Image.Image, size: tuple[int, int], fit: PhotoFit, resampling: Image.Resampling | None = None
) -> Image.Image:
    """Of (height, width) `size`; scaling and centre are those of torchvision's transforms."""
    (height, width), (top, left) = fit.placed((image.height, image.width), size)
    resized = image.resize(
        (width, height), RESAMPLING[fit.interpolation] if resampling is None else resampling
    )
    return resized.crop((left, top, left + size[1], top + size[0]))


def check_memory(source: str, count: int, shape: Sequence[int]) -> None:
    """Refuse `count` uint8 images of `shape` that this machine cannot hold.

    Raises:
        ImagesError: too many, or too large.
    """
    found = f"{source} holds {quantity(count, 'image')} of {'x'.join(map(str, shape))}"
    if max(shape) > MAX_SIDE:
        raise ImagesError(found, f"at most {MAX_SIDE} px a side")
    check_bytes(found, count * math.prod(shape))


def check_bytes(found: str, num_bytes: int) -> None:
    """Refuse what takes more memory than there is; `found` says what it is.

    Raises:
        ImagesError: it does.
    """
    limit = min(MAX_SET_BYTES, int(SHARE_OF_MEMORY * available_bytes()))
    if num_bytes > limit:
        sizes = f"{num_bytes / 2**30:.1f} GiB", f"at most {limit / 2**30:.1f} GiB of what is free"
        raise ImagesError(f"{found}, {sizes[0]}", sizes[1], "use fewer or smaller images")


def spread(total: int, limit: int | None) -> np.ndarray:
    """Indices of at most `limit` of `total` images, evenly spread over their order."""
    count = total if limit is None else min(limit, total)
    return np.arange(count) * total // max(count, 1)


def first_of_each(labels: Sequence[int]) -> list[int]:
    """Index of the first of each label, in order of the labels; -1 is none."""
    first = {label: index for index, label in reversed(list(enumerate(labels)))}
    return [first[label] for label in sorted(first) if label >= 0]


def _is_hidden(path: PurePath) -> bool:
    return any(part == "__MACOSX" or (part.startswith(".") and part != "..") for part in path.parts)


def is_image(path: PurePath) -> bool:
    """Whether its name is that of a photo."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(path)


def _photos_at(folder: Path, pattern: str) -> list[str]:
    paths = (path.relative_to(folder) for path in folder.glob(pattern))
    return [path.as_posix() for path in paths if is_image(path)]


def _chosen(
    source: str, names: Sequence[str], classes: Collection[str], reading: Reading
) -> tuple[list[str], Tensor, tuple[str, ...]]:
    """`limit` of the sorted names or the first of each class, their labels, and what to say of these."""
    folders = {PurePosixPath(name).parent for name in names}
    flat = folders == {PurePosixPath()}
    if not flat and (len({folder.parent for folder in folders}) != 1 or PurePosixPath() in folders):
        raise ImagesError(
            f"{source} holds {'images outside of class folders' if folders else 'no images'}",
            f"images alone, or <class>/<image> side by side, where {UNLABELLED}/ is of no class",
        )
    names = sorted(names)
    names = [names[index] for index in spread(len(names), reading.limit)]
    if flat:
        return names, torch.full((len(names),), -1), ()
    label_of, notes = reading.class_names.labels(source, classes)
    labels = [label_of[PurePosixPath(name).parent.name] for name in names]
    if reading.one_per_class:
        # Before anything is decoded: no other image is read.
        chosen = first_of_each(labels) or [0]
        names, labels = [names[index] for index in chosen], [labels[index] for index in chosen]
    return names, torch.tensor(labels), notes


@contextmanager
def named(name: str) -> Iterator[None]:
    """What goes wrong with a file inside of it becomes one line with its name.

    Raises:
        ImagesError: it does.
    """
    try:
        yield
    except UNREADABLE as error:
        raise ImagesError(f"{name} cannot be read ({first_line(error)})", "an intact image") from None
