"""What `zsq import` reads, as blocks of uint8 pixels. Only data is read, and nothing is guessed about values.

uint8 is 0..255 and floats need their mean and std. Tensor suffixes: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zsq.core.errors import ImagesError, OptionError
from zsq.core.files import input_path
from zsq.core.imagespec import MAX_CHANNELS, ImageSpec
from zsq.core.wording import quantity
from zsq.exports.export_json import RECORD_NAME
from zsq.exports.exporting import open_export
from zsq.images.sources import CHANNELS, is_path, load_images
from zsq.images.tensors import SUFFIXES, Arrays, read_arrays

BLOCK = 256

# Wrong moments put most values outside of 0..255; images of a synthesiser that never clamps, a few of them.
MOST_CLAMPED = 0.5

Blocks = Iterator[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Source:
    """Images to import: `blocks()` gives pixels uint8 (n, C, H, W) and labels int64 (n,).

    `clamped` is the share of values that were outside of 0..255; `spec` has the stated moments, 0 and 1
    (unit space) for pixels.
    """

    blocks: Callable[[], Blocks]
    spec: ImageSpec
    clamped: float = 0.0


@dataclass(frozen=True)
class Moments:
    """What was done to the values: value * std + mean is 0..1; one number each, or one per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def spec(self, channels: int, size: Sequence[int]) -> ImageSpec:
        """With one value per channel.

        Raises:
            OptionError: another number of values.
        """
        for option, given in (("mean", self.mean), ("std", self.std)):
            if len(given) not in (1, channels):
                raise OptionError(
                    f"--{option} with {len(given)} values", f"1, or {channels} for the channels"
                )
        mean, std = (given if len(given) == channels else given * channels for given in (self.mean, self.std))
        return ImageSpec(channels=channels, size=tuple(size), mean=mean, std=std)


def open_source(source: str, moments: Moments | None, layout: str | None) -> Source:
    """Find out what `source` is and read its head.

    Raises:
        OptionError: an option that is missing or has no effect.
        ImagesError, WeightsError, ExportError, ShardError: a source that cannot be read.
    """
    path = input_path(source, "images")
    if path.suffix in SUFFIXES and path.is_file():
        return _arrays(source, read_arrays(path), moments, layout)
    if path.exists() or not is_path(source):
        _refuse(moments, layout, f"{source} states what its values are")
    return _export(path) if (path / RECORD_NAME).is_file() else _pixels(source)


def _refuse(moments: Moments | None, layout: str | None, why: str) -> None:
    for option, value in (("--mean and --std", moments), ("--layout", layout)):
        if value is not None:
            raise OptionError(option, f"none: {why}")


def _pixels(source: str) -> Source:
    images = load_images(source)
    channels, *size = images.pixels.shape[1:]
    spec = Moments((0.0,), (1.0,)).spec(channels, size)

    def blocks() -> Blocks:
        for pixels, labels in zip(images.pixels.split(BLOCK), images.labels.split(BLOCK), strict=True):
            yield pixels.numpy(), labels.numpy()

    return Source(blocks, spec)


def _export(folder: Path) -> Source:
    def blocks() -> Blocks:
        with open_export(folder) as reader:
            for first in range(0, num_images, BLOCK):
                yield reader.take(min(BLOCK, num_images - first))
            reader.check_end()

    with open_export(folder) as opened:
        num_images, spec = opened.record.num_images, opened.record.image
    return Source(blocks, spec)


def _arrays(source: str, found: Arrays, moments: Moments | None, layout: str | None) -> Source:
    values, stated, layout = found.images, layout is not None, layout or found.layout
    if values.ndim == 3:
        what = f"{source} holds an array of shape {tuple(values.shape)}"
        raise ImagesError(what, "images, 4 axes: signals go to quantize and gap as they are, without import")
    if layout not in ("nchw", "nhwc"):
        raise OptionError(f"--layout {layout}", "nchw or nhwc")
    values = values if layout == "nchw" else values.permute(0, 3, 1, 2)
    count, channels, height, width = values.shape
    if channels > MAX_CHANNELS or (channels not in CHANNELS and not stated):
        other = "nhwc" if layout == "nchw" else "nchw"
        what = f"{source} holds {quantity(channels, 'channel')} in the layout {layout}"
        here = f"; if they are channels, --layout {layout}" if channels <= MAX_CHANNELS and not stated else ""
        expected = f"1 or 3, or with --layout at most {MAX_CHANNELS}"
        raise ImagesError(what, expected, f"if it is the other one, pass --layout {other}{here}")
    if values.dtype == torch.uint8:
        _refuse(moments, None, f"{source} holds uint8, which is 0..255")
        spec, clamped = Moments((0.0,), (1.0,)).spec(channels, (height, width)), 0.0
    else:
        spec = _float_spec(source, values, moments)
        clamped = _share_clamped(source, values, spec)

    def blocks() -> Blocks:
        for part, label in zip(
            values.split(BLOCK), np.split(found.labels, range(BLOCK, count, BLOCK)), strict=True
        ):
            pixels = part if part.dtype == torch.uint8 else _levels(part, spec).clamp(0, 255).to(torch.uint8)
            yield pixels.contiguous().numpy(), label

    return Source(blocks, spec, clamped)


def _float_spec(source: str, values: Tensor, moments: Moments | None) -> ImageSpec:
    if moments is None:
        remedy = "pass --mean 0 --std 1 for values of 0..1, or what the images were normalised with"
        raise OptionError(f"{source} holds floats and no --mean and --std are given", "both", remedy)
    return moments.spec(values.shape[1], (values.shape[2], values.shape[3]))


def _levels(values: Tensor, spec: ImageSpec) -> Tensor:
    return (spec.norm_to_unit(values.float()) * 255).round()


def _share_clamped(source: str, values: Tensor, spec: ImageSpec) -> float:
    outside = 0
    for part in values.split(BLOCK):
        if not bool(torch.isfinite(part).all()):
            raise ImagesError(f"{source} holds NaN or infinity", "finite values")
        levels = _levels(part, spec)
        outside += int(((levels < 0) | (levels > 255)).sum())
    share = outside / values.numel()
    if share > MOST_CLAMPED:
        found = f"{share:.0%} of the values of {source} fall outside of 0..255 under this --mean and --std"
        raise ImagesError(found, "the ones that the images were normalised with")
    return share
