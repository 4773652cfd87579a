"""ImageSpec: the shape and the value spaces of a teacher's images. The only place that converts between them.

pixels    uint8 0..255, (N, C, H, W): what shards store
unit      float 0..1
standard  zero mean and unit variance over natural images: where images are optimised; by `standard_mean` and
          `standard_std`, otherwise by `mean` and `std` where those can be of images
norm      what the teacher's network takes, after resizing to `input_size`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from zsq.core.errors import MismatchError
from zsq.core.photofit import Interpolation, PositiveInt
from zsq.core.records import Record

# Of ImageNet's training images; where there are not three channels, each has the mean of them.
NATURAL_MEAN, NATURAL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of pixels 0..1 it is 0.5 at most, and that of black and white alone: what is outside scales an input.
IMAGE_STD = (0.02, 0.4)
SMALL_IMAGE = 64  # pixels: papers give CIFAR's constants for images up to here, ImageNet's above

# Of values that a network takes, in units of pixels 0..1: 1/255, 0 and 1, or .5 and .5 are well inside.
LARGEST_MEAN, LARGEST_STD = 2.0, 4.0

PositiveFloat = Annotated[float, Field(gt=0)]


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


class ImageSpec(Record):
    """Immutable description of a teacher's images; `size` and `input_size` are (height, width)."""

    channels: Annotated[int, Field(ge=1, le=64)] = 3
    size: tuple[PositiveInt, PositiveInt]
    input_size: tuple[PositiveInt, PositiveInt] | None = None
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
                raise ValueError(f"{field} has {len(values)} values for {self.channels} channels")
        for mean, std in ((self.mean, self.std), (self.standard_mean, self.standard_std)):
            check_moments(mean or (), std or ())
        if self.channel_order == "bgr" and self.channels != 3:
            raise ValueError("channel_order 'bgr' needs 3 channels")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a stored image."""
        return (self.channels, *self.size)

    @property
    def is_small(self) -> bool:
        """Whether constants published for CIFAR hold, rather than those for ImageNet."""
        return max(self.size) <= SMALL_IMAGE

    @property
    def standard_moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of images, per channel, of pixels 0..1."""
        if all(IMAGE_STD[0] <= std <= IMAGE_STD[1] for std in self.std):
            mean, std = self.mean, self.std
        elif self.channels == len(NATURAL_MEAN):
            mean, std = NATURAL_MEAN, NATURAL_STD
        else:
            mean, std = ((sum(each) / len(each),) * self.channels for each in (NATURAL_MEAN, NATURAL_STD))
        return self.standard_mean or mean, self.standard_std or std

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
        expected = f"(N, {', '.join(map(str, self.shape))}) uint8: images, channels, height, width"
        found = f"{what} of shape {tuple(pixels_NCHW.shape)} {str(pixels_NCHW.dtype).removeprefix('torch.')}"
        if tuple(pixels_NCHW.shape[1:]) != self.shape or pixels_NCHW.dtype != torch.uint8:
            raise MismatchError(found, expected)
        if len(pixels_NCHW) == 0:
            raise MismatchError(f"no {what}", "at least one")

    def pixels_to_standard(self, pixels_NCHW: Tensor) -> Tensor:
        """uint8 0..255 -> float32 standard space."""
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
        if self.standard_moments != (self.mean, self.std):
            unit = self.standard_to_unit(images)
            images = (unit - _per_channel(self.mean, unit)) / _per_channel(self.std, unit)
        if self.channel_order == "bgr":
            images = images.flip(1)
        if self.input_size is not None and self.input_size != self.size:
            align = None if self.interpolation == "nearest" else False
            images = F.interpolate(
                images, size=list(self.input_size), mode=self.interpolation, align_corners=align
            )
        return images

    def pixels_to_norm(self, pixels_NCHW: Tensor) -> Tensor:
        """uint8 0..255 -> the network's input."""
        return self.standard_to_norm(self.pixels_to_standard(pixels_NCHW))

    def norm_to_unit(self, norm_NCHW: Tensor) -> Tensor:
        """The network's input, at the size as stored, -> 0..1 RGB (not clamped)."""
        images = norm_NCHW.flip(1) if self.channel_order == "bgr" else norm_NCHW
        return images * _per_channel(self.std, images) + _per_channel(self.mean, images)

    def valid_box(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Standard-space values of pixel 0 and pixel 255, each (1, C, 1, 1)."""
        black = torch.zeros(1, self.channels, 1, 1, dtype=torch.uint8, device=device)
        return self.pixels_to_standard(black), self.pixels_to_standard(black + 255)


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
