"""Losses on attention, and what they say of single images: entropy of patch similarities, similarity of
heads, distance to a prior. Suffixes as in `zsq.engine.attention`, and P places of the token grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zsq.engine.attention import Block, BlockTap
from zsq.engine.objectives import TeacherPass, total_variation_l2

# Of SSIM on values from 0 to 1 (Wang et al., 2004).
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
PLACES = 14 * 14  # of a transformer with patches of 16 pixels at 224
LOG_EPSILON = 1e-4  # under the logarithm of a density
VARIANCE_EPSILON = 1e-8
FAR = -80.0  # smallest exponent of a kernel: lower ones give denormal numbers, which take 20 times as long


def similarities(tap: BlockTap) -> Tensor:
    """(N W, P P) cosines of all pairs of places, of their outputs averaged over heads."""
    assert tap.outputs_NWHQD is not None
    outputs = tap.outputs_NWHQD[..., tap.block.queries.prefix :, :].mean(2).flatten(0, 1)
    unit = F.normalize(outputs, dim=-1)
    return (unit @ unit.transpose(1, 2)).flatten(1)


class _Density(torch.autograd.Function):
    """Gaussian kernel density: one kernel matrix at a time, in both directions."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, points: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(values, points)
        ctx.bandwidth = bandwidth
        scale = 1 / (bandwidth * math.sqrt(2 * math.pi))
        rows = [gaussian_kernel((values - p).div_(bandwidth)).mean(1) for p in points]
        return torch.stack(rows, 1) * scale

    @staticmethod
    def backward(ctx: Any, of_density: Tensor) -> tuple[Tensor, None, None]:
        values, points = ctx.saved_tensors
        bandwidth = ctx.bandwidth
        scale = 1 / (bandwidth**3 * math.sqrt(2 * math.pi) * values.shape[1])
        gradient = torch.zeros_like(values)
        for index, point in enumerate(points):
            gap = point - values
            kernel = gaussian_kernel(gap / bandwidth)
            gradient += gap.mul_(of_density[:, index, None]).mul_(kernel).mul_(scale)
        return gradient, None, None


def gaussian_kernel(gap: Tensor) -> Tensor:
    """exp(-gap^2 / 2), at least exp(FAR), in the place of `gap`: the matrices are large, and fresh memory for
    each step of a formula takes time."""
    return gap.square_().mul_(-0.5).clamp_min_(FAR).exp_()


def kernel_entropy(values: Tensor, bandwidth: float, points: int) -> Tensor:
    """(R,) differential entropy of each row of values (R, M), by a Gaussian kernel density at `points` equal
    steps between the smallest and the largest value of all rows (PSAQ-ViT, Li et al., ECCV 2022)."""
    low, high = values.detach().amin(), values.detach().amax()
    at = low + (high - low) * torch.linspace(0, 1, points, device=values.device, dtype=values.dtype)
    density = _Density.apply(values, at, bandwidth) + LOG_EPSILON
    return torch.trapezoid(-density * density.log(), at, dim=1)


def gaussian_entropy(values: Tensor) -> Tensor:
    """(R,) differential entropy of each row of values (R, M) as of a Gaussian: log(2 pi e var) / 2."""
    variance = values.var(1, correction=0) + VARIANCE_EPSILON
    return 0.5 * (2 * math.pi * math.e * variance).log()


def patch_entropy(entropy: Callable[[Tensor], Tensor]) -> Callable[[TeacherPass], Tensor]:
    """Minus the sum over blocks of the mean entropy of patch similarities, over images and their windows
    (PSAQ-ViT's patch similarity entropy)."""

    def loss(forward: TeacherPass) -> Tensor:
        return -torch.stack([entropy(similarities(tap)).mean() for tap in forward.blocks]).sum()

    return loss


def head_ssim(tap: BlockTap) -> Tensor:
    """(N, W, P, H, H) SSIM in one window between the heads' logits of each query place, over the key places
    and scaled to [0, 1] there. By Gram matrices: no product of heads and keys is held."""
    assert tap.logits_NWHQK is not None
    block = tap.block
    maps = tap.logits_NWHQK[..., block.queries.prefix :, block.keys.prefix :].transpose(2, 3)
    low, high = maps.amin(-1, keepdim=True), maps.amax(-1, keepdim=True)
    maps = (maps - low) / (high - low).clamp_min(VARIANCE_EPSILON)
    mean = maps.mean(-1, keepdim=True)
    centred = maps - mean
    products = centred @ centred.transpose(-2, -1) / maps.shape[-1]
    squares = products.diagonal(dim1=-2, dim2=-1)[..., None]
    luminance = (2 * mean * mean.mT + SSIM_C1) / (mean.square() + mean.square().mT + SSIM_C1)
    return luminance * (2 * products + SSIM_C2) / (squares + squares.mT + SSIM_C2)


def head_distance(forward: TeacherPass) -> Tensor:
    """Mean of 1 - SSIM^2 over blocks, images, queries and pairs of heads, a head with itself among them
    (MimiQ, Choi et al., AAAI 2025): 0 where all heads see alike."""
    return torch.stack([(1 - head_ssim(tap).square()).mean() for tap in forward.blocks]).mean()


def patch_entropies(taps: Sequence[BlockTap], images: int) -> Tensor:
    """(N,) mean over blocks of each image's own Gaussian entropy of patch similarities."""
    rows = [gaussian_entropy(similarities(tap)).view(images, -1).mean(1) for tap in taps]
    return torch.stack(rows).mean(0)


def head_similarities(taps: Sequence[BlockTap], images: int) -> Tensor:
    """(N,) mean SSIM^2 of each image's different heads, over blocks, queries and pairs; NaN where no block
    has two heads."""
    rows = []
    for tap in taps:
        heads = tap.block.heads
        if heads > 1:
            squares = head_ssim(tap).square().flatten(1, 2).mean(1)
            others = squares.sum((1, 2)) - squares.diagonal(dim1=1, dim2=2).sum(1)
            rows.append(others / (heads * (heads - 1)))
    return torch.stack(rows).mean(0) if rows else torch.full((images,), torch.nan)


def attended(tap: BlockTap) -> Tensor:
    """(N, W, H, P) how much of its attention the class token gives each place; the mean over queries where
    there is no such token."""
    assert tap.weights_NWHQK is not None
    weights = tap.weights_NWHQK[..., tap.block.keys.prefix :]
    return weights[..., 0, :] if tap.block.queries.prefix else weights.mean(-2)


class AttentionPriors:
    """A memory: a map per image, window and head that attention should look like, for the deeper half of the
    blocks (SARDFQ, ICCV 2025). Drawn at the first step and kept.

    A map is a mixture of one to `most` isotropic Gaussians: centres uniform in the image, standard deviations
    U(.08, .3) of its side, weights Dirichlet(1).
    """

    def __init__(self, blocks: Sequence[Block], rows: int, device: str, most: int = 5) -> None:
        """`rows`: images in a teacher pass."""
        self.most = most
        self.count = len(blocks)
        self.first = max(0, math.ceil(self.count / 2) - 1)
        self.blocks = blocks[self.first :]
        self.maps = [torch.zeros(rows, b.windows, b.heads, b.keys.places, device=device) for b in self.blocks]

    def before_step(self, iteration: int, generator: torch.Generator) -> None:
        """Draw the maps for a new batch; the sum of each is 1."""
        if iteration == 0:
            for block, maps in zip(self.blocks, self.maps, strict=True):
                maps.copy_(mixture_maps(maps.shape[:3], block.keys.grid, self.most, generator))

    def after_step(self, iteration: int, forward: TeacherPass) -> None:
        """Nothing is learned."""

    def loss(self, forward: TeacherPass) -> Tensor:
        """Sum over blocks l of L, and over heads, of l / L times the mean squared distance of attention to
        its map, which has the attention's own mass. Attention to P places is about 1 / P to each: distances
        are multiplied by P / 196, so that a weight means the same on every grid."""
        total = forward.viewed_NCHW.new_zeros(())
        for index, (maps, tap) in enumerate(zip(self.maps, forward.blocks[self.first :], strict=True)):
            found = attended(tap)
            wanted = maps * found.detach().sum(-1, keepdim=True)
            depth = (self.first + index + 1) / self.count
            distances = (found - wanted) * (tap.block.keys.places / PLACES)
            total = total + depth * distances.square().mean((0, 1, 3)).sum()
        return total


def mixture_maps(
    shape: Sequence[int], grid: tuple[int, int], most: int, generator: torch.Generator
) -> Tensor:
    """(*shape, rows x columns) mixtures of Gaussians as `AttentionPriors` says, on the CPU."""
    centres = torch.rand(*shape, most, 2, generator=generator)
    spreads = 0.08 + 0.22 * torch.rand(*shape, most, generator=generator)
    weights = torch.empty(*shape, most).exponential_(generator=generator)
    kept = torch.randint(1, most + 1, tuple(shape), generator=generator)
    weights = weights * (torch.arange(most) < kept[..., None])
    rows, columns = ((torch.arange(side) + 0.5) / side for side in grid)
    down, right = (rows - centres[..., :1]).square(), (columns - centres[..., 1:]).square()
    gaps = down[..., :, None] + right[..., None, :]
    bells = (-0.5 * gaps / spreads[..., None, None].square()).exp()
    bells = bells / bells.sum((-2, -1), keepdim=True)
    mixed = (weights[..., None, None] * bells).sum(-3).flatten(-2)
    return mixed / mixed.sum(-1, keepdim=True)


class VariationTarget:
    """A memory: the total variation that a batch should have, drawn at the first step and kept (PSAQ-ViT).

    Published for 32 images of 3 x 224 x 224: c ~ U(low, high). The 2-norm of differences grows with the root
    of the number of values, and so does c here.
    """

    def __init__(self, low: float, high: float, shape: Sequence[int], device: str) -> None:
        """`shape` of a batch."""
        self.scale = math.sqrt(math.prod(shape) / (32 * 3 * 224 * 224))
        self.low, self.high = low, high
        self.value = torch.zeros((), device=device)

    def before_step(self, iteration: int, generator: torch.Generator) -> None:
        """Draw it for a new batch."""
        if iteration == 0:
            drawn = self.low + (self.high - self.low) * torch.rand((), generator=generator)
            self.value.copy_(drawn * self.scale)

    def after_step(self, iteration: int, forward: TeacherPass) -> None:
        """Nothing is learned."""

    def loss(self, forward: TeacherPass) -> Tensor:
        """|total variation - target|."""
        return (total_variation_l2(forward) - self.value).abs()
