"""DGH, Data Generation for Hardware-friendly quantization (WACV 2025), as in Sony's compression toolkit."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field

from zsq.contract import Facts, Generator, StepLog, SyntheticBatch
from zsq.core.effort import Curve
from zsq.core.imagespec import ImageSpec, shortest_side
from zsq.engine.invert import warn_of_idle_terms
from zsq.engine.joint import JointInversion, WithInput
from zsq.engine.objectives import Term, output_range, set_gap
from zsq.engine.parameterise import Pixels
from zsq.engine.schedules import Factor, Iterations, Patience, PlateauOptions, Rate
from zsq.engine.statistics import Alignment, TappedTeacher
from zsq.engine.views import Blur, Clip, Flip, RandomCrop, centres, with_margin
from zsq.plan import Group


class DGHOptions(PlateauOptions):
    """Constants of DGH (`std_weight`) and of the toolkit (all others), published for 224 px."""

    iterations: Iterations = 1000
    learning_rate: Rate = 16.0
    patience: Patience = 20
    factor: Factor = 0.5
    std_weight: float = Field(10.0, ge=0)
    output_weight: float = Field(1e-5, ge=0)
    margin: int = Field(32, ge=0)
    sigma: float = Field(1.25, gt=0)
    flip: bool = True

    @classmethod
    def published(cls, spec: ImageSpec) -> dict[str, Any]:
        """The margin in proportion for images below 224 px: 5 at 32 px. Signals are not flipped."""
        return {"margin": min(32, round(shortest_side(spec.size) / 7)), "flip": not spec.is_signal}


class DGH(Generator):
    """Pixels with a margin, all batches together; mean and std of the whole set; flip, blur, crop, clip."""

    name = "dgh"
    options_class = DGHOptions
    batches_per_group = None
    curve = Curve(
        300,
        "MCUNet at 160 px, W4A4, agreement 13, 13, 40, 44 % at 30, 100, 300, 1000 (real images 45 %); "
        "ResNet-20 at 32 px, W2A4, accuracy 79.7, 79.3, 79.6 % at 100, 250, 500 (real images 80.9 %)",
    )
    facts = Facts(
        paper="Data Generation for Hardware-Friendly Post-Training Quantization (DGH), WACV 2025",
        summary="BN statistics of the whole set at once, seen through flips, blur and crops; output range",
        needs_batch_norm=True,
        recommended=True,
        deviations=(
            "pixels are clamped to valid values after each step too, not only where the teacher sees them",
            "a batch counts as its last teacher pass saw it; there is no second pass after the step",
            "the output term is the toolkit's range of outputs; how DGH limits it is not known",
            "images below 224 px get a margin in proportion, and a side of one pixel none",
            "signals are blurred and cropped along their one side, and not flipped",
            "the learning rate only falls: when the toolkit raises it again is not known",
        ),
    )

    @classmethod
    def default_batch(cls, spec: ImageSpec) -> int:
        """128, as published."""
        return 128

    def synthesize(self, group: Group, log: StepLog) -> SyntheticBatch:
        """Optimise the whole set; its images are the blurred centres."""
        batches, history = self._inversion().run(group.batch_sizes, group.generator("synthesis"), log)
        warn_of_idle_terms(self.name, history)
        finish = (Blur(self.options.sigma), Clip(self.teacher.spec, self.runtime.device))
        return SyntheticBatch(centres(batches, finish, self.teacher.spec), None, history.last())

    def _inversion(self) -> JointInversion:
        o, spec, device = self.options, self.teacher.spec, self.runtime.device
        wide = with_margin(spec, o.margin)
        alignment = Alignment("set")
        terms = [
            Term("mean", 1.0, set_gap(alignment, 0)),
            Term("std", o.std_weight, set_gap(alignment, 1)),
            Term("output", o.output_weight, output_range),
        ]
        flip = (Flip(),) if o.flip else ()
        return JointInversion(
            WithInput(TappedTeacher(self.teacher, self.name)),
            lambda batch: Pixels(wide, batch, device, o.learning_rate, schedule=o.schedule),
            terms,
            (*flip, Blur(o.sigma), RandomCrop(spec.size), Clip(spec, device)),
            o.iterations,
            self.runtime,
            torch.optim.RAdam,
        )
