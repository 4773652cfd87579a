"""FDD (PRCV 2023): PSAQ-ViT through a band of spatial frequencies that widens in five stages."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from zsq.contract import Facts
from zsq.core.imagespec import ImageSpec, shortest_side
from zsq.core.options import scales_with_iterations
from zsq.engine.attention import AttentionTeacher
from zsq.engine.invert import Inversion, Stage
from zsq.engine.memories import on_images
from zsq.engine.objectives import TeacherPass, Term, cross_entropy
from zsq.engine.variation import DEVIATIONS, EntropyOptions, VariationMethod
from zsq.engine.views import BandFilter, Clip

# Of each stage: outer radius of the low pass, then outer and inner radius of the band.
RADII = ((0.2, 0.4, 0.1), (0.3, 0.5, 0.2), (0.4, 0.6, 0.3), (0.5, 0.7, 0.4), (0.6, 1.0, 0.0))


class FDDOptions(EntropyOptions):
    """Constants of the public code.

    warmup: of each stage. jitter: largest shift, of the last stage. ce_weight: of the class targets while the
    low frequencies are shown; the band has half of it and `kl_weight`.
    """

    warmup: int = scales_with_iterations(40, ge=0)
    jitter: int = Field(33, ge=0)
    kl_weight: float = Field(0.5, ge=0)

    @classmethod
    def published(cls, spec: ImageSpec) -> dict[str, Any]:
        """The shift is .15 of the image. Signals are not flipped."""
        return {"jitter": int(0.15 * shortest_side(spec.size)), "flip": not spec.is_signal}


def lengths(iterations: int) -> list[tuple[int, int]]:
    """Iterations of each stage: on the low frequencies, then on the band."""
    ends = [iterations * number // len(RADII) for number in range(len(RADII) + 1)]
    return [((end - start) // 2, end - start - (end - start) // 2) for start, end in pairwise(ends)]


def low_to_band(forward: TeacherPass) -> Tensor:
    """Mean over images of KL(p_low || p_band): of a batch of bands and behind it the same images' low
    frequencies, which have no gradient of it."""
    band, low = forward.logits_NK.chunk(2)
    wanted = low.detach().log_softmax(1)
    return F.kl_div(band.log_softmax(1), wanted, reduction="batchmean", log_target=True)


class FDD(VariationMethod):
    """Pixels; in each stage low frequencies, then a band of them, as PSAQ-ViT; both should be seen alike."""

    name = "fdd"
    options_class = FDDOptions
    facts = Facts(
        paper="Frequency-domain decoupling for data-free quantization of vision transformers, PRCV 2023",
        summary="psaq on low, then on middle spatial frequencies, which the teacher should see alike",
        needs_labels=True,
        needs_attention=True,
        deviations=(
            *DEVIATIONS,
            "bands are real images that keep their sign, around the zero frequency; the code folds them",
            "the entropy of a band is that of the band; in the code it is that of the low frequencies",
        ),
    )

    @classmethod
    def teacher_passes(cls, options: Any, count: int) -> int:
        """A band takes two: its image's low frequencies are shown too."""
        return count * sum(of_low + 2 * of_band for of_low, of_band in lengths(options.iterations))

    def inversion(self, batch: int) -> Inversion:
        """The paper's curriculum."""
        o = self.options
        tapped = AttentionTeacher(self.teacher, ("outputs",), self.name)
        variation = self.variation(batch)
        entropy = o.patch_entropy()
        low = self.terms(variation, Term("pse", o.entropy_weight, entropy))
        kl = Term("kl", o.kl_weight, low_to_band)
        band = [
            Term("pse", o.entropy_weight, on_images(entropy, _first)),
            Term("ce", o.ce_weight / 2, on_images(cross_entropy, _first)),
            Term("tv", o.tv_weight, on_images(variation.loss, _first)),
            kl,
        ]
        return Inversion(
            tapped,
            self.pixels(batch),
            [*low, kl],
            self._stages(tuple(low), tuple(band)),
            self.runtime,
            memories=[variation],
            attention=tapped,
        )

    def _stages(self, low: tuple[Term, ...], band: tuple[Term, ...]) -> list[Stage]:
        o, clip = self.options, Clip(self.teacher.spec, self.runtime.device)
        stages = []
        pairs = zip(RADII, lengths(o.iterations), strict=True)
        for number, ((low_outer, outer, inner), (of_low, of_band)) in enumerate(pairs, 1):
            moved = self.moved(o.jitter * number // len(RADII))
            low_pass, both = BandFilter((0, low_outer)), BandFilter((inner, outer), (0, low_outer))
            stages.append(Stage(of_low, (low_pass, clip, *moved), low))
            stages.append(Stage(of_band, (both, clip, *moved), band, continues=of_low > 0, passes=2))
        return stages


def _first(rows: int) -> slice:
    """The bands, which stand before the low frequencies."""
    return slice(rows // 2)
