"""Students that train: quantizers are put, a course runs, grids are settled."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zsq.contract import Bits, FittedStudent, Silent, StepLog, Student, Teacher
from zsq.quantizers.placement import FLOAT_BITS, Placement, place
from zsq.runtime import Runtime
from zsq.students.calibration import check_classifier, check_images
from zsq.students.training import Course, Training


@dataclass(frozen=True)
class Fit:
    """One fit as asked for."""

    teacher: Teacher
    pixels_NCHW: Tensor
    bits: Bits
    first_last: int | None
    seed: int
    log: StepLog


class TrainedStudent(Student):
    """A student that is a course of the training loop; a subclass says which quantizers and which course.

    `trains_floats`: it trains at W32A32 too. `quantizes_slopes`: of PReLU layers.
    """

    trains_floats: ClassVar[bool] = False
    quantizes_slopes: ClassVar[bool] = False

    def __init__(self, options: Any, runtime: Runtime) -> None:
        """Prepare the training; its loss is compiled once for all fits."""
        super().__init__(options, runtime)
        self._training = Training(self.name, options, runtime, self.loss)

    def images_trained(self, teacher: Teacher, num_images: int) -> float:
        """See `Student.images_trained`."""
        return self.options.steps(num_images) * self.options.batch

    def check(self, teacher: Teacher) -> None:
        """Refuse a teacher that there is nothing to learn from."""
        check_classifier(teacher)

    def start(self, fit: Fit) -> nn.Module:
        """The float network that becomes the student."""
        return fit.teacher.network

    @abstractmethod
    def loss(self, student: Any, teacher: Any) -> Tensor:
        """Of the outputs of both networks on a batch."""

    @abstractmethod
    def put_quantizers(self, placement: Placement, fit: Fit) -> None:
        """Quantizers as they are before the first step; the network is on the runtime's device."""

    def course(self, placement: Placement, fit: Fit) -> Course:
        """What is trained, towards what: all parameters, towards the teacher's outputs."""
        network = placement.network
        structure = (fit.teacher.network, fit.bits, placement.sites)
        return Course(network, fit.teacher.network, [{"params": list(network.parameters())}], structure)

    def settle(self, placement: Placement) -> None:
        """Called after the training: fixed grids in place of those that follow something."""

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
        """See `Student.fit`; without quantizers the network stays the teacher's, unless the student trains
        floats.

        Raises:
            MismatchError: also for a teacher that has no outputs of the kind that the student learns from.
        """
        check_images(teacher, pixels_NCHW)
        self.check(teacher)
        fit = Fit(teacher, pixels_NCHW, bits, first_last, seed, log or Silent())
        placement = place(
            self.start(fit), bits, first_last=first_last, fold=False, slopes=self.quantizes_slopes
        )
        network = placement.network.to(self.runtime.device).to(memory_format=torch.channels_last)
        self.put_quantizers(placement, fit)
        network.to(self.runtime.device)
        if self.trains_floats or bits != Bits(FLOAT_BITS, FLOAT_BITS):
            self._training.run(self.course(placement, fit), teacher.spec, pixels_NCHW, seed, fit.log)
        network.eval().requires_grad_(False)
        self.settle(placement)
        return FittedStudent(
            self.name, bits, first_last, network, teacher.spec, placement.table(), teacher.task
        )
