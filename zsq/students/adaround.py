"""AdaRound: layer by layer, each weight learns whether it rounds up or down."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from zsq.contract import Facts, Teacher
from zsq.core.options import Options
from zsq.fitting.reconstruction import ParameterGroup, Phase
from zsq.fitting.unitwise import UnitwiseOptions, UnitwiseStudent
from zsq.widths import Bits, WidthOrFloat


class AdaRoundOptions(UnitwiseOptions):
    """Constants of AdaRound."""

    iterations: int = Field(10_000, ge=0)
    first_last: WidthOrFloat | None = None


class AdaRound(UnitwiseStudent):
    """Learns the rounding of one layer at a time, on the outputs of the quantized layers before it."""

    name = "adaround"
    facts = Facts(
        paper="AdaRound, Nagel et al. 2020 (arXiv:2004.10568)",
        summary="learned rounding of weights, layer by layer; activation ranges from the images",
        deviations=(
            "2,000 iterations per layer instead of 10,000 where the network takes 64 px or less",
            "with fewer iterations than published the rounding learns as many times faster",
            "beta from 20 to 2, and the search for ranges (L2.4, weights and activations), as in BRECQ",
        ),
    )
    options_class: ClassVar[type[Options]] = AdaRoundOptions
    granularity = "layer"

    def phases(self, bits: Bits) -> tuple[Phase, ...]:
        """One phase, which trains the rounding."""
        groups = (ParameterGroup("rounding", self.options.rounding_rate),)
        return self.single_phase("rounding", groups, "quantized")

    def images_trained(self, teacher: Teacher, num_images: int, bits: Bits) -> float:
        """0 where weights stay float: nothing but their rounding is learned."""
        return super().images_trained(teacher, num_images, bits) if bits.quantize("weight") else 0
