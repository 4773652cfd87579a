"""What the teacher sees of an image. A view draws its parameters outside the compiled step, as tensors, and
applies them inside it: one vectorised operation per batch, seeded.

Signals (N, C, L) are maps of height 1 to every view, and a side of one pixel is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import kornia
import torch
import torch.nn.functional as F
from torch import Tensor

from zsq.core.imagespec import ImageSpec


class View(Protocol):
    """Images (N, C, H, W) in standard space -> what the teacher sees."""

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Random parameters for one batch of this shape, a CPU tensor (empty where nothing is random)."""

    def __call__(self, images_NCHW: Tensor, draw: Tensor) -> Tensor:
        """The view of the images under `draw`."""


def draw_views(views: Sequence[View], shape: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """One draw per view, in order."""
    return [view.draw(shape, generator) for view in views]


def apply_views(views: Sequence[View], images_NCHW: Tensor, draws: Sequence[Tensor]) -> Tensor:
    """The views one after another; with none, the images themselves."""
    for view, draw in zip(views, draws, strict=True):
        images_NCHW = view(images_NCHW, draw)
    return images_NCHW


def _as_maps(images: Tensor) -> Tensor:
    """(N, C, L) -> (N, C, 1, L); (N, C, H, W) as they are."""
    return images if images.dim() == 4 else images[:, :, None]


def _sides(shape: Sequence[int]) -> tuple[int, int]:
    """(height, width) of a batch of this shape; of signals (1, length)."""
    height, width = (1, *shape[2:])[-2:]
    return height, width


class Flip:
    """Horizontal flip with probability 1/2: one coin for the batch, or one per image."""

    def __init__(self, per_image: bool = True) -> None:
        """`per_image`: a coin for each image."""
        self.per_image = per_image

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """(N or 1, 1, 1, 1) bool, one axis fewer for signals."""
        ones = [1] * (len(shape) - 1)
        return torch.rand(shape[0] if self.per_image else 1, *ones, generator=generator) < 0.5

    def __call__(self, images_NCHW: Tensor, draw: Tensor) -> Tensor:
        """Flip the images whose coin says so."""
        return torch.where(draw, images_NCHW.flip(-1), images_NCHW)


class Roll:
    """Jitter: the whole batch rolled by up to +-`pixels` in both directions (DeepInversion)."""

    def __init__(self, pixels: int) -> None:
        """`pixels`: the largest shift."""
        self.pixels = pixels

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """(2,) int64: shift down and shift right."""
        return torch.randint(-self.pixels, self.pixels + 1, (2,), generator=generator)

    def __call__(self, images_NCHW: Tensor, draw: Tensor) -> Tensor:
        """Roll with wrap-around; the shift stays a tensor."""
        return _Rolled.apply(images_NCHW, draw)


class _Rolled(torch.autograd.Function):
    """A roll whose gradient is the opposite roll: both read, where autograd's own would scatter."""

    @staticmethod
    def forward(ctx: Any, images_NCHW: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(shift)
        return _rolled(images_NCHW, shift)

    @staticmethod
    def backward(ctx: Any, of_output: Tensor) -> tuple[Tensor, None]:
        (shift,) = ctx.saved_tensors
        return _rolled(of_output, -shift), None


def _rolled(images_NCHW: Tensor, shift: Tensor) -> Tensor:
    height, width = _sides(images_NCHW.shape)
    rows = (torch.arange(height, device=images_NCHW.device) - shift[0]) % height
    columns = (torch.arange(width, device=images_NCHW.device) - shift[1]) % width
    if height == 1:
        return images_NCHW[..., columns]
    return images_NCHW[:, :, rows][:, :, :, columns]


class ResizedCrop:
    """Each image cropped to a random `scale` share of its area and resized back (bilinear)."""

    def __init__(self, scale: tuple[float, float], flip: bool = False, probability: float = 1.0) -> None:
        """`scale`: smallest and largest share of the area, in (0, 1]; the aspect ratio is kept.

        flip: mirror each crop by a coin of its own. probability: of one coin for the whole batch, which else
        stays as it is.
        """
        self.scale, self.flip, self.probability = scale, flip, probability

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """(N, 4, 2) corners of each crop, clockwise from top left (of a mirrored one from top right), in
        pixels (x, y)."""
        count, (height, width) = shape[0], _sides(shape)
        low, high = self.scale
        share = low + (high - low) * torch.rand(count, generator=generator)
        side = share.sqrt() if min(height, width) > 1 else share
        x0 = (1 - side) * (width - 1) * torch.rand(count, generator=generator)
        y0 = (1 - side) * (height - 1) * torch.rand(count, generator=generator)
        x1, y1 = x0 + side * (width - 1), y0 + side * (height - 1)
        if self.flip:
            mirrored = torch.rand(count, generator=generator) < 0.5
            x0, x1 = torch.where(mirrored, x1, x0), torch.where(mirrored, x0, x1)
        if self.probability < 1 and torch.rand((), generator=generator) >= self.probability:
            x0, y0 = torch.zeros(count), torch.zeros(count)
            x1, y1 = x0 + (width - 1), y0 + (height - 1)
        corners = [torch.stack(point, 1) for point in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))]
        return torch.stack(corners, 1)

    def __call__(self, images_NCHW: Tensor, draw: Tensor) -> Tensor:
        """Crop and resize to the full size."""
        height, width = _sides(images_NCHW.shape)
        if min(height, width) == 1:
            return _resampled(_as_maps(images_NCHW), draw).view_as(images_NCHW)
        return kornia.geometry.transform.crop_and_resize(images_NCHW, draw, (height, width))


def _resampled(strips_NCHW: Tensor, corners_N42: Tensor) -> Tensor:
    """Strips of one row or column between the first and the third corner, linearly, at their own size: the
    four corners of such a crop lie on one line, which no perspective has."""
    sides = strips_NCHW.shape[-1:-3:-1]
    axes = []
    for axis, side in enumerate(sides):
        first, last = corners_N42[:, 0, axis, None], corners_N42[:, 2, axis, None]
        at = torch.arange(side, device=strips_NCHW.device) / max(1, side - 1)
        axes.append((first + (last - first) * at) * (2 / max(1, side - 1)) - 1)
    x, y = axes[0][:, None, :].expand(-1, sides[1], -1), axes[1][:, :, None].expand(-1, -1, sides[0])
    grid = torch.stack([x, y], -1).to(strips_NCHW)
    return F.grid_sample(strips_NCHW, grid, align_corners=True, padding_mode="border")


class RandomCrop:
    """The whole batch cropped to `size` at one random place (Sony's data generation)."""

    def __init__(self, size: Sequence[int]) -> None:
        """`size`: height and width, or length, that stay."""
        self.size = size

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """(2,) int64: first row and first column; of signals (1,)."""
        room = [side - kept + 1 for side, kept in zip(shape[2:], self.size, strict=True)]
        return torch.cat([torch.randint(each, (1,), generator=generator) for each in room])

    def __call__(self, images_NCHW: Tensor, draw: Tensor) -> Tensor:
        """The rows and columns from there; an index, so that the place stays a tensor."""
        for axis, (side, first) in enumerate(zip(self.size, draw, strict=True), start=2):
            kept = torch.arange(side, device=images_NCHW.device) + first
            images_NCHW = images_NCHW[(slice(None),) * axis + (kept,)]
        return images_NCHW


def centre_crop(images_NCHW: Tensor, size: Sequence[int]) -> Tensor:
    """The middle `size`, (height, width) or (length,), of the images."""
    for axis, side in enumerate(size, start=2):
        images_NCHW = images_NCHW.narrow(axis, (images_NCHW.shape[axis] - side) // 2, side)
    return images_NCHW


class Clip:
    """Values clamped to what pixels 0..255 have in standard space; the gradient passes unchanged."""

    def __init__(self, spec: ImageSpec, device: str) -> None:
        """`spec` gives the valid box."""
        self.low, self.high = spec.valid_box(device)

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Nothing random: an empty tensor."""
        return torch.empty(0)

    def __call__(self, images_NCHW: Tensor, draw: Tensor) -> Tensor:
        """Clamped images."""
        return images_NCHW + (images_NCHW.clamp(self.low, self.high) - images_NCHW).detach()


class Blur:
    """Gaussian blur with a 3x3 kernel (Sony's data generation)."""

    def __init__(self, sigma: float) -> None:
        """`sigma` in pixels."""
        self.sigma = sigma

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Nothing random: an empty tensor."""
        return torch.empty(0)

    def __call__(self, images_NCHW: Tensor, draw: Tensor) -> Tensor:
        """Blur with reflected borders."""
        height, width = _sides(images_NCHW.shape)
        kernel = (3 if height > 1 else 1, 3 if width > 1 else 1)
        blurred = kornia.filters.gaussian_blur2d(_as_maps(images_NCHW), kernel, (self.sigma, self.sigma))
        return blurred.view_as(images_NCHW)


class Halve:
    """The low-resolution stage: 2x2 average pooling (DeepInversion, ImageNet)."""

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Nothing random: an empty tensor."""
        return torch.empty(0)

    def __call__(self, images_NCHW: Tensor, draw: Tensor) -> Tensor:
        """Half the height and width."""
        height, width = _sides(images_NCHW.shape)
        halved = F.avg_pool2d(_as_maps(images_NCHW), (min(2, height), min(2, width)))
        return halved if images_NCHW.dim() == 4 else halved[:, :, 0]
