"""A MobileNetV2 (Sandler et al. 2018) for 32-px images: half the width, fewer blocks, 0.13 M parameters."""

from __future__ import annotations

from torchvision.models import MobileNetV2

# Expansion, channels before the width factor, blocks, stride of the first.
BLOCKS = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 2, 2], [6, 64, 2, 2], [6, 96, 1, 1]]


class CifarMobileNet(MobileNetV2):
    """(N, 3, 32, 32) -> (N, 10)."""

    def __init__(self) -> None:
        super().__init__(num_classes=10, width_mult=0.5, inverted_residual_setting=BLOCKS)
