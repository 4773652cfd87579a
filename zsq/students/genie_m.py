"""GENIE-M: QDrop with the step of each weight channel learned along with its rounding."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from zsq.contract import Facts
from zsq.core.options import Options
from zsq.fitting.reconstruction import ParameterGroup, Phase
from zsq.fitting.unitwise import UnitwiseOptions, UnitwiseStudent
from zsq.quantizers.grids import FakeQuantizer, integer_range
from zsq.quantizers.observers import Histogram
from zsq.quantizers.ranges import lp_symmetric
from zsq.widths import MOST_BITS, Bits, GridWidth


class GenieMOptions(UnitwiseOptions):
    """Constants of GENIE-M. `second_input=null` is QDrop's setting; `keep` is QDrop's too.

    `step_learning_rate` is that of students whose weights have `rate_bits` or fewer: it was published for 2
    to 4 bits. A finer grid has as many times less as its steps are smaller.
    """

    rounding_weight: float = Field(1.0, ge=0)
    second_input: GridWidth | None = MOST_BITS
    residual_stream: Literal["float", "quantized"] = "quantized"
    keep: float = Field(0.5, ge=0, le=1)
    step_learning_rate: float = Field(1e-4, gt=0)
    rate_bits: GridWidth = 4
    activation_learning_rate: float = Field(4e-5, gt=0)

    def step_rate(self, weight_bits: int) -> float:
        """Adam's learning rate for the steps of a student whose weights have so many bits."""
        finer = max(1.0, (2**weight_bits - 1) / (2**self.rate_bits - 1))
        return self.step_learning_rate / finer


class GenieM(UnitwiseStudent):
    """Learns steps and rounding of weights together. The integers before rounding are those of the first
    step; BN stays a layer."""

    name = "genie-m"
    facts = Facts(
        paper="GENIE, Jeon et al. 2023 (arXiv:2212.04780)",
        summary="learned weight steps, rounding and activation steps, block by block, as QDrop",
        deviations=(
            "2,000 iterations per block instead of 20,000 where the network takes 64 px or less",
            "with fewer iterations than published the rounding learns as many times faster",
            "an activation beyond its range counts as clipped in gradients, as in LSQ, whose factor "
            "1 / sqrt(N Qp) they have; in the public code it is inside up to half a step further",
            "a weight channel of one sign has zero in its range, so that its zero point is on the grid; the "
            "public code gives it a range of its own",
            "a batch has the size asked for; in the public code it is the number of images over 32",
            "steps of activations start from all images instead of the first batch",
            "above 4 bits the steps of weights learn as many times slower as they are smaller; "
            "rate_bits=8 does as the public code",
        ),
    )
    options_class: ClassVar[type[Options]] = GenieMOptions
    options: GenieMOptions
    folds_batch_norm = False

    def activation_quantizer(self, histogram: Histogram, bits: int) -> FakeQuantizer:
        """Per tensor, zero point 0: unsigned, or signed where values are below zero."""
        values, counts = histogram.occupied()
        grid = integer_range(bits, signed=histogram.low < 0)
        step = lp_symmetric(values[None], *grid, counts).squeeze(0)
        return FakeQuantizer(step, step.new_zeros(()), *grid, "activation", learned=True)

    def phases(self, bits: Bits) -> tuple[Phase, ...]:
        """One phase, which trains everything."""
        options = self.options
        groups = (
            ParameterGroup("rounding", options.rounding_rate),
            ParameterGroup("weight step", options.step_rate(bits.weights), cosine=True),
            ParameterGroup("activation step", options.activation_learning_rate, cosine=True),
        )
        return self.single_phase("joint", groups, "mixed", options.keep)
