"""CIFAR ResNets of He et al. 2016 (section 4.2): 6n+2 layers, shortcuts without parameters (option A)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zsq.core.imagespec import ImageSpec

DEPTHS = (8, 20, 32, 44, 56, 110)

# The public checkpoints were trained with ImageNet's moments.
CIFAR_SPEC = ImageSpec(size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class SubsamplingShortcut(nn.Module):
    """Identity at stride 2, zero channels added: `added` before and `added` after."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + 2 added, H/2, W/2)."""
        return F.pad(x_NCHW[:, :, ::2, ::2], (0, 0, 0, 0, self.added, self.added))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        widens = stride != 1
        self.shortcut = SubsamplingShortcut((channels - channels_in) // 2) if widens else nn.Identity()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Sum of both branches, rectified."""
        y = self.relu1(self.bn1(self.conv1(x_NCHW)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x_NCHW))


class CifarResNet(nn.Module):
    """Three stages of (depth - 2) / 6 blocks with 16, 32 and 64 channels."""

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        num_blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, 1, num_blocks)
        self.layer2 = _stage(16, 32, 2, num_blocks)
        self.layer3 = _stage(32, 64, 2, num_blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, norm_NCHW: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> (N, K) logits."""
        x = self.relu(self.bn1(self.conv1(norm_NCHW)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))


def _stage(channels_in: int, channels: int, stride: int, num_blocks: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(num_blocks - 1)))
