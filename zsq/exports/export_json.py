"""EXPORT.json: what an export holds and what was done to the pixels. Whoever reads the files needs no more.

Tensor suffixes: N images, C channels, H height, W width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, NonNegativeInt, PositiveInt, ValidationError
from torch import Tensor

from zsq.core.errors import ExportError, ImagesError
from zsq.core.files import read_regular
from zsq.core.imagespec import ImageSpec
from zsq.core.records import Record, Sha256, first_fault
from zsq.datasetcard.writing import CARD_NAME
from zsq.exports.formats import FORMATS

RECORD_NAME = "EXPORT.json"
SUMS_NAME = "SHA256SUMS"
# Hidden, and no folder: loaders of class folders would take it for one of the images, or for a class.
SHEET_NAME = ".contact_sheet.png"
CARD_NAMES = (CARD_NAME, SHEET_NAME)
# What stands in an export beside its images.
BESIDE = frozenset({RECORD_NAME, SUMS_NAME, *CARD_NAMES})
MAX_RECORD_BYTES = 2**20

Each = Literal["png", "npy", "raw"]
Layout = Literal["nchw", "nhwc", "png"]
Range = Literal["uint8", "unit", "norm"]


class SourceRecord(Record):
    """The run that was exported; `shards_sha256` is over the hex digests of its shards, in order."""

    method: str
    seed: NonNegativeInt
    teacher: str | None
    teacher_sha256: Sha256 | None
    shards_sha256: Sha256


class ChannelValues(Record):
    """What a reader of the files finds in one channel; channels in the order of the files."""

    low: float
    high: float
    mean: float


def _known(to: str) -> str:
    if to not in FORMATS:
        raise ValueError(f"'{to}' is none of {', '.join(FORMATS)}")
    return to


class ExportRecord(Record):
    """The content of EXPORT.json.

    `image` is the image spec of the shards. `applied` says in words what was done to the stored pixels,
    `use` are three lines of Python that read the files from inside the folder, and `sums_sha256` is the hash
    of SHA256SUMS, which lists every other file in the order of the images (`sha256sum -c` reads it).
    `each` is what a file per image holds, `tool` whom the set was written for, and `seen` the values of each
    channel.
    """

    format_version: Literal[1] = 1
    zsq_version: str
    to: Annotated[str, AfterValidator(_known)]
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
    each: Each | None = None
    tool: str | None = None
    seen: tuple[ChannelValues, ...] = ()

    @property
    def values_line(self) -> str:
        """What a tool sees in the files, and what the network was trained on: a normalisation that is doubled
        or left out is the commonest fault of a calibration."""
        found = (
            f"{what} {' '.join(f'{getattr(channel, key):.4g}' for channel in self.seen)}"
            for what, key in (("lowest", "low"), ("highest", "high"), ("mean", "mean"))
        )
        mean, std = self.image.unit_moments
        values = "rgb values" if self.image.channels == 3 else "values"
        moments = f"mean {_numbers(mean)} and std {_numbers(std)} of {values} in 0..1"
        if self.range == "norm":
            rest = f"normalised already with {moments}: the tool must not normalise again"
        else:
            swap = " and turn rgb into bgr" if self.image.channel_order == "bgr" else ""
            rest = f"the network was trained on values normalised with {moments}: the tool must do it{swap}"
        return f"values per channel: {', '.join(found)}; {rest}"

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


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


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
        given = ", given in the order rgb" if spec.channels == 3 else ""
        said.append(f"mean {list(mean)} and std {list(std)}{given}")
    if spec.step_line is not None:
        said.append(spec.step_line)
    size = f"not resized: {'x'.join(map(str, spec.size))} as stored"
    taken = spec.input_size and f", the teacher takes {'x'.join(map(str, spec.input_size))}"
    return (*said, size + (taken or ""))


def read_record(folder: Path) -> ExportRecord:
    """Read `folder`/EXPORT.json.

    Raises:
        ImagesError: missing or not in the format.
    """
    path = folder / RECORD_NAME
    try:
        return ExportRecord.model_validate_json(read_regular(path, MAX_RECORD_BYTES))
    except OSError as error:
        remedy = "name the folder that `zsq export` wrote"
        raise ImagesError(f"{path} cannot be read: {error.strerror}", "an export", remedy) from None
    except ValidationError as error:
        raise ImagesError(f"{path}: {first_fault(error)}", "a zsq export") from None
