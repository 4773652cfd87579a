"""The fine-tune that GDFQ, Qimera, IntraQ and FDDA share: ranges follow their tensors for some batches and
then stay. No step or zero point is learned."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from zsq.contract import Facts, Fit
from zsq.core.imagespec import ImageSpec
from zsq.core.layout import maps_channels_last
from zsq.core.options import Options
from zsq.fitting.losses import Reduction, distillation, imitation
from zsq.fitting.trained import TrainedStudent, settle_ranges
from zsq.fitting.training import TrainingOptions, shuffled_batches
from zsq.placement.sites import Placement
from zsq.quantizers.running import CurrentMinMax, RunningMinMax


class GDFQFTOptions(TrainingOptions):
    """The loss is alpha T^2 KL + CE. `iterations=null`, the default, is 80 epochs over the images.

    Published by GDFQ and Qimera for CIFAR: iterations=80000 batch=200 schedule=step decay_every=20000
    range_iterations=800 and otherwise the defaults; for ImageNet batch=16 learning_rate=1e-6. IntraQ and FDDA
    have alpha=20 kl_reduction=batchmean; FDDA schedule=cosine.
    """

    iterations: int | None = Field(None, ge=0)
    optimizer: Literal["adam", "sgd"] = "sgd"
    learning_rate: float = Field(1e-4, gt=0)
    nesterov: bool = True
    weight_decay: float = Field(1e-4, ge=0)
    range_iterations: int = Field(20, ge=1)
    range_decay: float = Field(0.9, ge=0, lt=1)
    temperature: float = Field(20.0, gt=0)
    alpha: float = Field(1.0, ge=0)
    kl_reduction: Reduction = "mean"
    ce_weight: float = Field(1.0, ge=0)


class GDFQFT(TrainedStudent):
    """Weights per output channel, between their extremes at each step; activations per tensor, between
    running means of their extremes."""

    name = "gdfq-ft"
    facts = Facts(
        paper="GDFQ, Xu et al. 2020 (arXiv:2003.03603); as in Qimera 2021, IntraQ 2022 and FDDA 2022",
        summary="fine-tuned with min-max ranges against teacher and top-1 class, batch norm frozen",
        deviations=(
            "ranges are an exponential mean without bias; the public code divides the mean by its correction "
            "again at every step, or starts it at 0",
            "a weight channel of one sign has zero in its range, so that its zero point is on the grid; the "
            "public code gives it a range of its own",
            "classes are the teacher's top-1, for stored images of any source have no labels",
            "80 epochs over the images with cosine, after 20 batches that set the ranges: ours; published "
            "are 80,000 steps, 17 hours of two cores on a CIFAR ResNet-20",
            "the network trains on stored images, shifted and mirrored, instead of a generator's stream",
            "outputs of linear bottlenecks are quantized like every input of a layer",
        ),
    )
    options_class: ClassVar[type[Options]] = GDFQFTOptions
    options: GDFQFTOptions
    trains_floats = True

    def put_quantizers(self, placement: Placement, fit: Fit) -> None:
        """Each weight's range is set anew at every step. Each activation's is set here on some batches, and
        stays."""
        for site in placement.of_kind("weight"):
            placement.put(site, CurrentMinMax(site.bits))
        for site in placement.of_kind("activation"):
            placement.put(site, RunningMinMax(site.bits, self.options.range_decay))
        network = placement.network.to(self.runtime.device)
        self._follow_ranges(network, fit.teacher.spec, fit.pixels_NCHW, fit.seed)

    @torch.no_grad()
    def _follow_ranges(self, network: nn.Module, spec: ImageSpec, pixels_NCHW: Tensor, seed: int) -> None:
        options = self.options
        ranges = [module for module in network.modules() if isinstance(module, RunningMinMax)]
        num_batches = options.range_iterations if ranges else 0
        drawn = shuffled_batches(len(pixels_NCHW), options.batch, num_batches, seed, f"{self.name} ranges")
        for batch in drawn:
            images = spec.pixels_to_norm(pixels_NCHW[batch].to(self.runtime.device))
            network(maps_channels_last(images))
        for module in ranges:
            module.following = False

    def loss(self, student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
        """`zsq.fitting.losses.distillation` and `imitation`, weighted."""
        options = self.options
        loss = options.alpha * distillation(student_NK, teacher_NK, options.temperature, options.kl_reduction)
        return loss + options.ce_weight * imitation(student_NK, teacher_NK)

    def settle(self, placement: Placement) -> None:
        """Fix every grid where it is now."""
        settle_ranges(placement)
