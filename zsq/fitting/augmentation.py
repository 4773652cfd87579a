"""Random views of the images of a training batch.

Random numbers are drawn on the CPU from the generator that is given; the views of torchvision and kornia draw
from the global one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shift_and_flip(standard_NCHW: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Each image moved by up to `shift` pixels both ways, mirrored at even odds; same shape, channels_last.

    All in one gather. The border that moves in is 0 in standard space, the mean of natural images. A side of
    one pixel stays, and signals (N, C, L) are not mirrored.
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


def random_gain(standard: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Each image with another contrast, brightness and colour; (N, C, ...), same shape.

    y = x exp(g) + b in standard space. Both g and b are a number of the image plus one of each channel, all
    uniform in -strength..strength. Nothing is clamped.
    """
    num, channels = standard.shape[:2]

    def drawn(*shape: int) -> Tensor:
        numbers = (2 * torch.rand(shape, generator=generator) - 1) * strength
        return numbers.to(standard.device).view(*shape, *[1] * (standard.dim() - 2))

    gain, shift = (drawn(num, 1) + drawn(num, channels) for _ in range(2))
    return standard * gain.exp() + shift


def mixup(standard: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """Each image mixed with the next one of the batch; (N, C, ...), same shape (Zhang et al. 2018,
    arXiv:1710.09412).

    The shares are of Beta(alpha, alpha), one per image.
    """
    share = _shares(len(standard), alpha, generator).to(standard.device)
    share = share.view(-1, *[1] * (standard.dim() - 1))
    return torch.lerp(standard.roll(1, 0), standard, share)


def cutmix(standard: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """Each image with a box pasted from the same place of the next one of the batch; (N, C, ...), same shape
    (Yun et al. 2019, arXiv:1905.04899).

    The share that stays is of Beta(alpha, alpha). The box has the form of the image, its centre is anywhere
    in it, and what reaches beyond the border is cut off. Of signals it is an interval.
    """
    num, sides = len(standard), standard.shape[2:]
    axes = [axis for axis, side in enumerate(sides, start=2) if side > 1]
    part = (1 - _shares(num, alpha, generator)) ** (1 / max(len(axes), 1))
    inside = torch.ones(num, *[1] * (standard.dim() - 1), dtype=torch.bool)
    for axis in axes:
        side = standard.shape[axis]
        centre = torch.rand(num, generator=generator) * side
        distance = (torch.arange(side) + 0.5 - centre[:, None]).abs()
        near = distance < part[:, None] * side / 2
        inside = inside & near.view(num, *(side if axis == own else 1 for own in range(1, standard.dim())))
    return torch.where(inside.to(standard.device), standard.roll(1, 0), standard)


def _shares(num: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Numbers of Beta(alpha, alpha), (num,); `torch.distributions` takes no generator.

    X / (X + Y) of two Gamma numbers, by logarithms, since those of a small alpha are too small for a float:
    Gamma(alpha) is Gamma(alpha + 1) U^(1 / alpha) (Marsaglia and Tsang 2000, section 6).
    """
    larger = torch._standard_gamma(torch.full((2, num), alpha + 1.0), generator)
    uniform = 1 - torch.rand(2, num, generator=generator)
    odds = (larger[0] / larger[1]).log() + (uniform[0] / uniform[1]).log() / alpha
    return torch.sigmoid(odds)
