"""`embedded:digits-vit`: a small vision transformer for 32-px digits, without batch norm."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsq.contract import Teacher
from zsq.teacher.digits import DIGITS_SPEC
from zsq.teacher.load import build_without_global_rng, load_weights, read_state_dict

WEIGHTS_PATH = Path(__file__).parent / "digits-vit.safetensors"


class Attention(nn.Module):
    """Self-attention of `heads` heads, its queries, keys and values from one linear layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_NTD: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        split = self.qkv(x_NTD).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(query, key, value)
        return self.proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and two linear layers around a GELU, a LayerNorm before each and a shortcut around each."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x_NTD: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        x_NTD = x_NTD + self.attn(self.norm1(x_NTD))
        return x_NTD + self.mlp(self.norm2(x_NTD))


class DigitsViT(nn.Module):
    """Patches of 4 px, a class token and `depth` blocks: 46 k parameters, 4 M multiply-adds per image."""

    def __init__(
        self, width: int = 32, depth: int = 5, heads: int = 4, hidden: int = 64, num_classes: int = 10
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, width, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 65, width) * 0.02)
        self.blocks = nn.Sequential(*[Block(width, heads, hidden) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, norm_NCHW: Tensor) -> Tensor:
        """(N, 1, 32, 32) -> (N, K) logits."""
        x = self.patch_embed(norm_NCHW).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


# Percent on the test split.
EXPECTED_ACCURACY = 99.15


def load_digits_vit() -> Teacher:
    """The shipped transformer, as `benchmarks/train_digits_vit.py` wrote it."""
    state, sha256 = read_state_dict(WEIGHTS_PATH)
    network = build_without_global_rng(DigitsViT)
    load_weights(network, state, str(WEIGHTS_PATH))
    return Teacher(
        "embedded:digits-vit", network, DIGITS_SPEC, 10, sha256, expected_accuracy=EXPECTED_ACCURACY
    )
