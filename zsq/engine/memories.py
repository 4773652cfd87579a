"""What class-wise terms remember of earlier steps, and these terms: pure functions of one teacher pass and
of tensors that only change between steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from zsq.engine.classes import class_moments
from zsq.engine.objectives import TeacherPass, of_images
from zsq.engine.statistics import EPSILON, mean_gap_and_var


class Memory(Protocol):
    """Tensors that terms read inside the compiled step, changed outside of it, in place."""

    def before_step(self, iteration: int, generator: torch.Generator) -> None:
        """Draw what this step needs."""

    def after_step(self, iteration: int, forward: TeacherPass) -> None:
        """Learn from this step, whose optimizer step is done; nothing here is differentiated."""


class FreshNoise:
    """A memory: Gaussian noise (rows, C) for the mean and for the spread of each layer, new at every step."""

    def __init__(self, rows: int, widths: Sequence[int], device: str) -> None:
        """`widths`: channels of each layer."""
        self.mean, self.spread = ([torch.zeros(rows, c, device=device) for c in widths] for _ in range(2))

    def before_step(self, iteration: int, generator: torch.Generator) -> None:
        """N(0, 1), drawn on the CPU."""
        for noise in (*self.mean, *self.spread):
            noise.copy_(torch.randn(noise.shape, generator=generator))

    def after_step(self, iteration: int, forward: TeacherPass) -> None:
        """Nothing is learned."""


class ClassCentroids:
    """A memory: each class's mean and std at each layer, as a moving average over steps (ClusterQ)."""

    def __init__(
        self, num_classes: int, widths: Sequence[int], device: str, rate: float, warmup: int, skipped: int
    ) -> None:
        """`rate`: share of the newest value; `warmup`: steps before the first; `skipped`: layers left out."""
        self.rate, self.warmup, self.skipped = rate, warmup, skipped
        self.mean_KC, self.std_KC = (
            [torch.zeros(num_classes, c, device=device) for c in widths] for _ in range(2)
        )
        self.known_K = torch.zeros(num_classes, dtype=torch.bool, device=device)

    def before_step(self, iteration: int, generator: torch.Generator) -> None:
        """Nothing is drawn."""

    def after_step(self, iteration: int, forward: TeacherPass) -> None:
        """Classes with a correctly classified image move; the first value of a class is taken whole."""
        if iteration + 1 < self.warmup:
            return
        classes_N, right_N = asked_classes(forward)
        count = len(self.known_K)
        seen_K = torch.zeros_like(self.known_K, dtype=right_N.dtype).index_add(0, classes_N, right_N) > 0
        share_K1 = (seen_K * (1 - (1 - self.rate) * self.known_K.to(right_N.dtype)))[:, None]
        layers = forward.layers[self.skipped :]
        for sums, mean_KC, std_KC in zip(layers, self.mean_KC, self.std_KC, strict=True):
            found = class_moments(sums, classes_N, count, right_N)
            mean_KC.lerp_(found.mean_KC, share_K1)
            std_KC.lerp_((found.var_KC + EPSILON).sqrt(), share_K1)
        self.known_K |= seen_K


def asked_classes(forward: TeacherPass) -> tuple[Tensor, Tensor]:
    """The class asked of each image (N,), and 1 or 0 (N,) for whether the teacher sees it there."""
    assert forward.targets_NK is not None
    classes_N = forward.targets_NK.argmax(1)
    right_N = forward.logits_NK.detach().argmax(1) == classes_N
    return classes_N, right_N.to(forward.logits_NK.dtype)


def class_alignment(
    centroids: ClassCentroids,
    over: Literal["mean", "sum"] = "mean",
    noise: FreshNoise | None = None,
    scales: tuple[float, float] = (0.0, 0.0),
) -> Callable[[TeacherPass], Tensor]:
    """Squared gaps of each class's mean and std to its centroids, over the images that the teacher classifies
    as asked (ClusterQ's feature distribution alignment; with `noise` of standard deviations `scales` on the
    centroids its intra-class variance). `over`: mean or sum over channels, layers and classes."""

    def loss(forward: TeacherPass) -> Tensor:
        classes_N, right_N = asked_classes(forward)
        # One row per class of the batch: that of its first image.
        rows_N = (classes_N[:, None] == classes_N).int().argmax(1)
        per_layer = []
        for layer, sums in enumerate(forward.layers[centroids.skipped :]):
            found = class_moments(sums, rows_N, len(rows_N), right_N)
            mean_gap = found.mean_KC - centroids.mean_KC[layer][classes_N]
            std_gap = (found.var_KC + EPSILON).sqrt() - centroids.std_KC[layer][classes_N]
            if noise is not None:
                mean_gap = mean_gap - scales[0] * noise.mean[layer]
                std_gap = std_gap - scales[1] * noise.spread[layer]
            squares_NC = mean_gap.square() + std_gap.square()
            squares_N = squares_NC.mean(1) if over == "mean" else squares_NC.sum(1)
            counted_N = (found.images_K > 0) & centroids.known_K[classes_N]
            total = torch.where(counted_N, squares_N, 0.0).sum()
            per_layer.append(total / counted_N.sum().clamp_min(1) if over == "mean" else total)
        layers = torch.stack(per_layer)
        return layers.mean() if over == "mean" else layers.sum()

    return loss


@dataclass(frozen=True)
class ImageCentres:
    """Mean and biased variance of single images at the layers from `skipped` on, a row (K, C) per class."""

    skipped: int
    mean_KC: Sequence[Tensor]
    var_KC: Sequence[Tensor]


def centre_alignment(
    centres: ImageCentres, noise: FreshNoise | None = None, scales: tuple[float, float] = (0.0, 0.0)
) -> Callable[[TeacherPass], Tensor]:
    """Squared gaps of the mean and variance of a batch of one class to that class's centre, averaged over
    channels and layers; `noise` of standard deviations `scales` on the centre: its distorted form (FDDA)."""

    def loss(forward: TeacherPass) -> Tensor:
        assert forward.targets_NK is not None
        asked = forward.targets_NK[:1].argmax(1)
        per_layer = []
        for layer, sums in enumerate(forward.layers[centres.skipped :]):
            gap, var = mean_gap_and_var(sums, "batch")
            mean_gap = sums.mean_C + gap - centres.mean_KC[layer].index_select(0, asked)[0]
            var_gap = var - centres.var_KC[layer].index_select(0, asked)[0]
            if noise is not None:
                mean_gap = mean_gap - scales[0] * noise.mean[layer][0]
                var_gap = var_gap - scales[1] * noise.spread[layer][0]
            per_layer.append(mean_gap.square().mean() + var_gap.square().mean())
        return torch.stack(per_layer).mean()

    return loss


def on_images(
    term: Callable[[TeacherPass], Tensor], rows: Callable[[int], slice]
) -> Callable[[TeacherPass], Tensor]:
    """`term` on some images of the batch: those that `rows` names of its size."""
    return lambda forward: term(of_images(forward, rows(len(forward.viewed_NCHW))))
