"""Images as a sum of maps from coarse to fine: what is coarse can change as fast as what is fine."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsq.core.imagespec import ImageSpec, shortest_side
from zsq.engine.parameterise import ParameterGroup, Parameterisation
from zsq.engine.schedules import MakeSchedule, Schedule

COARSEST = 4  # pixels of the shortest side, at least


def pyramid_sides(size: Sequence[int], most: int | None = None) -> list[tuple[int, ...]]:
    """Sides of the maps for images of this `size`, (height, width) or (length,), the finest first: each half
    of the one before, rounded up, while the shortest side keeps `COARSEST` pixels, and `most` maps at most.
    A side of one pixel stays."""
    levels = max(1, int(math.log2(max(1, shortest_side(size) / COARSEST))) + 1)
    return [tuple(-(-side // 2**level) for side in size) for level in range(min(levels, most or levels))]


class Pyramid(Parameterisation):
    """The sum of maps at full, half, quarter size and so on, each enlarged linearly.

    Adam moves all its parameters by about the rate, whatever their gradients. A map of a quarter of the size
    moves whole surfaces by that in one step, for which single pixels would have to agree. Laplacian pyramids:
    Burt and Adelson, IEEE Transactions on Communications 1983.
    """

    def __init__(
        self,
        spec: ImageSpec,
        batch: int,
        device: str,
        rate: float,
        levels: int | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        schedule: MakeSchedule = Schedule,
    ) -> None:
        """`batch` images of `spec` from at most `levels` maps; `rate`, `betas` and `schedule` are Adam's, the
        same for all maps."""
        super().__init__()
        self.maps = nn.ParameterList(
            nn.Parameter(torch.empty(batch, spec.channels, *sides, device=device))
            for sides in pyramid_sides(spec.size, levels)
        )
        self._group = ParameterGroup(list(self.maps), rate, betas, schedule)

    def forward(self) -> Tensor:
        """The images, in standard space; nothing keeps them inside the box of valid pixel values."""
        *finer, image = self.maps
        for each in reversed(finer):
            image = _enlarged(image, each.shape[2:]) + each
        return image

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw all maps on the CPU, with variances that add up to 1: about as much of each scale as natural
        images have."""
        scale = len(self.maps) ** -0.5
        for each in self.maps:
            each.copy_(torch.randn(each.shape, generator=generator) * scale)

    def groups(self) -> Sequence[ParameterGroup]:
        """One group: all maps."""
        return [self._group]


def _enlarged(images: Tensor, sides: Sequence[int]) -> Tensor:
    mode = "linear" if images.dim() == 3 else "bilinear"
    return F.interpolate(images, size=list(sides), mode=mode, align_corners=False)
