"""PSAQ-ViT (Li, Ma, Chen, Xiao, Gu; ECCV 2022): patches of an image should not resemble each other."""

from __future__ import annotations

from zsq.contract import Facts
from zsq.engine.attention import AttentionTeacher
from zsq.engine.invert import Inversion
from zsq.engine.objectives import Term
from zsq.engine.variation import DEVIATIONS, EntropyOptions, VariationMethod


class PSAQ(VariationMethod):
    """Pixels; entropy of the similarities of patches, class targets, a total variation to reach."""

    name = "psaq"
    options_class = EntropyOptions
    facts = Facts(
        paper="Li et al., Patch Similarity Aware Data-Free Quantization for Vision Transformers, ECCV 2022",
        summary="patches of an image differ as seen by every attention, class targets, total variation",
        needs_labels=True,
        needs_attention=True,
        deviations=(
            *DEVIATIONS,
            "tokens are left out where they are no place of the image; the code also drops the first of each "
            "window of a Swin",
        ),
    )

    def inversion(self, batch: int) -> Inversion:
        """The paper's objective."""
        o = self.options
        tapped = AttentionTeacher(self.teacher, ("outputs",), self.name)
        variation = self.variation(batch)
        terms = self.terms(variation, Term("pse", o.entropy_weight, o.patch_entropy()))
        return Inversion(
            tapped,
            self.pixels(batch),
            terms,
            self.phases(),
            self.runtime,
            memories=[variation],
            attention=tapped,
        )
