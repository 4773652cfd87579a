"""Post-training quantization: ranges from the weights and from the images, nothing trained."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from zsq.contract import Facts, Fit, FittedStudent, Student
from zsq.core.options import Options
from zsq.fitting.calibration import (
    activation_over,
    minmax_weight,
    observe,
    searched_activation,
    searched_weight,
    symmetric_minmax_weight,
    symmetric_searched_weight,
)
from zsq.placement.sites import Site, place
from zsq.quantizers.grids import FakeQuantizer
from zsq.quantizers.observers import Histogram
from zsq.quantizers.ranges import LP_EXPONENT, kl_range, minmax_range, percentile_range


class PTQOptions(Options):
    """How ranges are set."""

    # Measured on a CIFAR ResNet-20 at W4A4: with the search for weights 95.6 % of the predictions are the
    # teacher's, with min-max 93.7 %. At 8 bits the rules agree.
    observer: Literal["minmax", "percentile", "mse", "kl"] = "mse"
    weight_observer: Literal["minmax", "mse"] = "mse"
    granularity: Literal["channel", "tensor"] = "channel"  # of weights
    # Without a zero point, and as many levels above zero as below: what LiteRT and XNNPACK take.
    symmetric_weights: bool = False
    percentile: float = Field(99.99, gt=50, le=100)
    exponent: float = Field(LP_EXPONENT, gt=0)


class PTQ(Student):
    """BN folded; weights per output channel and activations per tensor, affine with an integer zero point."""

    name = "ptq"
    facts = Facts(
        paper="none: min-max, percentile, least Lp error (BRECQ, Li et al. 2021), KL (Migacz, NVIDIA, 2017)",
        summary="ranges set from the images, no training",
    )
    options_class: ClassVar[type[Options]] = PTQOptions
    options: PTQOptions
    folds_batch_norm = True

    def run(self, fit: Fit) -> FittedStudent:
        """Nothing is random. With A32 the images are not looked at."""
        device = self.runtime.device
        placement = place(
            fit.teacher.network, fit.teacher.example(), fit.bits, first_last=fit.first_last, fold=True
        )
        network = placement.network.to(device)
        for site in placement.of_kind("weight"):
            placement.put(site, self._weight_quantizer(placement.weight(site), site.bits))
        for site, histogram in observe(placement, fit.teacher.spec, fit.pixels_NCHW, device).items():
            placement.put(site, self._activation_quantizer(site, histogram).to(device))
        return self.result(fit, network, placement.table())

    def _weight_quantizer(self, weight: Tensor, bits: int) -> FakeQuantizer:
        options = self.options
        per_channel = options.granularity == "channel"
        if options.weight_observer == "mse":
            searched = symmetric_searched_weight if options.symmetric_weights else searched_weight
            return searched(weight, bits, options.exponent, per_channel)
        minmax = symmetric_minmax_weight if options.symmetric_weights else minmax_weight
        return minmax(weight, bits, per_channel)

    def _activation_quantizer(self, site: Site, histogram: Histogram) -> FakeQuantizer:
        options = self.options
        if options.observer == "mse":
            return searched_activation(histogram, site.bits, options.exponent)
        low, high = {
            "minmax": lambda: minmax_range(histogram),
            "percentile": lambda: percentile_range(histogram, options.percentile),
            "kl": lambda: kl_range(histogram, site.bits),
        }[options.observer]()
        return activation_over(low, high, site.bits)
