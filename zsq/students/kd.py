"""Distillation as Hinton et al. have it, in full precision or through grids that are set once."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from zsq.contract import Bits, Facts, FittedStudent, Options, Silent, StepLog, Student, Teacher
from zsq.errors import OptionError
from zsq.quantizers.placement import place
from zsq.runtime import Runtime
from zsq.seeding import torch_generator
from zsq.students.calibration import (
    check_classifier,
    check_images,
    observe,
    searched_activation,
    weight_quantizer,
)
from zsq.students.losses import distillation, imitation
from zsq.students.training import Course, Training, TrainingOptions


class KDOptions(TrainingOptions):
    """(1 - a) CE + a T^2 KL, a = `share`; CE is to the teacher's top-1 class.

    `start=random` distils into a network of the teacher's architecture with fresh weights.
    """

    temperature: float = Field(4.0, gt=0)
    share: float = Field(1.0, ge=0, le=1)
    start: Literal["teacher", "random"] = "teacher"


class KD(Student):
    """Affine grids of the least error per output channel of a weight, per tensor of an activation."""

    name = "kd"
    facts = Facts(
        paper="Distilling the Knowledge in a Neural Network, Hinton et al. 2015 (arXiv:1503.02531)",
        summary="trained against the teacher's softened outputs, grids fixed; W32A32 distils a float network",
        deviations=(
            "starts from the teacher's weights; start=random for a fresh network of the same architecture",
            "without labels: share = 1, and cross-entropy, where asked for, is to the teacher's top-1 class",
            "nothing is quantized in the paper: our grids are of the least L2.4 error, STE with clipping",
            "Adam 1e-3 with cosine, 160 times 128 images, batch norm frozen: ours",
        ),
    )
    options_class: ClassVar[type[Options]] = KDOptions
    options: KDOptions

    def __init__(self, options: KDOptions, runtime: Runtime) -> None:
        """Prepare the training.

        Raises:
            OptionError: fresh weights under batch norms that are frozen at the statistics of no image.
        """
        if options.start == "random" and options.batch_norm == "frozen":
            raise OptionError("start=random with batch_norm=frozen", "batch_norm=train")
        super().__init__(options, runtime)
        self._training = Training(self.name, options, runtime, self._loss)

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
        """See `Student.fit`; W32A32 trains a float network.

        Raises:
            MismatchError: also for a teacher of embeddings, which has no classes to distil.
        """
        check_images(teacher, pixels_NCHW)
        check_classifier(teacher)
        start = teacher.network if self.options.start == "teacher" else _fresh(teacher.network, seed)
        device = self.runtime.device
        placement = place(start, bits, first_last=first_last, fold=False)
        network = placement.network.to(device).to(memory_format=torch.channels_last)
        for site, histogram in observe(placement, teacher.spec, pixels_NCHW, device).items():
            placement.put(site, searched_activation(histogram, site.bits).to(device))
        for site in placement.of_kind("weight"):
            placement.put(site, weight_quantizer(placement.weight(site), site.bits, search=True))
        structure = (teacher.network, bits, placement.table())
        course = Course(network, teacher.network, [{"params": list(network.parameters())}], structure)
        self._training.run(course, teacher.spec, pixels_NCHW, seed, log or Silent())
        return FittedStudent(self.name, bits, first_last, network, teacher.spec, placement.table())

    def _loss(self, student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
        share = self.options.share
        loss = share * distillation(student_NK, teacher_NK, self.options.temperature)
        return loss if share == 1 else loss + (1 - share) * imitation(student_NK, teacher_NK)


def _fresh(network: nn.Module, seed: int) -> nn.Module:
    """A copy with every parameter and statistic as its layer begins with."""
    copied = copy.deepcopy(network).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(torch_generator(seed, 0, "kd start").get_state())
        for module in copied.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
    return copied
