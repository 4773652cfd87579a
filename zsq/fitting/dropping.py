"""Students that quantize activations at random while they are fitted: QDrop and what is built on it."""

from __future__ import annotations

from pydantic import Field

from zsq.fitting.reconstruction import ParameterGroup, Phase
from zsq.fitting.unitwise import UnitwiseOptions, UnitwiseStudent
from zsq.widths import Bits

# From QDrop's paper and public code, of all that do as it does.
DEVIATIONS = (
    "2,000 iterations per block instead of 20,000 where the network takes 64 px or less",
    "with fewer iterations than published the rounding learns as many times faster",
    "batches are of shuffled epochs over the images instead of draws with replacement",
    "ranges by clipping both ends and each of them by ratios of its own instead of 100 ranges times "
    "all zero points; of activations from all images instead of 256",
    "beta falls one iteration later than in the public code",
    "an activation beyond its range counts as clipped in gradients, as in LSQ, whose factor "
    "1 / sqrt(N Qp) they have; in the public code it is inside up to half a step further",
    "a weight channel of one sign has zero in its range, so that its zero point is on the grid; the "
    "public code gives it a range of its own",
    "the residual stream stays in float; residual_stream=quantized shares the next layer's quantizer",
)


class DroppingOptions(UnitwiseOptions):
    """`keep` is the probability that an element is quantized, which the public code calls drop_prob.

    QDrop's published `rounding_weight` is 0.1 for MobileNetV2 and 0.2 for MNasNet.
    """

    keep: float = Field(0.5, ge=0, le=1)
    activation_learning_rate: float = Field(4e-5, gt=0)


class DroppingStudent(UnitwiseStudent):
    """Rounding and activation steps together; half of the elements that enter a unit, and of each activation
    in it, come from the quantized network, half from the float one."""

    options: DroppingOptions
    clips_each_end = True

    def groups(self) -> tuple[ParameterGroup, ...]:
        """What is learned."""
        options = self.options
        return (
            ParameterGroup("rounding", options.rounding_rate),
            ParameterGroup("activation step", options.activation_learning_rate, cosine=True),
        )

    def phases(self, bits: Bits) -> tuple[Phase, ...]:
        """One phase, which trains everything."""
        return self.single_phase("joint", self.groups(), "mixed", self.options.keep)
