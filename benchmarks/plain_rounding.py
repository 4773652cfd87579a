"""What rounding at given widths leaves of a network's outputs, whoever quantizes it.

In place of each quantizer stands plain rounding to the steps of the min-max grid, the grid moved at random in
each channel. How loud its errors are in the outputs follows from the network alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zsq.contract import Teacher
from zsq.fitting.calibration import observe
from zsq.placement.sites import place
from zsq.widths import Bits


class MovedRounding(nn.Module):
    """Rounds to multiples of `step` plus an offset per channel; zero stays zero."""

    def __init__(self, step: Tensor, channel_axis: int, generator: torch.Generator) -> None:
        """`step` broadcasts against the tensors to come."""
        super().__init__()
        self.step, self.channel_axis, self.generator = step, channel_axis, generator

    def forward(self, x: Tensor) -> Tensor:
        """`x` on the moved grid, same shape."""
        shape = [1] * x.dim()
        shape[self.channel_axis] = x.shape[self.channel_axis]
        offset = torch.rand(shape, generator=self.generator)
        rounded = ((x / self.step + offset).round() - offset) * self.step
        return torch.where(x == 0, x, rounded)


@torch.no_grad()
def plainly_rounded(teacher: Teacher, pixels_NCHW: Tensor, bits: Bits, seed: int) -> nn.Module:
    """A copy of the network, BN folded, that rounds at every site; ranges are those on `pixels_NCHW`."""
    generator = torch.Generator().manual_seed(seed)
    placement = place(teacher.network, teacher.example(), bits, fold=True)
    ranges = observe(placement, teacher.spec, pixels_NCHW, "cpu")
    for site in placement.sites:
        if site.kind == "weight":
            weight = placement.weight(site)
            rows = weight.flatten(1)
            extent = rows.amax(1).clamp(min=0) - rows.amin(1).clamp(max=0)
            extent, axis = extent.view(-1, *[1] * (weight.dim() - 1)), 0
        else:
            extent, axis = torch.tensor(max(ranges[site].high, 0.0) - min(ranges[site].low, 0.0)), 1
        step = (extent / (2**site.bits - 1)).clamp(min=1e-30)
        placement.put(site, MovedRounding(step, axis, generator))
    return placement.network
