"""Weights of one bit, trained against the teacher (IR-Net); inputs on grids whose step is learned."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from zsq.contract import Facts, Fit
from zsq.core.errors import MismatchError
from zsq.core.options import Options
from zsq.fitting.calibration import norm_batches, observe
from zsq.fitting.learned_steps import learned_activation, learned_weight, with_learned_steps
from zsq.fitting.trained import TrainedStudent
from zsq.fitting.training import Course, TrainingOptions
from zsq.graph import capture
from zsq.passes.correction import adapt_batch_norms
from zsq.placement.sites import Placement
from zsq.quantizers.signs import BinaryWeight, Rule
from zsq.widths import MOST_BITS, Bits, WidthOrFloat


class BinaryOptions(TrainingOptions):
    """`sharpness` rises from `first_sharpness` to `last_sharpness` by a constant factor per step: the
    gradient of a sign is first that of a line, in the end that of a steep tanh."""

    # With the teacher's statistics signs start far from the teacher.
    batch_norm: Literal["frozen", "train"] = "train"
    learning_rate: float = Field(1e-3, gt=0)
    step_learning_rate: float = Field(1e-2, gt=0)
    temperature: float = Field(4.0, gt=0)
    rule: Rule = "scale"
    first_sharpness: float = Field(0.1, gt=0)
    last_sharpness: float = Field(10.0, gt=0)
    # Where --first-last does not say; None: as --bits.
    first_last: WidthOrFloat | None = MOST_BITS


class Binary(TrainedStudent):
    """A weight is +-scale, a scale per output channel; rows of 2 bits and more have learned steps."""

    name = "binary"
    facts = Facts(
        paper="IR-Net, Qin et al. 2020 (arXiv:1909.10788)",
        summary="weights of one bit with learned scales, trained against the teacher's logits",
        deviations=(
            "scales are learned, from the mean magnitude; published are standardised weights and a power of "
            "two, which is 1 in 639 of 672 filters of a ResNet-20 (rule=ir)",
            "the teacher's own graph: no shortcut around every convolution, ReLU instead of Hardtanh",
            "inputs have learned steps, of 1 bit the values 0 and s; a ReLU's output has no signs to take",
            "starts at the teacher, batch norm adapted to the signs; KL to it at T = 4, without labels, and "
            "of other tasks the task's own loss",
            "first and last layer 8 bits instead of float (first_last=32)",
            "Adam 1e-3 with cosine, 160 times 128 images, instead of SGD 0.1 over 400 epochs",
        ),
    )
    options_class: ClassVar[type[Options]] = BinaryOptions
    options: BinaryOptions
    form = "basis"
    least_bits = Bits(1, 1)
    takes_tasks = True

    def binary_weight(self, weight: Tensor) -> BinaryWeight:
        """What stands at a weight of one bit before the first step."""
        return BinaryWeight(weight, self.options.rule)

    def put_quantizers(self, placement: Placement, fit: Fit) -> None:
        """Scales from the weights, steps of the least error. Batch norms go through the shift of the
        signs: without that the start is at chance.

        Raises:
            MismatchError: an input with values below zero at 1 bit.
        """
        found = observe(placement, fit.teacher.spec, fit.pixels_NCHW, self.runtime.device)
        for site in placement.of_kind("weight"):
            weight = placement.weight(site)
            one = site.bits == 1
            placement.put(site, self.binary_weight(weight) if one else learned_weight(weight, site.bits))
        for site, histogram in found.items():
            if site.bits == 1 and histogram.low < 0:
                raise MismatchError(
                    f"'{site.name}' has values below zero", "2 bits or more for it", "use --widths"
                )
            placement.put(site, learned_activation(histogram, site.bits))
        teacher, network = fit.teacher, placement.network.to(self.runtime.device)
        batches = list(norm_batches(teacher.spec, fit.pixels_NCHW, self.runtime.device))
        adapt_batch_norms(network, capture(teacher.network, teacher.example()), batches)

    def course(self, placement: Placement, fit: Fit) -> Course:
        """As every student, with a learning rate for each scale and step, and signs that grow sharper."""
        options = self.options
        signs = [module for module in placement.network.modules() if isinstance(module, BinaryWeight)]
        scales = [module.scale for module in signs if module.rule != "ir"]
        num_steps = max(options.steps(len(fit.pixels_NCHW)), 1)
        sharpen = partial(_sharpen, signs, options, num_steps)
        course = replace(super().course(placement, fit), before_step=sharpen)
        return with_learned_steps(course, placement, options.step_learning_rate, options.optimizer, scales)

    @torch.no_grad()
    def settle(self, placement: Placement) -> None:
        """Weights are their two values."""
        for site in placement.of_kind("weight"):
            quantizer = placement.get(site)
            if isinstance(quantizer, BinaryWeight):
                weight, grid = quantizer.settled(placement.weight(site))
                placement.weight(site).copy_(weight)
                placement.put(site, grid)


def _sharpen(signs: list[BinaryWeight], options: BinaryOptions, num_steps: int, step: int) -> None:
    first, last = options.first_sharpness, options.last_sharpness
    for module in signs:
        module.sharpness.fill_(first * (last / first) ** ((step - 1) / num_steps))
