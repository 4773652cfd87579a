"""Accurate activation clipping and adaptive batch normalization: peaks as ranges, BN statistics put right."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from zsq.contract import Bits, Facts, FittedStudent, Options, StepLog, Student, Teacher
from zsq.errors import NoBatchNormError
from zsq.quantizers.correction import adapt_batch_norms
from zsq.quantizers.placement import place
from zsq.quantizers.ranges import minmax_range, percentile_range
from zsq.quantizers.trace import trace
from zsq.students.calibration import BATCH, activation_over, check_images, observe, weight_quantizer


class AACABNOptions(Options):
    """`percentile` 100 is the peak itself; `statistics` of BN are re-estimated by a rule of
    `zsq.quantizers.correction.adapt_batch_norms`, or stay as stored."""

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
        ("fold", "equalize", "absorb-bias"), "its batch norms are adapted, not folded"
    ) | {"adapt-bn": "it adapts batch norms itself"}

    def fit(
        self,
        teacher: Teacher,
        pixels_NCHW: Tensor,
        bits: Bits,
        *,
        first_last: int | None = None,
        seed: int = 0,
        log: StepLog | None = None,
    ) -> FittedStudent:
        """See `Student.fit`; nothing is random.

        Raises:
            NoBatchNormError: a network without stored statistics.
        """
        check_images(teacher, pixels_NCHW)
        device, spec, options = self.runtime.device, teacher.spec, self.options
        placement = place(teacher.network, bits, first_last=first_last, fold=False)
        network = placement.network.to(device)
        for site, histogram in observe(placement, spec, pixels_NCHW, device).items():
            peaks = minmax_range(histogram)
            low, high = (
                peaks if options.percentile == 100 else percentile_range(histogram, options.percentile)
            )
            placement.put(site, activation_over(low, high, site.bits).to(device))
        for site in placement.of_kind("weight"):
            placement.put(site, weight_quantizer(placement.weight(site), site.bits, search=False))
        if options.statistics != "stored":
            batches = [
                spec.pixels_to_norm(pixels.to(device)).contiguous(memory_format=torch.channels_last)
                for pixels in pixels_NCHW.split(BATCH)
            ]
            if not adapt_batch_norms(network, trace(teacher.network), batches, options.statistics):
                found = f"teacher {teacher.name} has no batch norm to adapt"
                raise NoBatchNormError(found, "stored statistics", "use student ptq")
        if log is not None:
            log.advance(len(pixels_NCHW))
        return FittedStudent(self.name, bits, first_last, network, spec, placement.table(), teacher.task)
