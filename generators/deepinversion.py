"""DeepInversion (Yin, Molchanov, Alvarez, Li, Mallya, Hoiem, Jha, Kautz; CVPR 2020)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from zsq.contract import Facts, Teacher
from zsq.core.imagespec import ImageSpec
from zsq.core.options import Options, scales_with_iterations
from zsq.core.runtime import Runtime
from zsq.engine.invert import Inversion, InversionMethod, Stage
from zsq.engine.objectives import (
    Term,
    batch_norm_l2,
    bn_alignment,
    cross_entropy,
    mean_image_norm,
    total_variation_l2,
)
from zsq.engine.parameterise import Pixels
from zsq.engine.schedules import Betas, Cosine, Schedule
from zsq.engine.sizes import takes_halves
from zsq.engine.statistics import Alignment, TappedTeacher
from zsq.engine.targets import balanced_labels, class_count
from zsq.engine.views import Flip, Halve, Roll, View
from zsq.plan import Group


class DeepInversionOptions(Options):
    """Constants of the public CIFAR-10 script; above 64 px those of the ImageNet script, setting 0."""

    iterations: int = Field(2000, ge=1)
    low_resolution_iterations: int = scales_with_iterations(0, ge=0)
    learning_rate: float = Field(0.1, gt=0)
    betas: Betas = (0.9, 0.999)
    cosine: bool = False
    warmup: int = scales_with_iterations(0, ge=0)
    bn_weight: float = Field(10.0, ge=0)
    first_layer_weight: float = Field(1.0, ge=0)
    ce_weight: float = Field(1.0, ge=0)
    tv_weight: float = Field(2.5e-5, ge=0)
    l2_weight: float = Field(0.0, ge=0)
    l2_per_image: bool = False
    jitter: int = Field(2, ge=0)
    flip: bool = False

    @field_validator("low_resolution_iterations")
    @classmethod
    def _within_the_run(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("iterations", value):
            raise ValueError("longer than the run; --iterations shortens both")
        return value

    @classmethod
    def published(cls, spec: ImageSpec) -> dict[str, Any]:
        """The ImageNet script's constants for large images; signals are not flipped."""
        if spec.is_small:
            return {}
        return {
            "iterations": 3000,
            "low_resolution_iterations": 2000,
            "learning_rate": 0.2,
            "betas": (0.5, 0.9),
            "cosine": True,
            "warmup": 100,
            "bn_weight": 0.05,
            "first_layer_weight": 10.0,
            "tv_weight": 1e-4,
            "l2_weight": 1e-5,
            "l2_per_image": True,
            "jitter": 30,
            "flip": not spec.is_signal,
        }


class DeepInversion(InversionMethod):
    """Pixels; class targets; batch statistics, biased variance, un-squared norms; TV and L2 priors."""

    name = "deepinversion"
    options_class = DeepInversionOptions
    facts = Facts(
        paper="Yin et al., Dreaming to Distill (DeepInversion), CVPR 2020",
        summary="class targets, batch BN statistics as un-squared norms, TV and L2 priors, jitter",
        needs_labels=True,
        needs_batch_norm=True,
        deviations=(
            "pixels are clamped to valid values after each step (the CIFAR script does not)",
            "the last iterate is kept, not the iterate of least loss",
            "no competition with a student (the paper's Adaptive DeepInversion)",
            "classes in turn over the whole run, not hand-picked ones",
            "a network of one input size gets no stage at half resolution",
            "signals are moved and halved along their one side, and not flipped",
        ),
    )

    def __init__(self, teacher: Teacher, options: Any, runtime: Runtime) -> None:
        """Keep the parts; a network that takes one size alone gets the full resolution from the start."""
        if options.low_resolution_iterations and not takes_halves(teacher):
            options = options.model_copy(update={"low_resolution_iterations": 0})
            warnings.warn(
                f"{self.name}: {teacher.name} takes images of one size alone, so all "
                f"{options.iterations} iterations are at full resolution",
                stacklevel=2,
            )
        super().__init__(teacher, options, runtime)

    @classmethod
    def default_batch(cls, spec: ImageSpec) -> int:
        """256 as in the CIFAR-10 script, 64 as in the ImageNet script."""
        return 256 if spec.is_small else 64

    def labels(self, group: Group) -> Tensor:
        """Classes in turn over the whole run."""
        return balanced_labels(group, class_count(self.teacher, self.name))

    def inversion(self, batch: int) -> Inversion:
        """The paper's objective, at half resolution first where the options say so."""
        o = self.options
        tapped = TappedTeacher(self.teacher, self.name)
        weights = torch.ones(len(tapped.names), device=self.runtime.device)
        weights[0] = o.first_layer_weight
        alignment = Alignment("batch", moment="var", distance="norm", layer_weights_L=weights)

        def schedule(rate: float, iterations: int, device: str) -> Schedule:
            return (
                Cosine(rate, iterations, device, o.warmup) if o.cosine else Schedule(rate, iterations, device)
            )

        spec, device = self.teacher.spec, self.runtime.device
        pixels = Pixels(spec, batch, device, o.learning_rate, betas=o.betas, schedule=schedule)
        terms = [
            Term("ce", o.ce_weight, cross_entropy),
            Term("bn", o.bn_weight, bn_alignment(alignment)),
            Term("tv", o.tv_weight, total_variation_l2),
            Term("l2", o.l2_weight, mean_image_norm if o.l2_per_image else batch_norm_l2),
        ]
        full = o.iterations - o.low_resolution_iterations
        stages = [
            Stage(o.low_resolution_iterations, (Halve(), *self._views(o.jitter // 2))),
            Stage(full, self._views(o.jitter)),
        ]
        return Inversion(tapped, pixels, terms, stages, self.runtime)

    def _views(self, jitter: int) -> tuple[View, ...]:
        flip = (Flip(per_image=False),) if self.options.flip else ()
        return (Roll(jitter), *flip)
