"""What the teacher sees of an image. A view draws its parameters outside the compiled step, as tensors, and
applies them inside it: one vectorised operation per batch, seeded.

Signals (N, C, L) are maps of height 1 to every view, and a side of one pixel is left as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol

import kornia
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from zsq.core.imagespec import ImageSpec
from zsq.engine.frozen import Materialised

Share = Annotated[float, Field(gt=0, le=1)]
# Smallest and largest share of an image's area.
CropScale = tuple[Share, Share]


class View(Protocol):
    """Images (N, C, H, W) in standard space -> what the teacher sees."""

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Random parameters for one batch of this shape, a CPU tensor (empty where nothing is random)."""

    def __call__(self, images_NCHW: Tensor, draw: Tensor) -> Tensor:
        """The view of the images under `draw`."""


class TimedView(ABC):
    """A view whose draws change over a run."""

    @abstractmethod
    def draw_at(self, progress: float, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """As `View.draw`, when the share `progress`, from 0 to below 1, of the stage's iterations is done."""

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """As at the beginning."""
        return self.draw_at(0.0, shape, generator)


def draw_views(
    views: Sequence[View], shape: Sequence[int], generator: torch.Generator, progress: float = 0.0
) -> list[Tensor]:
    """One draw per view, in order."""
    return [
        view.draw_at(progress, shape, generator)
        if isinstance(view, TimedView)
        else view.draw(shape, generator)
        for view in views
    ]


def apply_views(views: Sequence[View], images_NCHW: Tensor, draws: Sequence[Tensor]) -> Tensor:
    """The views one after another; with none, the images themselves."""
    for view, draw in zip(views, draws, strict=True):
        images_NCHW = view(images_NCHW, draw)
    return Materialised.apply(images_NCHW) if views else images_NCHW


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


class GrowingRoll(TimedView):
    """A `Roll` by up to +-`first` pixels in the first half of the iterations, `second` in the second."""

    def __init__(self, first: int, second: int) -> None:
        """Largest shifts."""
        self.rolls = (Roll(first), Roll(second))

    def draw_at(self, progress: float, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """(2,) int64: shift down and shift right."""
        return self.rolls[progress >= 0.5].draw(shape, generator)

    def __call__(self, images_NCHW: Tensor, draw: Tensor) -> Tensor:
        """Roll with wrap-around."""
        return self.rolls[0](images_NCHW, draw)


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
        if images_NCHW.is_cuda:
            return cropped_by_products(_as_maps(images_NCHW), draw).view_as(images_NCHW)
        if min(height, width) == 1:
            return _resampled(_as_maps(images_NCHW), draw).view_as(images_NCHW)
        return kornia.geometry.transform.crop_and_resize(images_NCHW, draw, (height, width))


def random_crops(spec: ImageSpec, scale: CropScale, probability: float) -> tuple[View, ...]:
    """`ResizedCrop`, mirrored but for signals; no view where the probability is 0."""
    return (ResizedCrop(scale, not spec.is_signal, probability),) if probability else ()


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


def cropped_by_products(maps_NCHW: Tensor, corners_N42: Tensor) -> Tensor:
    """What lies between the first and the third corner, linearly, at the size of the maps: a product along
    each side. On CUDA the gradient of a grid sampler adds in any order, and its bytes change."""
    weights = []
    for axis, side in enumerate(maps_NCHW.shape[-1:-3:-1]):
        first_N1, last_N1 = corners_N42[:, 0, axis, None], corners_N42[:, 2, axis, None]
        place_S = torch.arange(side, device=maps_NCHW.device, dtype=maps_NCHW.dtype)
        at_NS = first_N1 + (last_N1 - first_N1) * (place_S / max(1, side - 1))
        weights.append((1 - (at_NS.to(place_S)[:, :, None] - place_S).abs()).relu())
    across_NWW, down_NHH = weights
    return down_NHH[:, None] @ maps_NCHW @ across_NWW[:, None].transpose(2, 3)


class PatchZoom:
    """The images, and behind them a quarter of each at full size (bilinear): as many images again. No
    gradient of a quarter leaves it (the multi-semantic patches of SARDFQ, ICCV 2025)."""

    def __init__(self, quarters: Callable[[torch.Generator], Tensor]) -> None:
        """`quarters` draws which quarter is shown of each image, (N,) int64: 0 top left, 1 top right, 2
        bottom left, 3 bottom right."""
        self.quarters = quarters

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """(N,) int64."""
        return self.quarters(generator)

    def __call__(self, images_NCHW: Tensor, draw: Tensor) -> Tensor:
        """(2 N, C, H, W): the images, then their quarters."""
        maps = _as_maps(images_NCHW)
        height, width = (max(1, side // 2) for side in maps.shape[2:])
        rows = (maps[:, :, :height], maps[:, :, -height:])
        four = torch.stack([part for row in rows for part in (row[..., :width], row[..., -width:])], 1)
        shown = four[torch.arange(len(maps), device=maps.device), draw]
        zoomed = F.interpolate(shown, maps.shape[2:], mode="bilinear", align_corners=True)
        return torch.cat([images_NCHW, zoomed.view_as(images_NCHW)])


class ColourAffine(TimedView):
    """Each image's colours shifted per channel by N(0, s^2), s falling from `shift` to 0 over the run, then
    as (x - a) / b of the whole image, a ~ U(-1, 1) and log b ~ U(-1, 1) (MimiQ, Choi et al., AAAI 2025)."""

    def __init__(self, shift: float) -> None:
        """`shift`: standard deviation at the beginning."""
        self.shift = shift

    def draw_at(self, progress: float, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """(N, C + 1): each channel's shift, with -a in it, and 1 / b."""
        count, channels = shape[:2]
        shifts = torch.randn(count, channels, generator=generator) * self.shift * (1 - progress)
        a, b = 2 * torch.rand(2, count, 1, generator=generator) - 1
        return torch.cat([shifts - a, (-b).exp()], 1)

    def __call__(self, images_NCHW: Tensor, draw: Tensor) -> Tensor:
        """Shift and scale."""
        draw = draw.to(images_NCHW).view(*draw.shape, *[1] * (images_NCHW.dim() - 2))
        return (images_NCHW + draw[:, :-1]) * draw[:, -1:]


class BandFilter:
    """The images with some spatial frequencies alone, once for each band, one batch behind the other (FDD).

    A band (inner, outer) keeps inner <= r <= outer, r in units of the highest frequency along an axis; an
    outer of 1 keeps the corners beyond it too.
    """

    def __init__(self, *bands: tuple[float, float]) -> None:
        """Inner and outer radius of each band, from 0 to 1."""
        self.bands = bands

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Nothing random: an empty tensor."""
        return torch.empty(0)

    def __call__(self, images_NCHW: Tensor, draw: Tensor) -> Tensor:
        """(bands x N, C, H, W), real."""
        sides = images_NCHW.shape[2:]
        axes = [torch.fft.fftfreq(side, device=images_NCHW.device) * 2 for side in sides[:-1]]
        axes.append(torch.fft.rfftfreq(sides[-1], device=images_NCHW.device) * 2)
        radius = torch.stack([axis.square() for axis in torch.meshgrid(*axes, indexing="ij")]).sum(0).sqrt()
        spectrum = torch.fft.rfftn(images_NCHW, dim=tuple(range(2, images_NCHW.dim())))
        shown = [
            torch.fft.irfftn(spectrum * ((radius >= inner) & ((radius <= outer) | (outer >= 1))), s=sides)
            for inner, outer in self.bands
        ]
        return torch.cat(shown)


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


def with_margin(spec: ImageSpec, margin: int) -> ImageSpec:
    """Of images that are `margin` pixels longer along each side; a side of one pixel stays."""
    sides = tuple(side + margin if side > 1 else 1 for side in spec.size)
    return spec.model_copy(update={"size": sides})


def centres(batches: Sequence[Tensor], views: Sequence[View], spec: ImageSpec) -> Tensor:
    """The images (N, *spec.shape) of batches with a margin, on the CPU, through views that draw nothing."""
    nothing = [torch.empty(0)] * len(views)
    return torch.cat([centre_crop(apply_views(views, batch, nothing), spec.size).cpu() for batch in batches])


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
