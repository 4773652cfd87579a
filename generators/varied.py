"""Our own method: images that differ in light and contrast as photos do, moved to a set's statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from zsq.contract import Facts, Generator, StepLog, SyntheticBatch
from zsq.core.effort import Curve
from zsq.core.imagespec import ImageSpec, shortest_side
from zsq.core.options import Options
from zsq.engine.invert import warn_of_idle_terms
from zsq.engine.joint import JointInversion, WithInput
from zsq.engine.objectives import Term, set_gap
from zsq.engine.parameterise import Pixels
from zsq.engine.schedules import Betas, Cosine, Iterations, Rate
from zsq.engine.statistics import Alignment, TappedTeacher
from zsq.engine.textures import EXPONENTS, LEAVES, TEXTURE, dead_leaves, lit
from zsq.engine.views import Clip, Flip, RandomCrop, centres, with_margin
from zsq.plan import Group


class VariedOptions(Options):
    """Constants of our own: docs/research-log.md says what was tried.

    `light` and `contrast` are how much images differ at the start, as in `leaves`. The rate is low, so that
    they still do in the end. `betas` are Adam's.
    """

    iterations: Iterations = 100
    learning_rate: Rate = 0.05
    betas: Betas = (0.8, 0.95)
    std_weight: float = Field(10.0, ge=0)
    light: float = Field(0.3, ge=0, lt=1)
    contrast: float = Field(0.35, ge=0, le=2)
    margin_share: float = Field(1 / 7, ge=0, le=1)
    flip: bool = True


class Varied(Generator):
    """Pixels that start as dead leaves, each with its own light; mean and std of the whole set."""

    name = "varied"
    options_class = VariedOptions
    batches_per_group = None
    curve = Curve(
        100,
        "ResNet-20 at 32 px, 512 images, W2A4: 1.5, 0.9, 0.8 points behind real images at 25, 50, 100 passes",
    )
    facts = Facts(
        paper="our own; statistics of the whole set: DGH, WACV 2025; dead leaves: Lee, Mumford, Huang, "
        "IJCV 2001",
        summary="BN statistics of the whole set; images start with different light and contrast",
        needs_batch_norm=True,
        recommended=True,
    )

    @classmethod
    def default_batch(cls, spec: ImageSpec) -> int:
        """128, as DGH."""
        return 128

    def synthesize(self, group: Group, log: StepLog) -> SyntheticBatch:
        """Optimise the whole set; its images are the centres, inside the box of valid pixel values."""
        batches, history = self._inversion().run(group.batch_sizes, group.generator("synthesis"), log)
        warn_of_idle_terms(self.name, history)
        clip = Clip(self.teacher.spec, self.runtime.device)
        return SyntheticBatch(centres(batches, [clip], self.teacher.spec), None, history.last())

    def _start(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        o = self.options
        images = []
        for _ in range(shape[0]):
            image = dead_leaves(shape[1:], LEAVES, EXPONENTS, TEXTURE, generator)
            images.append(lit(image, o.light, o.contrast, generator))
        return torch.stack(images)

    def _inversion(self) -> JointInversion:
        o, spec, device = self.options, self.teacher.spec, self.runtime.device
        wide = with_margin(spec, round(o.margin_share * shortest_side(spec.size)))
        alignment = Alignment("set")
        terms = [
            Term("mean", 1.0, set_gap(alignment, 0)),
            Term("std", o.std_weight, set_gap(alignment, 1)),
        ]
        flip = (Flip(),) if o.flip and not spec.is_signal else ()
        return JointInversion(
            WithInput(TappedTeacher(self.teacher, self.name)),
            lambda batch: Pixels(wide, batch, device, o.learning_rate, self._start, o.betas, Cosine),
            terms,
            (*flip, RandomCrop(spec.size), Clip(spec, device)),
            o.iterations,
            self.runtime,
        )
