"""Quantization-aware training: learned steps (LSQ) and distillation from the teacher, without labels."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from zsq.contract import Facts, Fit
from zsq.core.options import Options
from zsq.fitting.calibration import observe
from zsq.fitting.learned_steps import StepStart, learned_activation, learned_weight, with_learned_steps
from zsq.fitting.losses import distillation, imitation
from zsq.fitting.trained import TrainedStudent
from zsq.fitting.training import Course, NormsAsked, TrainingOptions
from zsq.placement.sites import Placement
from zsq.quantizers.grids import FakeQuantizer, Quantizer


class LSQKDOptions(TrainingOptions):
    """Training of LSQ with distillation; `iterations` are optimiser steps.

    The published LSQ: optimizer=sgd learning_rate=0.01 weight_decay=1e-4 temperature=1 ce_weight=1 batch=256
    batch_norm=train granularity=tensor step_init=mean, over 90 epochs; at 3 bits half the weight decay, at 2
    a quarter.
    """

    batch_norm: NormsAsked = "auto"
    # Of a step, in units of its own size, for Adam: its updates have the size of the learning rate whatever
    # the gradient, and 1e-3 is half a step of an 8-bit weight grid.
    step_learning_rate: float = Field(1e-2, gt=0)
    temperature: float = Field(4.0, gt=0)
    ce_weight: float = Field(0.0, ge=0)
    # A weight's step per output channel or for all; the first is of the least error or 2 mean|x| / sqrt(Qp).
    granularity: Literal["channel", "tensor"] = "channel"
    step_init: StepStart = "mse"


class LSQKD(TrainedStudent):
    """Weights symmetric per output channel; activations per tensor, unsigned where none is below zero."""

    name = "lsq-kd"
    facts = Facts(
        paper="LSQ, Esser et al. 2020 (arXiv:1902.08153), with distillation as in Hinton et al. 2015",
        summary="learned steps, trained against the teacher's logits",
        deviations=(
            "a step per output channel of a weight instead of one per layer (granularity=tensor)",
            "steps start at the least error on the images instead of 2 mean|x| / sqrt(Qp) (step_init=mean)",
            "Adam 5e-4, for steps 1e-2 of their size, with cosine, 160 times 128 images, instead of SGD 0.01 "
            "over 90 epochs",
            "KL to the teacher at T = 4 alone, without labels",
            "of other tasks than classify, the task's own loss against the teacher",
            "batch norm keeps the teacher's statistics where weights have 4 bits or more (batch_norm=auto)",
        ),
    )
    options_class: ClassVar[type[Options]] = LSQKDOptions
    options: LSQKDOptions
    takes_tasks = True
    starts_from = frozenset({"affine"})
    start_options = ("granularity", "step_init")

    def put_quantizers(self, placement: Placement, fit: Fit) -> None:
        """First steps: of activations from the float network on the images, of weights from the weights."""
        options = self.options
        found = observe(placement, fit.teacher.spec, fit.pixels_NCHW, self.runtime.device)
        for site in placement.of_kind("weight"):
            weight, per_channel = placement.weight(site), options.granularity == "channel"
            placement.put(site, learned_weight(weight, site.bits, per_channel, options.step_init))
        for site, histogram in found.items():
            placement.put(site, learned_activation(histogram, site.bits, options.step_init))

    def taken_over(self, quantizer: Quantizer) -> nn.Module:
        """The same grid, whose step is learned; zero points stay."""
        assert isinstance(quantizer, FakeQuantizer)
        return quantizer.as_learned(True)

    def loss(self, student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
        """`zsq.fitting.losses.distillation`, and `imitation` where it has a weight."""
        loss = distillation(student_NK, teacher_NK, self.options.temperature)
        if self.options.ce_weight:
            loss = loss + self.options.ce_weight * imitation(student_NK, teacher_NK)
        return loss

    def course(self, placement: Placement, fit: Fit) -> Course:
        """As every student, with a learning rate for each step."""
        course, options = super().course(placement, fit), self.options
        return with_learned_steps(course, placement, options.step_learning_rate, options.optimizer)
