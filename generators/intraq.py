"""IntraQ (Zhong, Lin, Nan, Liu, Zhang, Tian, Ji; CVPR 2022): images of a class differ from each other."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from zsq.contract import Facts, StepLog
from zsq.core.imagespec import ImageSpec
from zsq.engine.classes import ClassCentres
from zsq.engine.invert import Inversion, InversionMethod, Stage
from zsq.engine.objectives import Term, bn_alignment, marginal_distance, soft_inception
from zsq.engine.parameterise import Pixels
from zsq.engine.schedules import Iterations, Patience, PlateauOptions, Rate
from zsq.engine.statistics import Alignment, TappedTeacher
from zsq.engine.targets import class_count, softened, uniform_labels
from zsq.engine.views import CropScale, random_crops
from zsq.plan import Group


class IntraQOptions(PlateauOptions):
    """Constants of the public CIFAR-10 script. CIFAR-100's: epsilon 0.6, lower 0.02, upper 1.0.

    Above 64 px those of the ImageNet script, which turn the distance constraint off and soft targets hard.
    """

    iterations: Iterations = 1000
    learning_rate: Rate = 0.5
    patience: Patience = 50
    bn_weight: float = Field(1.0, ge=0)
    distance_weight: float = Field(1.0, ge=0)
    inception_weight: float = Field(1.0, ge=0)
    epsilon: float = Field(0.95, gt=0.5, le=1)
    lower: float = Field(0.05, ge=0, le=2)
    upper: float = Field(0.8, ge=0, le=2)
    crop_scale: CropScale = (0.5, 1.0)
    crop_probability: float = Field(0.5, ge=0, le=1)

    @classmethod
    def published(cls, spec: ImageSpec) -> dict[str, Any]:
        """The ImageNet script's constants for large images."""
        return {"epsilon": 1.0, "lower": 0.0, "upper": 2.0} if not spec.is_small else {}


class IntraQ(InversionMethod):
    """Pixels; batch statistics as biased variance; crops; distances within a class; soft class targets."""

    name = "intraq"
    options_class = IntraQOptions
    batches_per_group = 5  # as in the public script, whose later batches keep off the centres of earlier ones
    facts = Facts(
        paper="Zhong et al., IntraQ, CVPR 2022",
        summary="local object reinforcement, marginal distance constraint, soft inception loss",
        needs_labels=True,
        needs_batch_norm=True,
        deviations=(
            "pixels are clamped to valid values after each step",
            "class centres come from the earlier batches of a group of five, not of other groups too",
            "crops keep the aspect ratio; those of signals are not mirrored",
            "features are what enters the last layer",
        ),
    )

    @classmethod
    def default_batch(cls, spec: ImageSpec) -> int:
        """256, as published."""
        return 256

    def prepare(self, seed: int, cache: Path, log: StepLog) -> None:
        """Tap the teacher once, for all batches."""
        self.tapped = TappedTeacher(self.teacher, self.name)
        self.features = self.tapped.tap_features(self.teacher)
        num_classes = class_count(self.teacher, self.name)
        self.centres = ClassCentres(num_classes, self.features.length, self.runtime.device)

    def labels(self, group: Group) -> Tensor:
        """Random classes with soft targets."""
        hard_NK = uniform_labels(group, class_count(self.teacher, self.name))
        return softened(hard_NK, self.options.epsilon, group.generator("soft targets"))

    def begin(self, group: Group) -> None:
        """No class has a centre."""
        self.centres.clear()
        self.first = True

    @torch.no_grad()
    def finished(self, images_NCHW: Tensor, targets_NK: Tensor | None) -> None:
        """The finished images move the centres of their classes."""
        assert targets_NK is not None
        self.tapped(images_NCHW)
        self.centres.add(self.features.take(), targets_NK.argmax(1).to(self.runtime.device))
        self.first = False

    def variant(self, batch: int) -> Hashable:
        """A group's first batch has no centres to keep a distance from."""
        return batch, self.first

    def inversion(self, batch: int) -> Inversion:
        """The paper's objective on pixels."""
        o = self.options
        device = self.runtime.device
        pixels = Pixels(self.teacher.spec, batch, device, o.learning_rate, schedule=o.schedule)
        alignment = Alignment("batch", moment="var", over_layers="mean")
        unbounded = o.lower == 0 and o.upper == 2
        terms = [
            Term("bn", o.bn_weight, bn_alignment(alignment)),
            Term(
                "distance",
                0.0 if self.first or unbounded else o.distance_weight,
                marginal_distance(self.centres, o.lower, o.upper),
            ),
            Term("inception", o.inception_weight, soft_inception),
        ]
        stage = Stage(o.iterations, random_crops(self.teacher.spec, o.crop_scale, o.crop_probability))
        return Inversion(self.tapped, pixels, terms, [stage], self.runtime, self.features)
