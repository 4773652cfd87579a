"""EXPORT.json: what an export holds and what was done to the pixels. Whoever reads the files needs no more.

Tensor suffixes: N images, C channels, H height, W width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt, ValidationError
from torch import Tensor

from zsq.core.errors import ExportError
from zsq.core.files import read_regular
from zsq.core.imagespec import ImageSpec
from zsq.core.records import Record, Sha256, first_fault

RECORD_NAME = "EXPORT.json"
SUMS_NAME = "SHA256SUMS"
MAX_RECORD_BYTES = 2**20

Format = Literal["imagefolder", "npy", "npz", "raw", "webdataset"]
Layout = Literal["nchw", "nhwc", "png"]
Range = Literal["uint8", "unit", "norm"]


class SourceRecord(Record):
    """The run that was exported; `shards_sha256` is over the hex digests of its shards, in order."""

    method: str
    seed: NonNegativeInt
    teacher: str | None
    teacher_sha256: Sha256 | None
    shards_sha256: Sha256


class ExportRecord(Record):
    """The content of EXPORT.json.

    `image` is the image spec of the shards. `applied` says in words what was done to the stored pixels,
    `use` are three lines of Python that read the files from inside the folder, and `sums_sha256` is the hash
    of SHA256SUMS, which lists every other file in the order of the images (`sha256sum -c` reads it).
    """

    format_version: Literal[1] = 1
    zsq_version: str
    to: Format
    layout: Layout
    range: Range
    dtype: Literal["uint8", "float32"]
    applied: tuple[str, ...]
    image: ImageSpec
    num_images: PositiveInt
    num_labelled: NonNegativeInt
    num_shards: PositiveInt
    source: SourceRecord
    use: tuple[str, str, str]
    sums_sha256: Sha256

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one image as it lies in the files."""
        channels, *sides = self.image.shape
        return (channels, *sides) if self.layout == "nchw" else (*sides, channels)

    @property
    def stored_dtype(self) -> np.dtype:
        """Little-endian, whatever the machine."""
        return np.dtype("u1") if self.dtype == "uint8" else np.dtype("<f4")

    def encode(self, pixels_NCHW: np.ndarray) -> np.ndarray:
        """uint8 pixels -> values in the stated layout, range and dtype, at the stored size."""
        values = torch.from_numpy(pixels_NCHW)
        if self.range == "unit":
            values = values.to(torch.float32) / 255
        elif self.range == "norm":
            values = self._stored_size.pixels_to_norm(values)
        if self.layout != "nchw":
            values = values.movedim(1, -1)
        return np.ascontiguousarray(values.numpy(), dtype=self.stored_dtype)

    def decode(self, values: np.ndarray) -> np.ndarray:
        """Undo `encode`: uint8 (N, C, H, W).

        Raises:
            ExportError: values that no pixel has in the stated range.
        """
        found = torch.from_numpy(values.astype(values.dtype.newbyteorder("="), copy=True))
        if self.layout != "nchw":
            found = found.movedim(-1, 1)
        if self.range == "uint8":
            return np.ascontiguousarray(found.numpy())
        unit = found if self.range == "unit" else self._stored_size.norm_to_unit(found)
        return np.ascontiguousarray(_levels(unit * 255, self.range).numpy())

    @property
    def _stored_size(self) -> ImageSpec:
        return self.image.model_copy(update={"input_size": None})


def _levels(values: Tensor, stated: str) -> Tensor:
    rounded = values.round()
    # The comparison is written so that NaN fails it.
    if not bool(((rounded >= 0) & (rounded <= 255)).all()):
        raise ExportError(f"values outside of the range '{stated}'", "what pixels of 0..255 become there")
    return rounded.to(torch.uint8)


def applied(spec: ImageSpec, layout: Layout, range: Range) -> tuple[str, ...]:
    """What `encode` does, in words."""
    sides = "L" if spec.is_signal else "H, W"
    axes = {"nchw": f"layout (N, C, {sides})", "nhwc": f"layout (N, {sides}, C)"}
    steps = axes | {"png": "lossless PNG per image"}
    order = spec.channel_order if range == "norm" else "rgb"
    said = [steps[layout], f"channels in the order {order if spec.channels == 3 else 'as stored'}"]
    said.append(
        {"uint8": "values 0..255", "unit": "pixel / 255", "norm": "(pixel / 255 - mean) / std"}[range]
    )
    if range == "norm":
        mean, std = spec.unit_moments
        said.append(f"mean {list(mean)} and std {list(std)}, given in the order rgb")
    if spec.step_line is not None:
        said.append(spec.step_line)
    size = f"not resized: {'x'.join(map(str, spec.size))} as stored"
    taken = spec.input_size and f", the teacher takes {'x'.join(map(str, spec.input_size))}"
    return (*said, size + (taken or ""))


def read_record(folder: Path) -> ExportRecord:
    """Read `folder`/EXPORT.json.

    Raises:
        ExportError: missing or not in the format.
    """
    path = folder / RECORD_NAME
    try:
        return ExportRecord.model_validate_json(read_regular(path, MAX_RECORD_BYTES))
    except OSError as error:
        remedy = "name the folder that `zsq export` wrote"
        raise ExportError(f"{path} cannot be read: {error.strerror}", "an export", remedy) from None
    except ValidationError as error:
        raise ExportError(f"{path}: {first_fault(error)}", "a zsq export") from None
