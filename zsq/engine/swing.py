"""Swing convolution: strided convolutions of a private teacher copy that see their input moved by a pixel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from zsq.engine.statistics import TappedTeacher


def moved(x: Tensor, offset: Tensor) -> Tensor:
    """x (N, C, H, W) padded by one reflected pixel all around and cut back to (H, W) from `offset`, two of
    0, 1, 2 (down, right); (1, 1) is x itself. A side of one pixel reflects into itself. Of x (N, C, L) the
    last offset counts."""
    for dimension, start in zip(range(2, x.dim()), offset[4 - x.dim() :], strict=True):
        size = x.shape[dimension]
        index = (torch.arange(size, device=x.device) + start - 1).abs()
        index = torch.minimum(index, (2 * (size - 1) - index).abs()).clamp_max(size - 1)
        x = x.index_select(dimension, index)
    return x


class SwingConvolution:
    """A view that leaves the images alone and moves the input of every strided convolution, each by an offset
    of its own, the same for the whole batch, drawn anew for every teacher pass.

    Jeon, Lee and Kim, Genie: Show Me the Data for Quantization, CVPR 2023.
    """

    def __init__(self, tapped: TappedTeacher) -> None:
        """Hook the strided convolutions of `tapped`'s own copy of the network."""
        strided = [
            module
            for module in tapped.network.modules()
            if isinstance(module, nn.Conv1d | nn.Conv2d) and any(side != 1 for side in module.stride)
        ]
        self.offsets = torch.ones(len(strided), 2, dtype=torch.int64)
        for index, module in enumerate(strided):
            module.register_forward_pre_hook(partial(self._move, index))

    def _move(self, index: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (moved(inputs[0], self.offsets[index]), *inputs[1:])

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """(strided convolutions, 2) int64 of 0, 1, 2."""
        return torch.randint(3, tuple(self.offsets.shape), generator=generator)

    def __call__(self, images_NCHW: Tensor, draw: Tensor) -> Tensor:
        """The images themselves; the next teacher pass uses the offsets of `draw`."""
        self.offsets = draw
        return images_NCHW
