"""The fine-tune that GDFQ, Qimera, IntraQ and FDDA share: ranges that follow, then stay; nothing of a grid is
learned."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from zsq.contract import Bits, Facts, FittedStudent, Silent, StepLog, Student, Teacher
from zsq.imagespec import ImageSpec
from zsq.options import Options
from zsq.quantizers.placement import Placement, place
from zsq.quantizers.running import CurrentMinMax, RunningMinMax
from zsq.runtime import Runtime
from zsq.students.calibration import check_classifier, check_images
from zsq.students.losses import Reduction, distillation, imitation
from zsq.students.training import Course, Training, TrainingOptions, shuffled_batches


class GDFQFTOptions(TrainingOptions):
    """alpha T^2 KL + CE; `iterations=null`, the default, is 80 passes over the images.

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


class GDFQFT(Student):
    """Weights per output channel, min-max of what they are now; activations per tensor, running min-max."""

    name = "gdfq-ft"
    facts = Facts(
        paper="GDFQ, Xu et al. 2020 (arXiv:2003.03603); as in Qimera 2021, IntraQ 2022 and FDDA 2022",
        summary="fine-tuned with min-max ranges against teacher and top-1 class, batch norm frozen",
        deviations=(
            "ranges are an exponential mean without bias; the public code divides the mean by its correction "
            "again at every step, or starts it at 0",
            "classes are the teacher's top-1, for stored images of any source have no labels",
            "80 passes over the images with cosine, after 20 batches that set the ranges: ours; published "
            "are 80,000 steps, 17 hours of two cores on a CIFAR ResNet-20",
            "the network trains on stored images, shifted and mirrored, instead of a generator's stream",
            "outputs of linear bottlenecks are quantized like every input of a layer",
        ),
    )
    options_class: ClassVar[type[Options]] = GDFQFTOptions
    options: GDFQFTOptions

    def __init__(self, options: GDFQFTOptions, runtime: Runtime) -> None:
        """Prepare the training."""
        super().__init__(options, runtime)
        self._training = Training(self.name, options, runtime, self._loss)

    def images_trained(self, teacher: Teacher, num_images: int) -> float:
        """See `Student.images_trained`."""
        return self.options.steps(num_images) * self.options.batch

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
        """See `Student.fit`; published with first and last layer at the bits of all others.

        Raises:
            MismatchError: also for a teacher of embeddings, which has no classes to distil.
        """
        check_images(teacher, pixels_NCHW)
        check_classifier(teacher)
        device = self.runtime.device
        placement = place(teacher.network, bits, first_last=first_last, fold=False)
        for site in placement.of_kind("weight"):
            placement.put(site, CurrentMinMax(site.bits))
        for site in placement.of_kind("activation"):
            placement.put(site, RunningMinMax(site.bits, self.options.range_decay))
        network = placement.network.to(device).to(memory_format=torch.channels_last)
        self._follow_ranges(network, teacher.spec, pixels_NCHW, seed)
        structure = (teacher.network, bits, placement.sites)
        course = Course(network, teacher.network, [{"params": list(network.parameters())}], structure)
        self._training.run(course, teacher.spec, pixels_NCHW, seed, log or Silent())
        _settle(placement)
        return FittedStudent(self.name, bits, first_last, network, teacher.spec, placement.table())

    @torch.no_grad()
    def _follow_ranges(self, network: nn.Module, spec: ImageSpec, pixels_NCHW: Tensor, seed: int) -> None:
        options = self.options
        ranges = [module for module in network.modules() if isinstance(module, RunningMinMax)]
        num_batches = options.range_iterations if ranges else 0
        drawn = shuffled_batches(len(pixels_NCHW), options.batch, num_batches, seed, f"{self.name} ranges")
        for batch in drawn:
            images = spec.pixels_to_norm(pixels_NCHW[batch].to(self.runtime.device))
            network(images.contiguous(memory_format=torch.channels_last))
        for module in ranges:
            module.following = False

    def _loss(self, student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
        options = self.options
        loss = options.alpha * distillation(student_NK, teacher_NK, options.temperature, options.kl_reduction)
        return loss + options.ce_weight * imitation(student_NK, teacher_NK)


def _settle(placement: Placement) -> None:
    """Fixed grids instead of those that followed: the same values from now on."""
    for site in placement.sites:
        quantizer = placement.get(site)
        if isinstance(quantizer, CurrentMinMax):
            placement.put(site, quantizer.settled(placement.weight(site)))
        elif isinstance(quantizer, RunningMinMax):
            placement.put(site, quantizer.settled())
