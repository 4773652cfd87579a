"""The control of PSAQ-ViT: its run without what it reads of attention."""

from __future__ import annotations

from zsq.contract import Facts
from zsq.engine.attention import Untapped
from zsq.engine.invert import Inversion
from zsq.engine.variation import DEVIATIONS, VariationMethod, VariationOptions


class CETV(VariationMethod):
    """Pixels; class targets and a total variation to reach."""

    name = "ce_tv"
    options_class = VariationOptions
    facts = Facts(
        paper="the ablation of Li et al., PSAQ-ViT, ECCV 2022",
        summary="class targets and total variation alone: what other methods must beat",
        needs_labels=True,
        deviations=DEVIATIONS,
    )

    def inversion(self, batch: int) -> Inversion:
        """PSAQ-ViT's objective without its entropy."""
        variation = self.variation(batch)
        terms, pixels, tapped = self.terms(variation), self.pixels(batch), Untapped(self.teacher)
        return Inversion(tapped, pixels, terms, self.phases(), self.runtime, memories=[variation])
