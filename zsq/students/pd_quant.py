"""PD-Quant: QDrop, with a look at what a unit's error does to the network's output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from zsq.contract import Facts, Fit, FittedStudent, Teacher
from zsq.core.errors import MismatchError
from zsq.core.options import Options
from zsq.core.runtime import Runtime
from zsq.fitting.distribution import BATCH, Correction
from zsq.fitting.dropping import DEVIATIONS, DroppingOptions, DroppingStudent
from zsq.fitting.features import Features, fits_in_memory
from zsq.fitting.losses import distillation
from zsq.fitting.reconstruction import Phase
from zsq.fitting.unit_losses import UnitLoss, prediction_loss
from zsq.fitting.unitdata import Beyond, UnitData
from zsq.fitting.unitwise import Fitting
from zsq.placement.sites import Site
from zsq.placement.subgraphs import beyond, unit_network, up_to
from zsq.placement.units import Unit
from zsq.quantizers.observers import Histogram, Observer
from zsq.tasks import Task
from zsq.tasks.classify import Classify
from zsq.widths import Bits

# Images from which the ranges of a unit's activations come.
RANGE_IMAGES = 256
# An image of a step with what follows the unit, in such of `lsq-kd`: ResNet-20.
PREDICTION_STEP = 3.3


class PDQuantOptions(DroppingOptions):
    """Constants of PD-Quant for ResNets.

    `prediction_weight` is the paper's 1 / lambda_r; 0 leaves the term out. `distance` is lambda_c: 0.01 for
    RegNet, 0.005 for MobileNetV2, 0.001 for MNasNet, where `temperature` is 1 for the last two.
    `correction_iterations=0` leaves the features as they are.
    """

    learning_rate: float = Field(3e-3, gt=0)
    temperature: float = Field(4.0, gt=0)
    prediction_weight: float = Field(10.0, ge=0)
    correction_iterations: int = Field(500, ge=0)
    distance: float = Field(0.02, gt=0)


class PDQuant(DroppingStudent):
    """As QDrop; a unit also keeps the teacher's prediction, and imitates features that batch norms expect."""

    name = "pd-quant"
    facts = Facts(
        paper="PD-Quant, Liu et al. 2023 (arXiv:2212.07048)",
        summary="as QDrop, with the change of the network's prediction in each unit's loss, and features "
        "corrected towards batch norm statistics",
        deviations=(
            *DEVIATIONS,
            "ranges of a unit's activations come from 256 images with its other activations in float",
            "of tasks without classes, the task's own loss in place of the divergence of predictions",
            "all images are corrected; the public code drops what is left over after batches of 32",
        ),
    )
    options_class: ClassVar[type[Options]] = PDQuantOptions
    options: PDQuantOptions

    def __init__(self, options: PDQuantOptions, runtime: Runtime) -> None:
        """The task is the teacher's, once there is one."""
        super().__init__(options, runtime)
        self._task: Task = Classify()

    def run(self, fit: Fit) -> FittedStudent:
        """As QDrop."""
        self._task = fit.teacher.task
        return super().run(fit)

    def check(self, fit: Fit) -> None:
        """Refuse a teacher whose outputs have no loss, too.

        Raises:
            MismatchError: also for that.
        """
        super().check(fit)
        task = fit.teacher.task
        if self.options.prediction_weight and not (task.has_classes or self._has_loss(fit)):
            found = f"teacher {fit.teacher.name} of task '{task.name}'"
            raise MismatchError(
                found, "one tensor as output and a task that trains", "use prediction_weight=0, or qdrop"
            )

    @staticmethod
    def _has_loss(fit: Fit) -> bool:
        return fit.teacher.task.trains and fit.teacher.num_outputs is not None

    def training_work(self, teacher: Teacher, num_images: int, bits: Bits) -> float:
        """What follows each unit is passed in each step, where the prediction counts; a step of a correction
        is about as much as one of `lsq-kd`."""
        trained = self.images_trained(teacher, num_images, bits)
        corrected = self.options.correction_iterations * num_images if trained else 0
        return trained * (PREDICTION_STEP if self.options.prediction_weight else 1.0) + corrected

    def phases(self, bits: Bits) -> tuple[Phase, ...]:
        """That of QDrop, with the term of the prediction."""
        (phase,) = super().phases(bits)
        weight = self.options.prediction_weight
        losses: tuple[UnitLoss, ...] = (prediction_loss(weight, self._prediction),) if weight else ()
        return (replace(phase, losses=(*phase.losses, *losses)),)

    def _prediction(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL(teacher || student) of the softened outputs, without the factor T^2 of distillation; the task's
        loss where there are no classes."""
        if not self._task.has_classes:
            loss: Tensor = self._task.loss(student, teacher)
            return loss
        temperature = self.options.temperature
        return distillation(student, teacher, temperature) / temperature**2

    @torch.no_grad()
    def histograms(self, state: Fitting, unit: Unit | None, sites: list[Site]) -> Mapping[Site, Histogram]:
        """From what the student gives, with the unit's weights rounded to nearest."""
        if unit is None or not sites:
            return state.histograms
        observers = {site: Observer(site.name) for site in sites}
        for site, observer in observers.items():
            state.placement.put(site, observer)
        part = up_to(state.network, [unit.output])
        images = replace(state.images, pixels_NCHW=state.images.pixels_NCHW[:RANGE_IMAGES])
        for _, norm in images.batches():
            part(norm)
        return {site: observer.histogram() for site, observer in observers.items()}

    @torch.no_grad()
    def prepared(self, state: Fitting, unit: Unit, data: UnitData) -> UnitData:
        """With corrected features, and what follows the unit."""
        if self.options.correction_iterations:
            data = self._corrected(state, unit, data)
        if not self.options.prediction_weight:
            return data
        return replace(data, beyond=Beyond(beyond(state.full, unit.output), state.images, state.outputs))

    def _corrected(self, state: Fitting, unit: Unit, data: UnitData) -> UnitData:
        runtime = self.runtime
        correction = Correction.of(state.unfolded, state.network, unit)
        if correction is None:
            return data
        plain = unit_network(state.full, unit, lambda node, module: module).to(runtime.device)
        resident = fits_in_memory(data.num_images, [unit.input_shape, unit.output_shape])
        entering = Features(data.num_images, unit.input_shape, runtime, resident)
        leaving = Features(data.num_images, unit.output_shape, runtime, resident)
        options = self.options
        for index in torch.arange(data.num_images).split(BATCH):
            moved = correction.corrected(
                data.full.rows(index).clone(), options.correction_iterations, 1 / options.distance
            )
            entering.write(int(index[0]), moved)
            leaving.write(int(index[0]), plain(moved))
        # The student's input is of the images as they are.
        quantized = data.full if data.quantized is None else data.quantized
        return replace(data, full=entering, quantized=quantized, target=leaving)
