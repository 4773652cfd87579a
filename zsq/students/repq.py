"""RepQ-ViT: inputs behind a LayerNorm calibrated per channel and brought to one step; attention on powers of
the root of two."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from zsq.contract import Facts, Fit, FittedStudent, Student, Teacher
from zsq.core.errors import MismatchError
from zsq.core.options import Options
from zsq.fitting.calibration import activation_on, norm_batches, observe, rows_of, weight_on
from zsq.graph import capture
from zsq.passes.reparametrization import reparametrize
from zsq.placement.layer_norms import NormedLayers, normed_layers
from zsq.placement.policies import softmax_sites
from zsq.placement.sites import Placement, Site, place
from zsq.quantizers.grids import FakeQuantizer
from zsq.quantizers.logarithmic import LogSqrt2Quantizer
from zsq.quantizers.ranges import percentile_activation, percentile_affine

# A channel's step is at least this part of the mean of all: those of constant channels would be zero.
LEAST_STEP = 1e-3


class RepQ(Student):
    """Weights per output channel, activations per tensor, both affine; nothing is trained."""

    name = "repq"
    facts = Facts(
        paper="RepQ-ViT, Li et al. 2023 (arXiv:2212.08254)",
        summary="for transformers: channels behind a LayerNorm brought to one step, attention on a "
        "logarithmic grid; nothing trained",
        needs_layer_norm=True,
        deviations=(
            "the zero point that all channels share is rounded: in the public code it is a mean",
            "every linear layer behind a LayerNorm, the last one too, is calibrated per channel",
            "ranges are those of the teacher on all images, not of the quantized one on 32",
            "ranges of weights, and of activations with one step from the start, hold zero",
        ),
    )
    options_class: ClassVar[type[Options]] = Options
    folds_batch_norm = True
    form = "log-sqrt2"

    def check(self, fit: Fit) -> None:
        """See `Student.check`; refuses a teacher of whose LayerNorms none can be scaled."""
        super().check(fit)
        check_layer_norms(self.name, fit.teacher)

    def run(self, fit: Fit) -> FittedStudent:
        """Nothing is random. With A32 the images are not looked at."""
        teacher, device = fit.teacher, self.runtime.device
        placement = place(teacher.network, teacher.example(), fit.bits, first_last=fit.first_last, fold=True)
        network = placement.network.to(device)
        grids = {
            normed.site: self._reparametrized(placement, normed, normed.site, fit)
            for normed in normed_layers(placement, teacher.example()[:1].to(device))
            if normed.site is not None
        }
        attention = softmax_sites(placement)
        for site, histogram in observe(placement, teacher.spec, fit.pixels_NCHW, device).items():
            if site in attention:
                placement.put(site, LogSqrt2Quantizer.searched(histogram, site.bits).to(device))
                continue
            if site not in grids:
                grids[site] = activation_on(*percentile_activation(histogram, site.bits), site.bits)
            placement.put(site, grids[site].to(device))
        self.quantize_weights(placement, fit)
        return self.result(fit, network, placement.table())

    def quantize_weights(self, placement: Placement, fit: Fit) -> None:
        """Round to the nearest; activations are quantized already."""
        for site in placement.of_kind("weight"):
            placement.put(site, percentile_weight(placement.weight(site), site.bits))

    def _reparametrized(
        self, placement: Placement, normed: NormedLayers, site: Site, fit: Fit
    ) -> FakeQuantizer:
        """The grid of what a LayerNorm gives, once its channels are brought to one step."""
        images = norm_batches(fit.teacher.spec, fit.pixels_NCHW, self.runtime.device)
        values_CM = rows_of(placement.network, normed.tensor, images).T
        found_C, zero_C = percentile_affine(values_CM, site.bits, holds_zero=False)
        step_C = found_C.clamp(min=LEAST_STEP * found_C.mean())
        zero_C = (zero_C * found_C / step_C).round()
        step, zero = step_C.mean(), zero_C.mean().round().clamp(0, 2**site.bits - 1)
        reparametrize(placement.network, normed, step_C / step, step * (zero - zero_C))
        return activation_on(step, zero, site.bits)


def percentile_weight(weight: Tensor, bits: int) -> FakeQuantizer:
    """The grid per output channel of the least squared error between percentiles."""
    return weight_on(*percentile_affine(weight.detach().flatten(1), bits), bits, weight.dim())


def check_layer_norms(student: str, teacher: Teacher) -> None:
    """Refuse a teacher of which no LayerNorm feeds linear layers alone.

    Raises:
        MismatchError: it says whether there are LayerNorms at all.
    """
    example = teacher.example()
    network = capture(teacher.network, example)
    if normed_layers(Placement(network, ()), example[:1]):
        return
    count = sum(isinstance(module, nn.LayerNorm) for module in network.modules())
    found = (
        f"{count} LayerNorms, none of which feeds linear layers alone"
        if count
        else "no LayerNorm with a scale"
    )
    raise MismatchError(
        f"student {student}: teacher {teacher.name} has {found}",
        "a LayerNorm in front of a linear layer",
        "use student ptq",
    )
