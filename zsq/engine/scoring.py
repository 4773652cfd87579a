"""What the teacher says of finished images, in chunks."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from zsq.contract import Teacher
from zsq.core.errors import NoAttentionError, NoBatchNormError, UntraceableError
from zsq.core.runtime import Runtime
from zsq.engine.attention import tapped_attention
from zsq.engine.executed import images_at_once
from zsq.engine.heads import head_similarities, patch_entropies
from zsq.engine.outputs import PerImage
from zsq.engine.statistics import TappedTeacher, image_distances

SCORE_BATCH = 128


@dataclass(frozen=True)
class AttentionScores:
    """Of N images, float32 on the CPU, by `patch_entropies` and `head_similarities` of `zsq.engine.heads`."""

    patch_entropy_N: Tensor
    head_similarity_N: Tensor


@dataclass(frozen=True)
class Scores:
    """Of N images, float32 on the CPU, whatever the runtime's precision.

    `logits_NK` is None where the task stores none. `bn_distance_N` is NaN for a teacher without BN; of one
    with attention, `attention` is there then.
    """

    logits_NK: Tensor | None
    bn_distance_N: Tensor
    attention: AttentionScores | None = None


class AttentionScorer:
    """What the attention of a teacher says of each image."""

    def __init__(self, teacher: Teacher, runtime: Runtime) -> None:
        """Tap a copy of `teacher`, which is on the runtime's device.

        Raises:
            NoAttentionError: there is no attention that zsq can read.
            UntraceableError: the network cannot be captured.
        """
        self.spec, self.device = teacher.spec, runtime.device
        with warnings.catch_warnings():
            # What is left out is said by the methods that read attention.
            warnings.simplefilter("ignore")
            self.tapped = tapped_attention(teacher, ("logits", "outputs"), "its measure")
        self.at_once = min(SCORE_BATCH, self.tapped.in_chunks.most)

    @classmethod
    def of(cls, teacher: Teacher, runtime: Runtime) -> AttentionScorer | None:
        """None for a teacher whose attention cannot be read."""
        try:
            return cls(teacher, runtime)
        except (NoAttentionError, UntraceableError):
            return None

    @torch.no_grad()
    def score(self, pixels_NCHW: Tensor) -> AttentionScores:
        """Of uint8 images."""
        entropies: list[Tensor] = []
        similarities: list[Tensor] = []
        for pixels in pixels_NCHW.split(self.at_once):
            self.tapped(self.spec.pixels_to_standard(pixels.to(self.device)))
            taps = self.tapped.take()
            entropies.append(patch_entropies(taps, len(pixels)).float().cpu())
            similarities.append(head_similarities(taps, len(pixels)).float().cpu())
        return AttentionScores(torch.cat(entropies), torch.cat(similarities))


class Scorer:
    """What the teacher says of stored images: logits where its task stores them, and each image's own BN
    distance; without BN what its attention says."""

    def __init__(self, teacher: Teacher, runtime: Runtime) -> None:
        """`teacher` is on the runtime's device."""
        self.teacher, self.device = teacher, runtime.device
        self.stores_logits = teacher.task.stores_logits
        self.at_once = images_at_once(teacher.network, teacher.spec, SCORE_BATCH)
        self.tapped: TappedTeacher | None = None
        self.attention: AttentionScorer | None = None
        try:
            self.tapped = TappedTeacher(teacher)
        except NoBatchNormError:
            self.attention = AttentionScorer.of(teacher, runtime)

    @torch.no_grad()
    def score(self, pixels_NCHW: Tensor) -> Scores:
        """Of uint8 images."""
        logits: list[Tensor] = []
        distances: list[Tensor] = []
        for pixels in pixels_NCHW.split(self.at_once):
            standard = self.teacher.spec.pixels_to_standard(pixels.to(self.device))
            if self.tapped is None:
                outputs: PerImage = self.teacher.logits(standard) if self.stores_logits else ()
                distances.append(torch.full((len(pixels),), torch.nan))
            else:
                outputs, layers = self.tapped(standard)
                distances.append(image_distances(layers))
            if self.stores_logits:
                assert isinstance(outputs, Tensor)
                logits.append(outputs)
        return Scores(
            torch.cat(logits).float().cpu() if logits else None,
            torch.cat(distances).float().cpu(),
            None if self.attention is None else self.attention.score(pixels_NCHW),
        )
