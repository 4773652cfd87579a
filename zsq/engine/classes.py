"""Class-wise statistics of a batch that mixes classes, and what is remembered of each class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zsq.engine.executed import blank
from zsq.engine.statistics import LayerSums, TappedTeacher


@dataclass(frozen=True)
class ClassMoments:
    """Mean and biased variance of one layer's input over each class's images and positions, (K, C).

    Rows of classes without an image, `images_K` 0, hold the layer's targets.
    """

    mean_KC: Tensor
    var_KC: Tensor
    images_K: Tensor


def class_moments(sums: LayerSums, classes_N: Tensor, num_classes: int, weights_N: Tensor) -> ClassMoments:
    """Statistics by class; `weights_N` 0 leaves an image out."""
    empty_KC = sums.s1_NC.new_zeros(num_classes, sums.s1_NC.shape[1])
    images_K = sums.s1_NC.new_zeros(num_classes).index_add(0, classes_N, weights_N)
    count_K1 = (images_K * sums.num_positions).clamp_min(1)[:, None]
    gap_KC = empty_KC.index_add(0, classes_N, sums.s1_NC * weights_N[:, None]) / count_K1
    square_KC = empty_KC.index_add(0, classes_N, sums.s2_NC * weights_N[:, None]) / count_K1
    var_KC = sums.over_calls((square_KC - gap_KC.square()).clamp_min(0))
    gap_KC = sums.over_calls(gap_KC)
    seen_K1 = images_K[:, None] > 0
    return ClassMoments(sums.mean_C + gap_KC, torch.where(seen_K1, var_KC, sums.var_C), images_K)


def first_deep_layer(num_layers: int) -> int:
    """Index from which layers count as deep in ClusterQ and FDDA: int((L + 1) / 2) - 2, at least 0."""
    return max(0, (num_layers + 1) // 2 - 2)


def layer_widths(tapped: TappedTeacher) -> list[int]:
    """Number of channels of each tapped layer."""
    with torch.no_grad():
        _, layers = tapped(blank(tapped.network, tapped.spec))
    return [len(sums.mean_C) for sums in layers]


class ClassCentres:
    """Mean feature of the finished images of each class."""

    def __init__(self, num_classes: int, length: int, device: str) -> None:
        """Empty: no class has a centre."""
        self.sums_KF = torch.zeros(num_classes, length, device=device)
        self.images_K = torch.zeros(num_classes, device=device)

    def clear(self) -> None:
        """Forget everything, in place."""
        self.sums_KF.zero_()
        self.images_K.zero_()

    def add(self, features_NF: Tensor, classes_N: Tensor) -> None:
        """Count these images in."""
        self.sums_KF.index_add_(0, classes_N, features_NF.to(self.sums_KF))
        self.images_K.index_add_(0, classes_N, torch.ones_like(classes_N, dtype=self.images_K.dtype))

    def of(self, classes_N: Tensor) -> tuple[Tensor, Tensor]:
        """Centres (N, F) of these classes and whether (N,) they have one."""
        images_N = self.images_K[classes_N]
        return self.sums_KF[classes_N] / images_N.clamp_min(1)[:, None], images_N > 0
