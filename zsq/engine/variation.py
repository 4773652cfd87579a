"""PSAQ-ViT's run without its entropy (Li, Ma, Chen, Xiao, Gu; ECCV 2022), on which other methods stand:
pixels, random classes, a total variation to reach, two phases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from zsq.core.imagespec import ImageSpec, shortest_side
from zsq.core.options import Options, scales_with_iterations
from zsq.engine.heads import VariationTarget, gaussian_entropy, kernel_entropy, patch_entropy
from zsq.engine.invert import InversionMethod, Stage
from zsq.engine.objectives import TeacherPass, Term, cross_entropy
from zsq.engine.parameterise import Pixels
from zsq.engine.schedules import Betas, Cosine, Iterations, Rate
from zsq.engine.targets import class_count, uniform_labels
from zsq.engine.views import Flip, Roll, View
from zsq.plan import Group

DEVIATIONS = (
    "the shifts along both axes are drawn separately",
    "the total variation aimed at follows batch and image size",
)


class VariationOptions(Options):
    """Constants of PSAQ-ViT's public code but for its entropy, published for 224 px.

    variation: range of the total variation that 32 images should have. jitter: largest shift of the second
    half of the run; the first half has half of it.
    """

    iterations: Iterations = 1000
    learning_rate: Rate = 0.2
    betas: Betas = (0.5, 0.9)
    warmup: int = scales_with_iterations(100, ge=0)
    ce_weight: float = Field(1.0, ge=0)
    tv_weight: float = Field(0.05, ge=0)
    variation: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (2500.0, 3000.0)
    jitter: int = Field(30, ge=0)
    flip: bool = True

    @classmethod
    def published(cls, spec: ImageSpec) -> dict[str, Any]:
        """The shift in proportion to the image: 4 at 32 px. Signals are not flipped."""
        return {"jitter": round(30 * shortest_side(spec.size) / 224), "flip": not spec.is_signal}


class EntropyOptions(VariationOptions):
    """`entropy`: of the kernel density as published, or of a Gaussian of the same variance, which has a
    gradient everywhere (MaskAQ, arXiv 2606.04373)."""

    entropy: Literal["kernel", "gaussian"] = "kernel"
    entropy_weight: float = Field(1.0, ge=0)
    bandwidth: float = Field(0.01, gt=0)
    points: int = Field(10, ge=2)

    def patch_entropy(self) -> Callable[[TeacherPass], Tensor]:
        """The loss on what a teacher's attention puts out."""
        if self.entropy == "gaussian":
            return patch_entropy(gaussian_entropy)
        return patch_entropy(partial(kernel_entropy, bandwidth=self.bandwidth, points=self.points))


class VariationMethod(InversionMethod):
    """A method whose options are `VariationOptions`."""

    @classmethod
    def default_batch(cls, spec: ImageSpec) -> int:
        """32, as published."""
        return 32

    def labels(self, group: Group) -> Tensor:
        """Random classes."""
        return uniform_labels(group, class_count(self.teacher, self.name))

    def pixels(self, batch: int) -> Pixels:
        """Adam with a cosine for each phase."""
        o, spec = self.options, self.teacher.spec
        schedule = partial(Cosine, warmup=o.warmup)
        return Pixels(spec, batch, self.runtime.device, o.learning_rate, betas=o.betas, schedule=schedule)

    def variation(self, batch: int) -> VariationTarget:
        """The total variation aimed at."""
        low, high = self.options.variation
        return VariationTarget(low, high, (batch, *self.teacher.spec.shape), self.runtime.device)

    def terms(self, variation: VariationTarget, *own: Term) -> list[Term]:
        """What a method asks of an image itself, then its class and the total variation aimed at."""
        o = self.options
        return [*own, Term("ce", o.ce_weight, cross_entropy), Term("tv", o.tv_weight, variation.loss)]

    def moved(self, jitter: int) -> tuple[View, ...]:
        """The views of a phase."""
        return (Roll(jitter), *((Flip(per_image=False),) if self.options.flip else ()))

    def phases(self) -> list[Stage]:
        """Two, of which the second moves the images twice as far."""
        half, jitter = self.options.iterations // 2, self.options.jitter
        return [
            Stage(half, self.moved(jitter // 2)),
            Stage(self.options.iterations - half, self.moved(jitter)),
        ]
