"""A random view of each image of a training batch, all in one gather."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shift_and_flip(standard_NCHW: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Each image moved by up to `shift` pixels both ways, mirrored at even odds; same shape, channels_last.

    The border that moves in is 0 in standard space, the mean of natural images. Random numbers are drawn on
    the CPU from `generator`. A side of one pixel stays, and signals (N, C, L) are not mirrored.
    """
    if standard_NCHW.dim() == 3:
        return shift_and_flip(standard_NCHW[:, :, None], shift, False, generator)[:, :, 0].contiguous()
    num, _, height, width = standard_NCHW.shape
    offsets = torch.randint(2 * shift + 1, (2, num, 1), generator=generator)
    mirrored = torch.rand(num, 1, generator=generator) < (0.5 if flip else 0.0)
    columns = torch.arange(width).expand(num, width)
    columns = torch.where(mirrored, columns.flip(1), columns) + (offsets[1] if width > 1 else shift)
    rows = torch.arange(height).expand(num, height) + (offsets[0] if height > 1 else shift)

    device = standard_NCHW.device
    padded_NHWC = F.pad(standard_NCHW, [shift] * 4).permute(0, 2, 3, 1)
    image = torch.arange(num, device=device)[:, None, None]
    view_NHWC = padded_NHWC[image, rows.to(device)[:, :, None], columns.to(device)[:, None, :]]
    return view_NHWC.permute(0, 3, 1, 2)
