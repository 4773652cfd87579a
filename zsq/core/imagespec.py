"""ImageSpec: the shape and the value spaces of a teacher's images. The only place that converts between them.

pixels    uint8 0..255, (N, C, H, W): what shards store
unit      float 0..1
standard  zero mean and unit variance over natural images: where images are optimised; by `standard_mean` and
          `standard_std`, otherwise by `mean` and `std` where those can be of images
norm      what the teacher's network takes, after resizing to `input_size`

A signal (N, C, L) is an image with one side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, model_serializer, model_validator
from torch import Tensor

from zsq.core.errors import MismatchError
from zsq.core.photofit import MAX_SIDE, Interpolation
from zsq.core.records import Record
from zsq.core.wording import quantity

# Of ImageNet's training images; where there are not three channels, each has the mean of them.
NATURAL_MEAN, NATURAL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of values whose `range` is stated: its middle, and the ends at two standard deviations.
MIDDLE, SPREAD = 0.5, 0.25
# Of pixels 0..1 it is 0.5 at most, and that of black and white alone: what is outside scales an input.
IMAGE_STD = (0.02, 0.4)
SMALL_IMAGE = 64  # pixels: papers give CIFAR's constants for images up to here, ImageNet's above

# Of values that a network takes, in units of pixels 0..1: 1/255, 0 and 1, or .5 and .5 are well inside.
LARGEST_MEAN, LARGEST_STD = 2.0, 4.0

PositiveFloat = Annotated[float, Field(gt=0)]

MAX_CHANNELS = 64
MAX_LENGTH = 2**24  # of a signal: six minutes of audio at 44.1 kHz
LEVELS = 255


def _one_side_or_two(size: Any) -> Any:
    if not isinstance(size, list | tuple):
        raise ValueError(f"{size!r} is not [height, width] or, of a signal, [length]")
    if len(size) > 2:
        raise ValueError(
            f"{len(size)} sides: [height, width] or, of a signal, [length]; video is out of scope"
        )
    return size


Side = Annotated[int, Field(gt=0, le=MAX_LENGTH)]
Sides = Annotated[tuple[Side, ...], Field(min_length=1), BeforeValidator(_one_side_or_two)]


def check_moments(mean: Sequence[float], std: Sequence[float]) -> None:
    """Pass moments that values can have which become pixels 0..1 by value * std + mean.

    Raises:
        ValueError: beyond `LARGEST_MEAN` or `LARGEST_STD`; it says which units are meant.
    """
    for name, values, largest in (("mean", mean, LARGEST_MEAN), ("std", std, LARGEST_STD)):
        for value in values:
            # The comparison is written so that NaN fails it.
            if not abs(value) <= largest:
                units = f"{name} {value:g} is too large: mean and std are in units of pixels 0..1"
                hint = f"; if yours are of pixels 0..255, divide them by 255: {name} {value / 255:.4g}"
                raise ValueError(units + (hint if abs(value) <= 255 * largest else ""))


def shortest_side(size: Sequence[int]) -> int:
    """Of (height, width) or (length,), not counting sides of one pixel; 1 where there is no other."""
    return min((side for side in size if side > 1), default=1)


class ImageSpec(Record):
    """Immutable description of a teacher's images; `size` and `input_size` are (height, width), of signals
    (length,).

    `range` is what pixel 0 and pixel 255 stand for: mean and std are in its units. Without it, pixels are
    0..1 there.
    """

    channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3
    size: Sides
    input_size: Sides | None = None
    range: tuple[float, float] | None = None
    interpolation: Interpolation = "bilinear"
    channel_order: Literal["rgb", "bgr"] = "rgb"
    mean: tuple[float, ...]
    std: tuple[PositiveFloat, ...]
    standard_mean: tuple[float, ...] | None = None
    standard_std: tuple[PositiveFloat, ...] | None = None

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> ImageSpec:
        for field in ("mean", "std", "standard_mean", "standard_std"):
            values = getattr(self, field)
            if values is not None and len(values) != self.channels:
                raise ValueError(f"{field} has {len(values)} values for {quantity(self.channels, 'channel')}")
        if self.range is None:
            for mean, std in ((self.mean, self.std), (self.standard_mean, self.standard_std)):
                check_moments(mean or (), std or ())
        if self.channel_order == "bgr" and self.channels != 3:
            raise ValueError("channel_order 'bgr' needs 3 channels")
        return self

    @model_validator(mode="after")
    def _sides_belong_together(self) -> ImageSpec:
        if not self.is_signal and max(*self.size, *(self.input_size or ())) > MAX_SIDE:
            raise ValueError(f"size is at most {MAX_SIDE} px a side")
        if self.input_size is not None and len(self.input_size) != len(self.size):
            raise ValueError("size and input_size have as many sides")
        if self.is_signal and self.interpolation == "bicubic":
            raise ValueError("interpolation 'bicubic' is for images; a signal takes bilinear or nearest")
        return self

    @model_validator(mode="after")
    def _range_is_one(self) -> ImageSpec:
        if self.range is None:
            return self
        if not (self.range[0] < self.range[1] and math.isfinite(self.range[1] - self.range[0])):
            raise ValueError(f"range {list(self.range)} is not [lowest, highest]")
        for mean, std in (self.unit_moments, self.standard_moments):
            if not all(map(math.isfinite, mean)) or not all(0 < value < math.inf for value in std):
                raise ValueError(f"mean and std do not belong to values in the range {list(self.range)}")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_stated(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """As early versions wrote it, where there is no range."""
        fields = dump(self)
        return fields if self.range is not None else {k: v for k, v in fields.items() if k != "range"}

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of a stored image, (C, L) of a signal."""
        return (self.channels, *self.size)

    @property
    def is_signal(self) -> bool:
        """Whether images have one side: (N, C, L)."""
        return len(self.size) == 1

    @property
    def network_size(self) -> tuple[int, ...]:
        """The sides that the network takes."""
        return self.input_size or self.size

    @property
    def plane(self) -> tuple[int, int]:
        """(height, width); of a signal (1, length)."""
        return (1, *self.size)[-2:]  # type: ignore[return-value]

    @property
    def step(self) -> float:
        """What one level of a pixel is in the units of `range`, or of pixels 0..1."""
        low, high = self.range or (0.0, 1.0)
        return (high - low) / LEVELS

    @property
    def step_line(self) -> str | None:
        """How the values of `range` become pixels, in one line; None without a range."""
        if self.range is None:
            return None
        low, high = self.range
        return f"values {low:g}..{high:g} are stored as 0..{LEVELS}: one step is {self.step:.4g}"

    @property
    def unit_moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """`mean` and `std` in units of pixels 0..1."""
        return self._unit(self.mean), self._unit(self.std, shift=False)

    def _unit(self, values: tuple[float, ...], shift: bool = True) -> tuple[float, ...]:
        """Values in units of `range` -> in units of pixels 0..1; without `shift`, standard deviations."""
        if self.range is None:
            return values
        low, high = self.range
        return tuple((value - (low if shift else 0.0)) / (high - low) for value in values)

    @property
    def is_small(self) -> bool:
        """Whether constants published for CIFAR hold, rather than those for ImageNet."""
        return max(self.size) <= SMALL_IMAGE

    @property
    def standard_moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of images, per channel, of pixels 0..1."""
        mean, std = self.unit_moments
        if all(IMAGE_STD[0] <= each <= IMAGE_STD[1] for each in std):
            pass
        elif self.is_signal or self.range is not None:
            mean, std = (MIDDLE,) * self.channels, (SPREAD,) * self.channels
        elif self.channels == len(NATURAL_MEAN):
            mean, std = NATURAL_MEAN, NATURAL_STD
        else:
            mean, std = ((sum(each) / len(each),) * self.channels for each in (NATURAL_MEAN, NATURAL_STD))
        return (
            self._unit(self.standard_mean) if self.standard_mean else mean,
            self._unit(self.standard_std, shift=False) if self.standard_std else std,
        )

    def _standard_moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.standard_moments
        return _per_channel(mean, like), _per_channel(std, like)

    def check_pixels(self, pixels_NCHW: Tensor, what: str = "images") -> None:
        """Refuse images that are not stored as this spec says.

        Args:
            what: how an error calls them.

        Raises:
            MismatchError: another shape than (N, C, H, W), another type than uint8, or no image.
        """
        sides = "length" if self.is_signal else "height, width"
        expected = f"(N, {', '.join(map(str, self.shape))}) uint8: images, channels, {sides}"
        if not isinstance(pixels_NCHW, Tensor):
            raise MismatchError(f"{what} in a {type(pixels_NCHW).__name__}", f"a tensor {expected}")
        found = f"{what} of shape {tuple(pixels_NCHW.shape)} {str(pixels_NCHW.dtype).removeprefix('torch.')}"
        if tuple(pixels_NCHW.shape[1:]) != self.shape or pixels_NCHW.dtype != torch.uint8:
            raise MismatchError(found, expected)
        if len(pixels_NCHW) == 0:
            raise MismatchError(f"no {what}", "at least one")

    def _check_stored(self, pixels: Tensor) -> None:
        if not isinstance(pixels, Tensor):
            raise MismatchError(f"pixels in a {type(pixels).__name__}", "a uint8 tensor")
        axes = len(self.shape) + 1
        if pixels.dtype != torch.uint8 or pixels.ndim != axes or pixels.shape[1] != self.channels:
            found = f"pixels of shape {tuple(pixels.shape)} {str(pixels.dtype).removeprefix('torch.')}"
            sides = "length" if self.is_signal else "height, width"
            raise MismatchError(
                found, f"uint8 0..255 of {axes} axes: images, {self.channels} channels, {sides}"
            )

    def pixels_to_standard(self, pixels_NCHW: Tensor) -> Tensor:
        """uint8 (N, C, H, W) 0..255 -> float32 standard space.

        Raises:
            MismatchError: other values than uint8, or other channels: images may be normalised already.
        """
        self._check_stored(pixels_NCHW)
        unit = pixels_NCHW.to(torch.float32) / 255
        mean, std = self._standard_moments(unit)
        return (unit - mean) / std

    def standard_to_unit(self, standard_NCHW: Tensor) -> Tensor:
        """Standard space -> 0..1 (not clamped)."""
        mean, std = self._standard_moments(standard_NCHW)
        return standard_NCHW * std + mean

    def standard_to_pixels(self, standard_NCHW: Tensor) -> Tensor:
        """Standard space -> uint8 0..255, clamped and rounded to nearest."""
        return (self.standard_to_unit(standard_NCHW) * 255).round().clamp(0, 255).to(torch.uint8)

    def standard_to_norm(self, standard_NCHW: Tensor) -> Tensor:
        """Standard space -> the network's input: renormalised, reordered and resized, differentiably."""
        images = standard_NCHW
        mean, std = self.unit_moments
        if self.standard_moments != (mean, std):
            unit = self.standard_to_unit(images)
            images = (unit - _per_channel(mean, unit)) / _per_channel(std, unit)
        if self.channel_order == "bgr":
            images = images.flip(1)
        if self.input_size is not None and self.input_size != self.size:
            align = None if self.interpolation == "nearest" else False
            mode = "linear" if self.is_signal and align is False else self.interpolation
            images = F.interpolate(images, size=list(self.input_size), mode=mode, align_corners=align)
        return images

    def pixels_to_norm(self, pixels_NCHW: Tensor) -> Tensor:
        """uint8 (N, C, H, W) 0..255 -> the network's input.

        Raises:
            MismatchError: as `pixels_to_standard`.
        """
        return self.standard_to_norm(self.pixels_to_standard(pixels_NCHW))

    def norm_to_unit(self, norm_NCHW: Tensor) -> Tensor:
        """The network's input, at the size as stored, -> 0..1 RGB (not clamped)."""
        images = norm_NCHW.flip(1) if self.channel_order == "bgr" else norm_NCHW
        mean, std = self.unit_moments
        return images * _per_channel(std, images) + _per_channel(mean, images)

    def values_to_pixels(self, values: Tensor) -> Tensor:
        """Values in units of `range` -> uint8 0..255, clamped and rounded to nearest."""
        low, high = self.range or (0.0, 1.0)
        unit = (values.to(torch.float64) - low) / (high - low)
        return (unit * LEVELS).round().clamp(0, LEVELS).to(torch.uint8)

    def valid_box(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Standard-space values of pixel 0 and pixel 255, each (1, C, 1, 1), of signals (1, C, 1)."""
        black = torch.zeros(1, self.channels, *[1] * len(self.size), dtype=torch.uint8, device=device)
        return self.pixels_to_standard(black), self.pixels_to_standard(black + 255)


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, *[1] * (like.dim() - 2))
