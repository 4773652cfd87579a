"""Accurate activation clipping and adaptive batch normalization: ranges reach up to the peak, BN statistics
are corrected."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from zsq.contract import Facts, Fit, FittedStudent, Student
from zsq.core.errors import NoBatchNormError
from zsq.core.options import Options
from zsq.fitting.calibration import activation_over, minmax_weight, norm_batches, observe
from zsq.graph import capture
from zsq.passes.correction import adapt_batch_norms
from zsq.placement.sites import place
from zsq.quantizers.ranges import minmax_range, percentile_range


class AACABNOptions(Options):
    """`percentile` 100 is the peak itself. `statistics` names the rule by which BN statistics are estimated
    again, see `zsq.passes.correction.adapt_batch_norms`; with `stored` they stay."""

    percentile: float = Field(100.0, gt=50, le=100)
    statistics: Literal["relative", "absolute", "stored"] = "relative"


class AACABN(Student):
    """Weights per output channel, min-max; activations per tensor up to their peak; BN stays a layer."""

    name = "aac-abn"
    facts = Facts(
        paper="Data-Free Quantization with Accurate Activation Clipping and Adaptive Batch Normalization, "
        "He et al. 2022 (arXiv:2204.04215)",
        summary="ranges up to the peak activation, BN statistics re-estimated, no training",
        needs_batch_norm=True,
        deviations=(
            "ranges come from whatever images are given; the paper makes its own, to which classes respond "
            "strongly",
            "not published, so ours: min-max weights per output channel, the exact peak and no percentile",
            "the rule for BN statistics is ours too: stored ones are carried through the shift and scale "
            "that quantization causes on the images (statistics=absolute replaces them)",
        ),
    )
    options_class: ClassVar[type[Options]] = AACABNOptions
    options: AACABNOptions
    refused_passes = dict.fromkeys(
        ("fold", "equalize", "absorb-bias", "smooth"), "its batch norms are adapted, not folded"
    ) | {"adapt-bn": "it adapts batch norms itself"}

    def run(self, fit: Fit) -> FittedStudent:
        """Nothing is random.

        Raises:
            NoBatchNormError: a network without stored statistics.
        """
        teacher, pixels_NCHW = fit.teacher, fit.pixels_NCHW
        device, spec, options = self.runtime.device, teacher.spec, self.options
        placement = place(teacher.network, teacher.example(), fit.bits, first_last=fit.first_last, fold=False)
        network = placement.network.to(device)
        for site, histogram in observe(placement, spec, pixels_NCHW, device).items():
            peaks = minmax_range(histogram)
            low, high = (
                peaks if options.percentile == 100 else percentile_range(histogram, options.percentile)
            )
            placement.put(site, activation_over(low, high, site.bits).to(device))
        for site in placement.of_kind("weight"):
            placement.put(site, minmax_weight(placement.weight(site), site.bits))
        if options.statistics != "stored":
            batches = list(norm_batches(spec, pixels_NCHW, device))
            reference = capture(teacher.network, teacher.example())
            if not adapt_batch_norms(network, reference, batches, options.statistics):
                found = f"teacher {teacher.name} has no batch norm to adapt"
                raise NoBatchNormError(found, "stored statistics", "use student ptq")
        return self.result(fit, network, placement.table())
