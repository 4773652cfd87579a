"""GZSQ (Sharma, Abraham, Rajendiran; IEEE Transactions on Multimedia; arXiv 2112.02834): no BN needed."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from zsq.contract import Facts
from zsq.core.imagespec import ImageSpec
from zsq.core.options import Options
from zsq.engine.invert import Inversion, InversionMethod, Stage
from zsq.engine.moments import Rules, SummedGaussians
from zsq.engine.objectives import Term, mean_zscore, spread_zscore
from zsq.engine.parameterise import Pixels
from zsq.engine.schedules import Factor, Iterations, Patience, PlateauOptions, Rate
from zsq.engine.statistics import input_sums
from zsq.engine.weights import WeightTapped

OUR_CHOICES = (
    "optimizer, rates, number of iterations and batch are our own: the paper's are not known",
    "pixels are clamped to valid values after each step",
    "the Z-score distance is taken per channel, then its norm over channels",
    "along branches the recursion follows the graph: sums add means and variances, a gate changes nothing",
)


class GZSQOptions(PlateauOptions):
    """The distance as published; `spread_weight` adds the same distance of the standard deviations."""

    iterations: Iterations = 500
    learning_rate: Rate = 0.1
    patience: Patience = 50
    factor: Factor = 0.5
    input_weight: float = Field(1.0, ge=0)
    spread_weight: float = Field(0.0, ge=0)


class GZSQMomentOptions(GZSQOptions):
    """As `gzsq`, with the standard deviations matched too."""

    spread_weight: float = Field(1.0, ge=0)


class GZSQ(InversionMethod):
    """Pixels; Z-score distance of batch statistics to Gaussians summed along the layers; BN is folded."""

    name = "gzsq"
    options_class: ClassVar[type[Options]] = GZSQOptions
    facts = Facts(
        paper="Sharma et al., Generalized Zero-Shot Quantization (GZSQ), IEEE TMM, arXiv 2112.02834",
        summary="Z-score distance to statistics estimated from the weights; needs no BN, labels or data",
        needs_moments=True,
        deviations=(
            *OUR_CHOICES,
            "where a layer has more channels than the one before, the new ones take the published summary "
            "values in turn: which takes which is not known",
        ),
    )
    rules: ClassVar[Rules] = SummedGaussians()

    @classmethod
    def default_batch(cls, spec: ImageSpec) -> int:
        """64, as ZeroQ's, which the paper compares itself with."""
        return 64

    def inversion(self, batch: int) -> Inversion:
        """The paper's objective on pixels."""
        o = self.options
        device = self.runtime.device
        pixels = Pixels(self.teacher.spec, batch, device, o.learning_rate, schedule=o.schedule)
        terms = [
            Term("features", 1.0, lambda forward: mean_zscore(forward.layers)),
            Term("input", o.input_weight, lambda forward: mean_zscore([input_sums(forward.viewed_NCHW)])),
            Term(
                "spread",
                o.spread_weight,
                lambda forward: spread_zscore([input_sums(forward.viewed_NCHW), *forward.layers]),
            ),
        ]
        tapped = WeightTapped(self.teacher, self.rules, self.name)
        return Inversion(tapped, pixels, terms, [Stage(o.iterations)], self.runtime)


class GZSQMoment(GZSQ):
    """GZSQ with the moments that follow from fan-in, biases and activations, and with a term on their std."""

    name = "gzsq_moment"
    options_class = GZSQMomentOptions
    facts = Facts(
        paper="our own variant of Sharma et al. (GZSQ), arXiv 2112.02834",
        summary="moments propagated per channel through weights, activations and pooling; mean and std",
        needs_moments=True,
        deviations=(
            *OUR_CHOICES[:3],
            "moments are propagated per channel with fan-in, biases, activations and pooling, all inputs "
            "of a layer taken as independent; the published recursion ignores all of these",
            "standard deviations are matched too",
        ),
    )
    rules = Rules()
