"""Figures of whole image sets as the teacher sees them; the report shows them beside students' accuracy."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zsq.contract import Teacher
from zsq.core.errors import NoBatchNormError
from zsq.core.runtime import Runtime
from zsq.engine.executed import FeatureTap, images_at_once
from zsq.engine.scoring import AttentionScorer
from zsq.engine.statistics import Alignment, TappedTeacher, set_sums

CHUNK = 128  # images at once, at most


@dataclass(frozen=True)
class SetFigures:
    """What `bn_distances`, `attention_figures` and `intra_class_distances` say of the same sets."""

    layer_names: list[str]
    bn_distance: dict[str, list[float]]
    attention: dict[str, dict[str, float]]
    intra_class_distance: dict[str, float]


def set_figures(teacher: Teacher, arms: Mapping[str, Tensor], runtime: Runtime) -> SetFigures:
    """All of them; `arms` is source -> uint8 (N, C, H, W)."""
    with runtime.in_force(exact=True):
        return SetFigures(
            *bn_distances(teacher, arms, runtime),
            attention_figures(teacher, arms, runtime),
            intra_class_distances(teacher, arms, runtime),
        )


def bn_distances(
    teacher: Teacher, arms: Mapping[str, Tensor], runtime: Runtime
) -> tuple[list[str], dict[str, list[float]]]:
    """Names of the BN layers, and source -> distance per layer; empty for a teacher without BN.

    The distance is mean_c[(m - M)^2 + (s - S)^2]: m and s are the channel's mean and standard deviation over
    all images and positions of the set, M and S those that the layer stores.

    Args:
        arms: source -> uint8 (N, C, H, W).
    """
    try:
        tapped = TappedTeacher(teacher)
    except NoBatchNormError:
        return [], {}
    alignment = Alignment("set")
    return tapped.names, {
        source: [alignment.layer(sums).item() for sums in set_sums(tapped, _chunks(pixels, teacher, runtime))]
        for source, pixels in arms.items()
    }


def attention_figures(
    teacher: Teacher, arms: Mapping[str, Tensor], runtime: Runtime
) -> dict[str, dict[str, float]]:
    """Source -> means over its images of `patch_entropy` and `head_similarity`, see `zsq.engine.heads`; empty
    for a teacher with BN or without attention.

    Args:
        arms: source -> uint8 (N, C, H, W).
    """
    try:
        TappedTeacher(teacher)
    except NoBatchNormError:
        scorer = AttentionScorer.of(teacher, runtime)
    else:
        scorer = None
    if scorer is None:
        return {}
    scores = {source: scorer.score(pixels) for source, pixels in arms.items()}
    return {
        source: {
            "patch_entropy": score.patch_entropy_N.nanmean().item(),
            "head_similarity": score.head_similarity_N.nanmean().item(),
        }
        for source, score in scores.items()
    }


@torch.no_grad()
def intra_class_distances(teacher: Teacher, arms: Mapping[str, Tensor], runtime: Runtime) -> dict[str, float]:
    """Source -> how much images of one class differ (Zhong et al., IntraQ, CVPR 2022).

    It is the mean over classes of the mean cosine distance, 0..2, between the features of two images of the
    class. Features are what enters the last layer; the class is the one that the teacher predicts.
    NaN where no class has two images; empty for a teacher without classes.
    """
    if not teacher.task.has_classes:
        return {}
    network = copy.deepcopy(teacher.network)
    features = FeatureTap(network, teacher)
    distances = {}
    for source, pixels in arms.items():
        found = [
            (network(teacher.spec.standard_to_norm(chunk)).argmax(1), F.normalize(features.take()))
            for chunk in _chunks(pixels, teacher, runtime)
        ]
        classes_N, features_NF = (torch.cat(part) for part in zip(*found, strict=True))
        distances[source] = _spread(classes_N, features_NF)
    return distances


def _spread(classes_N: Tensor, features_NF: Tensor) -> float:
    means = []
    for label in classes_N.unique():
        rows = features_NF[classes_N == label]
        count = len(rows)
        if count > 1:
            # The sum over all pairs is |sum of the rows|^2; `count` of them are a row with itself.
            cosines = (rows.sum(0).square().sum() - count) / (count * (count - 1))
            means.append(1 - cosines.item())
    return sum(means) / len(means) if means else math.nan


def _chunks(pixels: Tensor, teacher: Teacher, runtime: Runtime) -> Iterator[Tensor]:
    at_once = images_at_once(teacher.network, teacher.spec, CHUNK)
    return (teacher.spec.pixels_to_standard(part.to(runtime.device)) for part in pixels.split(at_once))
