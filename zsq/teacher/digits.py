"""`embedded:digits`: scikit-learn's handwritten digits as 32-px images, and a small network for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsq.contract import Teacher
from zsq.core.errors import ImagesError
from zsq.core.imagespec import ImageSpec
from zsq.tasks.embed import Embed
from zsq.teacher.load import build_without_global_rng, load_weights, read_state_dict

Split = Literal["train", "val", "test"]

WEIGHTS_PATH = Path(__file__).parent / "digits.safetensors"

# The k-th image of each class goes by k mod 15: 9 parts to train, 2 to val, 4 to test.
_REMAINDERS: dict[str, range] = {"train": range(0, 9), "val": range(9, 11), "test": range(11, 15)}


def load_digit_originals(split: Split) -> tuple[Tensor, Tensor]:
    """float64 values 0..16 (N, 1, 8, 8) and int64 labels (N,) of a split, as scikit-learn has them.

    Raises:
        ImagesError: no such split.
    """
    if split not in _REMAINDERS:
        raise ImagesError(f"split '{split}' of embedded:digits", f"one of {', '.join(_REMAINDERS)}")
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels_N = torch.from_numpy(digits.target).to(torch.int64)
    small_N1HW = torch.from_numpy(digits.images).to(torch.float64)[:, None]
    rank_N = (F.one_hot(labels_N).cumsum(0) - 1).gather(1, labels_N[:, None])[:, 0]
    chosen_N = torch.isin(rank_N % 15, torch.tensor(list(_REMAINDERS[split])))
    return small_N1HW[chosen_N], labels_N[chosen_N]


def load_digits_images(split: Split) -> tuple[Tensor, Tensor]:
    """uint8 pixels (N, 1, 32, 32) and int64 labels (N,): 1089 train, 238 val and 470 test images.

    The 8x8 originals with values 0..16 are enlarged bilinearly and scaled to 0..255, rounded to nearest. All
    factors are multiples of 1/64, so float64 is exact and every machine makes the same bytes.

    Raises:
        ImagesError: no such split.
    """
    small_N1HW, labels_N = load_digit_originals(split)
    large_N1HW = F.interpolate(small_N1HW, size=(32, 32), mode="bilinear", align_corners=False)
    return (large_N1HW * 255 / 16).round().to(torch.uint8), labels_N


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, a 1x1 convolution where the width changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            projection = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Sum of both branches, rectified."""
        y = self.relu1(self.bn1(self.conv1(x_NCHW)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x_NCHW))


class DigitsNet(nn.Module):
    """Stem and three residual blocks at 16, 8 and 4 px: 47 k parameters, 2.3 M multiply-adds per image."""

    def __init__(self, widths: tuple[int, int, int] = (16, 24, 48), num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, widths[0], 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.block1 = ResidualBlock(widths[0], widths[0], 1)
        self.block2 = ResidualBlock(widths[0], widths[1], 2)
        self.block3 = ResidualBlock(widths[1], widths[2], 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(widths[2], num_classes)

    def forward(self, norm_NCHW: Tensor) -> Tensor:
        """(N, 1, 32, 32) -> (N, K) logits."""
        x = self.relu(self.bn1(self.conv1(norm_NCHW)))
        x = self.block3(self.block2(self.block1(x)))
        return self.linear(self.pool(x).flatten(1))


# Moments of the train split's pixels.
DIGITS_SPEC = ImageSpec(channels=1, size=(32, 32), mean=(0.3046,), std=(0.3236,))

# Percent on the test split.
EXPECTED_ACCURACY = 99.36


def load_digits_teacher() -> Teacher:
    """The shipped teacher, as `benchmarks/train_digits.py` wrote it."""
    state, sha256 = read_state_dict(WEIGHTS_PATH)
    network = build_without_global_rng(DigitsNet)
    load_weights(network, state, str(WEIGHTS_PATH))
    return Teacher("embedded:digits", network, DIGITS_SPEC, 10, sha256, expected_accuracy=EXPECTED_ACCURACY)


def load_digits_embedder() -> Teacher:
    """The shipped teacher without its last layer: the 48 pooled features as an embedding."""
    teacher = load_digits_teacher()
    teacher.network.set_submodule("linear", nn.Identity())
    return replace(
        teacher, name="embedded:digits-features", num_outputs=48, task=Embed(), expected_accuracy=None
    )
