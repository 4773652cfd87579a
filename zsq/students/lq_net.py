"""Trained on grids whose levels are learned: sums of a basis, fitted to the values themselves (LQ-Nets)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from zsq.contract import Facts, Fit
from zsq.core.options import Options
from zsq.fitting.calibration import observe
from zsq.fitting.trained import TrainedStudent
from zsq.fitting.training import Course, TrainingOptions
from zsq.placement.sites import Placement
from zsq.quantizers.basis import LearnedBasis, searched_basis
from zsq.widths import Bits


class LQNetOptions(TrainingOptions):
    """`decay`: of the mean that a basis is, per batch. The published training: optimizer=sgd
    learning_rate=0.1 nesterov=true weight_decay=5e-5 batch=256 batch_norm=train, from fresh weights."""

    temperature: float = Field(4.0, gt=0)
    decay: float = Field(0.9, ge=0, lt=1)


class LQNet(TrainedStudent):
    """Weights on a basis per output channel with codes -1 and 1; activations on one with codes 0 and 1."""

    name = "lq-net"
    facts = Facts(
        paper="LQ-Nets, Zhang et al. 2018 (arXiv:1807.10029)",
        summary="grids of learned levels, sums of a basis per tensor, trained against the teacher's logits",
        deviations=(
            "starts at the teacher, from the evenly spaced levels of the least error and at most ten "
            "alternations, instead of fresh weights and the levels for a normal distribution",
            "a ridge of 1e-4 of the mean count for activations too; the public code has none for them",
            "a tensor with values below zero has codes -1 and 1; the public code quantizes after ReLU alone",
            "the teacher's own graph, without a quantizer at the end of a group of blocks",
            "KL to the teacher at T = 4 alone, without labels; of other tasks, the task's own loss",
            "Adam 5e-4 with cosine, 160 times 128 images, batch norm frozen, instead of SGD over 110 epochs",
        ),
    )
    options_class: ClassVar[type[Options]] = LQNetOptions
    options: LQNetOptions
    form = "basis"
    least_bits = Bits(1, 1)
    takes_tasks = True
    step_work = 2.5

    def put_quantizers(self, placement: Placement, fit: Fit) -> None:
        """First bases: of activations from the float network on the images, of weights from the weights."""
        found = observe(placement, fit.teacher.spec, fit.pixels_NCHW, self.runtime.device)
        for site in placement.of_kind("weight"):
            basis = searched_basis(placement.weight(site).detach().flatten(1).float(), site.bits, -1)
            placement.put(site, LearnedBasis(basis, "weight", -1, self.options.decay))
        for site, histogram in found.items():
            values, counts = histogram.occupied()
            lowest = -1 if histogram.low < 0 else 0
            basis = searched_basis(values[None], site.bits, lowest, counts)
            placement.put(site, LearnedBasis(basis, "activation", lowest, self.options.decay))

    def course(self, placement: Placement, fit: Fit) -> Course:
        """As every student; which tensors have values below zero differs between sets of images."""
        course = super().course(placement, fit)
        return replace(course, structure=(course.structure, placement.table()))

    def settle(self, placement: Placement) -> None:
        """Every basis stays as it is now."""
        for site in placement.sites:
            quantizer = placement.get(site)
            assert isinstance(quantizer, LearnedBasis)
            placement.put(site, quantizer.settled())
