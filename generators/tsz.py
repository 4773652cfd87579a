"""TSZ (Task-Specific Zero-shot Quantization-Aware Training for Object Detection; ICCV 2025, arXiv 2507.16782)
after DIODE (Chawla, Yin, Molchanov, Alvarez; WACV 2021): boxes are asked of a detector."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from zsq.contract import Facts, StepLog, SyntheticBatch, Teacher
from zsq.core.boxes import Target
from zsq.core.imagespec import ImageSpec
from zsq.core.options import Options, scales_with_iterations
from zsq.core.runtime import Runtime
from zsq.engine.detector import AskedBoxes, Detector, Followed
from zsq.engine.invert import Inversion, InversionMethod, Stage
from zsq.engine.objectives import Term, bn_alignment, total_variation_l2
from zsq.engine.parameterise import Pixels
from zsq.engine.schedules import Cosine, Iterations, Rate
from zsq.engine.statistics import Alignment, TappedTeacher
from zsq.engine.views import Flip, Roll
from zsq.plan import Group


class TSZOptions(Options):
    """Constants of TSZ for YOLO11, in units of pixels 0..1; `task_weight` is ours.

    jitter, flip: DIODE's views of the whole batch, which TSZ does without.
    """

    iterations: Iterations = 3000
    learning_rate: Rate = 0.2
    task_weight: float = Field(0.1, ge=0)
    bn_weight: float = Field(0.05, ge=0)
    first_layer_weight: float = Field(5.0, ge=0)
    tv_weight: float = Field(0.002, ge=0)
    sample_every: int = scales_with_iterations(100, ge=1)
    sample_from: int = scales_with_iterations(800, ge=0)
    sample_until: int = scales_with_iterations(2800, ge=0)
    jitter: int = Field(0, ge=0)
    flip: bool = False


class TSZ(InversionMethod):
    """Pixels; boxes at random, then sampled from what the teacher finds; its detection loss; BN and TV."""

    name = "tsz"
    options_class = TSZOptions
    facts = Facts(
        paper="Task-Specific Zero-shot Quantization-Aware Training for Object Detection (TSZ), ICCV 2025",
        summary="boxes that the detector is asked to find, batch BN statistics as un-squared norms, TV",
        needs_batch_norm=True,
        needs_boxes=True,
        deviations=(
            "where the card names no loss, one task loss for all detectors, of dense boxes and scores",
            "the task loss is a mean over images and weighs .1; published are .5 and a sum over images",
            "boxes are sampled in the run that makes the images, not before it at a quarter of their size",
            "pixels are clamped to valid values after each step",
            "the last iterate is kept with the boxes asked of it, not the best by validation",
            "boxes are never those of real images, which the paper's main tables use",
        ),
    )

    def __init__(self, teacher: Teacher, options: TSZOptions, runtime: Runtime) -> None:
        """Keep the parts, and a copy of the teacher that answers with boxes."""
        super().__init__(teacher, options, runtime)
        self.detector = Detector(teacher, self.name)
        self.box_labels = "sampled" if self.detector.task.decode else "random"
        self._asked: dict[int, AskedBoxes] = {}
        self._boxes: list[Target] = []

    @classmethod
    def default_batch(cls, spec: ImageSpec) -> int:
        """32, as published."""
        return 32

    def inversion(self, batch: int) -> Inversion:
        """The paper's objective on pixels."""
        o, spec, device = self.options, self.teacher.spec, self.runtime.device
        unit = sum(spec.standard_moments[1]) / spec.channels
        pixels = Pixels(spec, batch, device, o.learning_rate / unit, self._start, schedule=Cosine)
        views = [Followed(Roll(o.jitter))] if o.jitter else []
        views += [Followed(Flip(per_image=False))] if o.flip else []
        times = range(o.sample_from, o.sample_until + 1, o.sample_every)
        sampled_at = times if self.box_labels == "sampled" else range(0)
        asked = AskedBoxes(self.detector, pixels, sampled_at, views)
        self._asked[batch] = asked
        alignment = Alignment("batch", moment="var", distance="norm")
        terms = [
            Term("task", o.task_weight, asked.loss),
            Term("bn", o.bn_weight, bn_alignment(alignment)),
            Term("first_bn", o.first_layer_weight, lambda forward: alignment(forward.layers[:1])),
            Term("tv", o.tv_weight * unit, total_variation_l2),
        ]
        tapped = TappedTeacher(self.detector.teacher, self.name)
        stages = [Stage(o.iterations, tuple(views))]
        return Inversion(tapped, pixels, terms, stages, self.runtime, memories=[asked])

    def _start(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        pixels = torch.randint(0, 255, tuple(shape), generator=generator)
        return self.teacher.spec.pixels_to_standard(pixels.to(torch.uint8))

    def begin(self, group: Group) -> None:
        """No boxes yet."""
        self._boxes = []

    def finished(self, images_NCHW: Tensor, targets_NK: Tensor | None) -> None:
        """Keep the boxes of the last iteration."""
        self._boxes += self._asked[len(images_NCHW)].targets

    def synthesize(self, group: Group, log: StepLog) -> SyntheticBatch:
        """Invert the group's batches; the boxes asked of them go with the images."""
        batch = super().synthesize(group, log)
        return dataclasses.replace(batch, boxes=tuple(self._boxes))
