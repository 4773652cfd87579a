"""Random images with the statistics that natural ones have: power-law spectra and textured dead leaves.

No network is asked. Lengths are shares of the longest side, so that images of all sizes look alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Mean correlation of two colour channels over ImageNet's pixels: it follows from the principal components
# that Krizhevsky, Sutskever and Hinton (NeurIPS 2012) state for their colour augmentation.
CHANNEL_CORRELATION = 0.85

# Radii of leaves as shares of the longest side.
SMALLEST_LEAF, LARGEST_LEAF = 1 / 16, 1 / 2

# Of an image: number of leaves, range of the exponents of its spectra, largest amplitude of a texture.
LEAVES, EXPONENTS, TEXTURE = 60, (0.5, 2.5), 0.7

# An image of a single colour stays one.
SMALLEST_CONTRAST = 1e-3

# Textures that the leaves of one image have in turn.
PALETTE = 8


def correlated(independent_NC: Tensor) -> Tensor:
    """(N, C, ...) of independent channels with variance 1 -> channels that correlate as colours do."""
    channels = independent_NC.shape[1]
    covariance = torch.full((channels, channels), CHANNEL_CORRELATION).fill_diagonal_(1.0)
    return torch.einsum("dc,nc...->nd...", torch.linalg.cholesky(covariance), independent_NC)


def power_law(shape: Sequence[int], exponents: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Gaussian images (N, C, H, W) or signals (N, C, L) in standard space, of variance 1. Their amplitude
    falls with frequency f as f^-a, a drawn for each image from U(exponents).

    In natural images a is near 1 (Field, JOSA A 1987).
    """
    count, _, *sides = shape
    axes = tuple(range(2, len(shape)))
    cycles = torch.meshgrid(*[torch.fft.fftfreq(side) * side for side in sides], indexing="ij")
    frequency = torch.stack(cycles).square().sum(0).sqrt().clamp_min(1.0)
    exponent = _uniform(*exponents, count, generator).view(-1, *[1] * (len(shape) - 1))
    amplitude = frequency**-exponent
    amplitude = amplitude / amplitude.square().mean(axes, keepdim=True).sqrt()
    noise = torch.fft.fftn(torch.randn(*shape, generator=generator), dim=axes)
    return correlated(torch.fft.ifftn(noise * amplitude, dim=axes).real)


def dead_leaves(
    shape: Sequence[int],
    leaves: int,
    exponents: tuple[float, float],
    texture: float,
    generator: torch.Generator,
) -> Tensor:
    """One image (C, H, W) or signal (C, L) in standard space, of variance 1: opaque discs that fall upon each
    other (Lee, Mumford and Huang, IJCV 2001).

    Radii r have density r^-3. A leaf has a colour and some power-law texture; the ground is texture alone.

    Args:
        leaves: their number.
        texture: the largest amplitude of a leaf's texture, in 0..1; each leaf draws its own below it.
    """
    channels, *sides = shape
    image, *palette = power_law((1 + PALETTE, *shape), exponents, generator)
    low, high = (share * max(sides) for share in (SMALLEST_LEAF, LARGEST_LEAF))
    radii_K = _uniform(high**-2, low**-2, leaves, generator).rsqrt()
    centres = [_uniform(0, side, leaves, generator).tolist() for side in sides]
    colours_KC = correlated(torch.randn(leaves, channels, generator=generator))
    amplitudes_K = _uniform(0, texture, leaves, generator)
    colours_KC = colours_KC * (1 - amplitudes_K.square()).sqrt()[:, None]
    for leaf, (radius, *centre) in enumerate(zip(radii_K.tolist(), *centres, strict=True)):
        box, inside = _disc(centre, radius, sides)
        colour = colours_KC[leaf].view(-1, *[1] * len(sides))
        filled = colour + palette[leaf % PALETTE][box] * amplitudes_K[leaf]
        image[box] = torch.where(inside, filled, image[box])
    return image


def lit(image: Tensor, light: float, contrast: float, generator: torch.Generator) -> Tensor:
    """An image (C, ...) in standard space with a brightness, a colour and a contrast of its own.

    Over many images the variance stays 1. Photos differ in this way: 29 % of the variance of CIFAR-10's
    pixels is that of the images' means.

    Args:
        light: the share, in [0, 1), of the variance that is between images, in their means.
        contrast: standard deviation of the logarithm of an image's contrast.
    """
    channels, *sides = image.shape
    colour = correlated(torch.randn(1, channels, generator=generator)).view(channels, *[1] * len(sides))
    # E c^2 = 1 of a log-normal c.
    own_contrast = torch.exp(contrast * torch.randn((), generator=generator) - contrast**2)
    centred = image - image.flatten(1).mean(1).view_as(colour)
    centred = centred / centred.square().mean().sqrt().clamp_min(SMALLEST_CONTRAST)
    return math.sqrt(1 - light) * own_contrast * centred + math.sqrt(light) * colour


def _disc(centre: Sequence[float], radius: float, sides: Sequence[int]) -> tuple[tuple[slice, ...], Tensor]:
    """The box around a disc within an image, and which of its pixels are inside."""
    box: list[slice] = [slice(None)]
    squared = torch.zeros([1] * len(sides))
    for axis, (middle, side) in enumerate(zip(centre, sides, strict=True)):
        box.append(slice(max(0, int(middle - radius)), min(side, int(middle + radius) + 1)))
        distance = torch.arange(box[-1].start, box[-1].stop) - middle
        squared = squared + distance.square().view(*[1] * axis, -1, *[1] * (len(sides) - 1 - axis))
    return tuple(box), squared <= radius**2


def _uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)
