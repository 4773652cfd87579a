"""Students that train the whole network: put quantizers in place, run a course of training, fix the grids."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from zsq.contract import Fit, FittedStudent, Student, Teacher
from zsq.core.errors import MismatchError, OptionError
from zsq.core.layout import channels_last
from zsq.core.runtime import Runtime
from zsq.fitting.calibration import check_classifier
from zsq.fitting.gradual import Gradual
from zsq.fitting.losses import distillation
from zsq.fitting.starts import as_chain, check_start
from zsq.fitting.training import Course, Training
from zsq.passes.pruning import prunable
from zsq.placement.sites import Placement, place, placement_of
from zsq.placement.subgraphs import structure
from zsq.quantizers.grids import Quantizer, holds_zero
from zsq.quantizers.running import CurrentMinMax, RunningRange
from zsq.tasks import TASKS, Task
from zsq.tasks.classify import Classify
from zsq.widths import Bits

# A training step in float, and a forward pass such as the teacher's in a step, beside a step of `lsq-kd`:
# ResNet-20.
FLOAT_STEP, FORWARD_STEP = 0.7, 0.2


class TrainedStudent(Student):
    """A student that the training loop trains; a subclass says with which quantizers and which loss.

    One that can start from another student says what becomes of its quantizers, in `taken_over`.

    `trains_floats`: the student trains at W32A32 too. `quantizes_slopes`: slopes of PReLU layers are weights.
    `takes_tasks`: for teachers without classes, the loss is that of their task.
    """

    takes_tasks: ClassVar[bool] = False
    trains_floats: ClassVar[bool] = False
    quantizes_slopes: ClassVar[bool] = False

    def __init__(self, options: Any, runtime: Runtime) -> None:
        """Prepare the training; its loss is compiled once for all fits."""
        super().__init__(options, runtime)
        if options.sparsity and not holds_zero(self.form):
            found = f"sparsity with student {self.name}"
            raise OptionError(found, "sparsity=0", "its weights are never zero")
        self._training = Training(self.name, options, runtime, self.total_loss)
        self._task: Task = Classify()

    def images_trained(self, teacher: Teacher, num_images: int, bits: Bits) -> float:
        """See `Student.images_trained`."""
        return self.options.steps(num_images) * self.options.batch if self.trains_at(bits) else 0.0

    def training_work(self, teacher: Teacher, num_images: int, bits: Bits) -> float:
        """See `Student.training_work`; less in float."""
        work = super().training_work(teacher, num_images, bits)
        return work if bits.quantize() else work * FLOAT_STEP

    def trains_at(self, bits: Bits) -> bool:
        """Whether a fit at these bits has anything to train."""
        return self.trains_floats or bits.quantize()

    def check(self, fit: Fit) -> None:
        """See `Student.check`; a classifier, unless a subclass learns from something else."""
        super().check(fit)
        self.check_teacher(fit.teacher)
        steps = self.options.steps(len(fit.pixels_NCHW)) if self.trains_at(fit.bits) else 0
        if self.options.sparsity and not steps:
            found = f"sparsity={self.options.sparsity} at {fit.bits} with student {self.name}"
            raise OptionError(found, "a fit that trains", "student kd can prune without quantizing")
        if fit.start is not None:
            check_start(self, fit, fit.start)

    def check_teacher(self, teacher: Teacher) -> None:
        """Refuse a teacher that there is nothing to learn from.

        Raises:
            MismatchError: no classes, and no loss of its task that the student takes.
        """
        task = teacher.task
        if not self.takes_tasks:
            check_classifier(teacher)
        elif not task.trains:
            known = [name for name, kind in TASKS.items() if kind.trains]
            found = f"teacher {teacher.name} has task '{task.name}', which has no loss to train with"
            raise MismatchError(found, f"one of {', '.join(known)}", "use student ptq or genie-m")

    def total_loss(self, student: Any, teacher: Any) -> Tensor:
        """What the training lowers, from what both networks return: `loss`, or that of the task."""
        if self.takes_tasks and not self._task.has_classes:
            return self._task.loss(student, teacher)
        return self.loss(student, teacher)

    def float_network(self, fit: Fit) -> nn.Module:
        """The network that becomes the student, where it does not start from another."""
        return fit.teacher.network

    def loss(self, student: Any, teacher: Any) -> Tensor:
        """The loss, from what both networks give on a batch: of logits `distillation`, at the option
        `temperature`."""
        return distillation(student, teacher, self.options.temperature)

    @abstractmethod
    def put_quantizers(self, placement: Placement, fit: Fit) -> None:
        """Quantizers as they are before the first step; the network is on the runtime's device."""

    def taken_over(self, quantizer: Quantizer) -> nn.Module:
        """What stands in place of a quantizer of the student that this one starts from."""
        raise NotImplementedError

    def course(self, placement: Placement, fit: Fit) -> Course:
        """What is trained and what it follows: all parameters, and the teacher's outputs."""
        network = placement.network
        structure = (fit.teacher.network, fit.bits, placement.sites)
        return Course(network, fit.teacher.network, [{"params": list(network.parameters())}], structure)

    def settle(self, placement: Placement) -> None:
        """Called after the training, to fix grids that still move; by default there are none."""

    def run(self, fit: Fit) -> FittedStudent:
        """Without quantizers the network stays the teacher's, unless the student trains floats."""
        teacher = fit.teacher
        self._task = teacher.task
        placement = self._placed(fit) if fit.start is None else self._continued(fit.start)
        network = placement.network
        if fit.start is not None:
            fit = replace(fit, masks={**fit.masks, **_pruned_in(fit.start)})
        if self.trains_at(fit.bits):
            course = self.course(placement, fit)
            if fit.start is not None:
                # Another start may have batch norms folded, or other grids at the same places.
                course = replace(course, structure=structure(network))
            course = _without_pruned(course, fit.masks, self.runtime.device)
            gradual = self._gradual(network, fit)
            if gradual is not None:
                course = _then(course, gradual.after_step)
            self._training.run(course, fit)
            if gradual is not None:
                fit = replace(fit, masks={**fit.masks, **gradual.masks})
        network.eval().requires_grad_(False)
        self.settle(placement)
        fitted = self.result(fit, network, placement.table())
        return fitted if fit.start is None else as_chain(fit.start, fitted)

    def _gradual(self, network: fx.GraphModule, fit: Fit) -> Gradual | None:
        options = self.options
        if not options.sparsity:
            return None
        weights = {name: network.get_parameter(name) for name in prunable(network)}
        if not weights:
            found = f"sparsity={options.sparsity} for teacher {fit.teacher.name}"
            raise MismatchError(found, "a layer between the first and the last", "leave sparsity out")
        steps, together = options.steps(len(fit.pixels_NCHW)), options.sparsity_over == "network"
        return Gradual(weights, options.sparsity, together, steps, fit.masks)

    def places(self, fit: Fit) -> Placement:
        """Where quantizers go, in a copy of `float_network`."""
        return place(
            self.float_network(fit),
            fit.teacher.example(),
            fit.bits,
            first_last=fit.first_last,
            fold=False,
            slopes=self.quantizes_slopes,
        )

    def _placed(self, fit: Fit) -> Placement:
        placement = self.places(fit)
        network = channels_last(placement.network.to(self.runtime.device))
        self.put_quantizers(placement, fit)
        network.to(self.runtime.device)
        return placement

    @torch.no_grad()
    def _continued(self, start: FittedStudent) -> Placement:
        """Network and places as the student before left them, so also with batch norms folded."""
        placement = placement_of(start)
        for site in placement.sites:
            quantizer = placement.get(site)
            assert isinstance(quantizer, Quantizer)
            placement.put(site, self.taken_over(quantizer))
        for site in placement.of_kind("weight"):
            # On the last level, divided by its step, it can come out beyond it, where there is no gradient.
            weight = placement.weight(site)
            weight.copy_(torch.nextafter(weight, torch.zeros_like(weight)))
        channels_last(placement.network.to(self.runtime.device))
        return placement


def _pruned_in(start: FittedStudent) -> dict[str, Tensor]:
    """The masks of the weights that were pruned on the way to this student."""
    return {name: start.network.get_parameter(name) != 0 for name in start.kept}


def _without_pruned(course: Course, masks: Mapping[str, Tensor], device: str) -> Course:
    """The course in which pruned weights are zero again after each step."""
    if not masks:
        return course
    held = [(course.network.get_parameter(name), mask.to(device)) for name, mask in masks.items()]

    def mask() -> None:
        for weight, mask in held:
            weight.mul_(mask)

    return _then(course, mask)


def _then(course: Course, more: Callable[[], None]) -> Course:
    """The course with `more` after each of its steps."""

    def after_step() -> None:
        course.after_step()
        more()

    return replace(course, after_step=after_step)


def settle_ranges(placement: Placement) -> None:
    """Replace every quantizer whose range follows its tensor by the fixed grid that it has now."""
    for site in placement.sites:
        quantizer = placement.get(site)
        if isinstance(quantizer, CurrentMinMax):
            placement.put(site, quantizer.settled(placement.weight(site)))
        elif isinstance(quantizer, RunningRange):
            placement.put(site, quantizer.settled())
