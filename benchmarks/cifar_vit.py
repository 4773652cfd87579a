"""A compact convolutional transformer for 32-px images (CCT-2/3x2, Hassani et al. 2021), and a twin with
batch norm in the place of LayerNorm."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenBatchNorm(nn.Module):
    """Batch norm of each channel over all tokens of all images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x_NTD: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        return self.norm(x_NTD.transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    """Attention and two linear layers around a GELU, normalised before each."""

    def __init__(self, width: int, heads: int, hidden: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = norm(width), norm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x_NTD: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        split = self.qkv(self.norm1(x_NTD)).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x_NTD = x_NTD + self.proj(attended)
        return x_NTD + self.mlp(self.norm2(x_NTD))


class CifarViT(nn.Module):
    """Two convolutions down to 8 x 8 tokens, `depth` blocks, and a weighted mean of the tokens."""

    def __init__(self, width: int = 128, depth: int = 2, heads: int = 2, batch_norm: bool = False) -> None:
        super().__init__()
        norm: Callable[[int], nn.Module] = TokenBatchNorm if batch_norm else nn.LayerNorm
        self.tokens = nn.Sequential(
            *(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
            *(nn.Conv2d(64, width, 3, 1, 1, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        )
        self.pos_embed = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        self.blocks = nn.Sequential(*[Block(width, heads, width, norm) for _ in range(depth)])
        self.norm = norm(width)
        self.pool, self.head = nn.Linear(width, 1), nn.Linear(width, 10)

    def forward(self, norm_NCHW: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> (N, 10) logits."""
        x = self.tokens(norm_NCHW).flatten(2).transpose(1, 2) + self.pos_embed
        x = self.norm(self.blocks(x))
        weights = self.pool(x).softmax(1).transpose(1, 2)
        return self.head((weights @ x)[:, 0])
