"""CFWS: 3x3 kernels in a coarse and a fine part, ranges of activations by KL after the ReLU."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from zsq.contract import Facts, Fit, FittedStudent, Student, Teacher
from zsq.core.errors import MismatchError
from zsq.core.options import Options
from zsq.fitting.calibration import observe
from zsq.graph import capture
from zsq.graph.fold import fold_batch_norms
from zsq.placement.branches import merge_branches, split_centres
from zsq.placement.sites import Placement, Site, place
from zsq.quantizers.grids import SMALLEST_STEP, FakeQuantizer, integer_range
from zsq.quantizers.observers import Histogram
from zsq.quantizers.ranges import kl_range, minmax_range
from zsq.widths import FLOAT_BITS, Bits


class CFWSOptions(Options):
    """How ranges are set. The fine part always has a step per output channel."""

    observer: Literal["kl", "minmax"] = "kl"
    coarse_steps: Literal["tensor", "channel"] = "tensor"


class CFWS(Student):
    """RepVGG branches merged into one convolution, BN folded; all grids symmetric.

    Other networks have nothing to merge, and their 3x3 convolutions are split all the same.
    """

    name = "cfws"
    facts = Facts(
        paper="coarse and fine weight splitting, Yang et al. 2023 (arXiv:2312.10588), for RepVGG at W8A8",
        own_rows="its rows are parts of kernels",
        summary="the centre of each 3x3 kernel on a grid of its own, ranges by KL, no training; any task",
        deviations=(
            "the coarse part is a 1x1 convolution instead of a zero-padded 3x3",
            "KL is computed on counts in float64: the published transformation is not known",
            "activations are quantized where they enter a layer, ties to even; biases stay float instead of "
            "16 bits, and the image stays as it is",
        ),
    )
    options_class: ClassVar[type[Options]] = CFWSOptions
    options: CFWSOptions
    folds_batch_norm = True
    refused_passes = dict.fromkeys(
        ("correct-bias", "correct-bias-analytic", "prune", "prune-global"),
        "its layers are parts of the teacher's, merged and split",
    )

    def run(self, fit: Fit) -> FittedStudent:
        """Nothing is random. With W32 nothing is split.

        Raises:
            MismatchError: also for a network without a 3x3 convolution.
        """
        device = self.runtime.device
        placement = self._placement(fit.teacher, fit.bits, fit.first_last)
        network = placement.network.to(device)
        for site in placement.of_kind("weight"):
            # The remainder of each coarse part is in the fine part before that is quantized.
            if site.name.endswith("_coarse.weight"):
                self._quantize_coarse(placement, site)
        for site in placement.of_kind("weight"):
            if not site.name.endswith("_coarse.weight"):
                _quantize(placement, site, "channel")
        for site, histogram in observe(placement, fit.teacher.spec, fit.pixels_NCHW, device).items():
            placement.put(site, self._activation_quantizer(site, histogram).to(device))
        return self.result(fit, network, placement.table())

    def _placement(self, teacher: Teacher, bits: Bits, first_last: int | None) -> Placement:
        module = capture(teacher.network, teacher.example())
        fold_batch_norms(module)
        if merge_branches(module):
            # A BN behind the sum of the branches is behind one convolution now.
            fold_batch_norms(module)
        if bits.weights != FLOAT_BITS and not split_centres(module):
            found = f"teacher {teacher.name} has no 3x3 convolution"
            raise MismatchError(found, "3x3 kernels for cfws to split", "use student ptq")
        return place(module, None, bits, first_last=first_last, fold=False)

    def _quantize_coarse(self, placement: Placement, site: Site) -> None:
        centre = placement.weight(site).detach().clone()
        _quantize(placement, site, self.options.coarse_steps)
        fine = placement.network.get_parameter(site.name.replace("_coarse.weight", ".weight"))
        left = centre - placement.weight(site)
        margin = centre.shape[-1] // 2
        with torch.no_grad():
            fine[:, :, 1, 1] += left[:, :, margin, margin]

    def _activation_quantizer(self, site: Site, histogram: Histogram) -> FakeQuantizer:
        lo, hi = integer_range(site.bits, signed=True)
        if self.options.observer == "minmax":
            ends = minmax_range(histogram)
        else:
            # The levels on one side of zero, which is where a ReLU's values are.
            one_sided = histogram.low >= 0 or histogram.high <= 0
            ends = kl_range(histogram, site.bits - one_sided)
        step = torch.tensor(max(abs(end) for end in ends) / hi)
        return FakeQuantizer(step, torch.zeros(()), lo, hi, "activation")


def _quantize(placement: Placement, site: Site, steps: Literal["tensor", "channel"]) -> None:
    """Round the site's weight to a min-max grid, halves up as published, and put that grid at the site."""
    weight = placement.network.get_parameter(site.name)
    lo, hi = integer_range(site.bits, signed=True)
    axes = tuple(range(1, weight.dim()))
    largest = weight.abs().amax() if steps == "tensor" else weight.abs().amax(dim=axes, keepdim=True)
    step = (largest.detach() / hi).clamp(min=SMALLEST_STEP)
    with torch.no_grad():
        weight.copy_((weight / step + 0.5).floor().clamp(-hi, hi) * step)
    placement.put(site, FakeQuantizer(step, torch.zeros_like(step), lo, hi, "weight"))
