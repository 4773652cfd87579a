"""Our own method: images from coarse to fine, statistics of the whole set relative to their spread."""

from __future__ import annotations

from functools import partial

from pydantic import Field
from torch import Tensor

from zsq.contract import Facts, Generator, StepLog, SyntheticBatch
from zsq.core.effort import Curve
from zsq.core.imagespec import ImageSpec, shortest_side
from zsq.core.options import Options
from zsq.engine.invert import warn_of_idle_terms
from zsq.engine.joint import JointInversion, WithInput
from zsq.engine.objectives import Term, confidence_shortfall, relative_set_gap, set_gap
from zsq.engine.pyramid import Pyramid
from zsq.engine.schedules import Betas, Cosine, Iterations, Rate
from zsq.engine.statistics import Alignment, TappedTeacher
from zsq.engine.targets import shuffled_labels, with_confidence
from zsq.engine.views import Blur, Clip, Flip, RandomCrop, View, centres, with_margin
from zsq.plan import Group


class PyramidOptions(Options):
    """Constants of our own: docs/research-log.md says what was tried.

    `betas` are Adam's, below its usual ones: the statistics of a set change with every step, and old
    gradients mislead. `levels` is the number of maps; None is as many as fit, 1 are the pixels alone.
    `relative`: gaps in units of the stored std. `sigma` of the blur in pixels, 0 for none. Where the teacher
    has classes, each image is asked for one with a probability from U(`least_confidence`, 1).
    """

    iterations: Iterations = 100
    learning_rate: Rate = 0.1
    betas: Betas = (0.8, 0.95)
    levels: int | None = Field(None, ge=1)
    relative: bool = True
    std_weight: float = Field(1.0, ge=0)
    confidence_weight: float = Field(0.005, ge=0)
    least_confidence: float = Field(0.1, gt=0, le=1)
    margin_share: float = Field(1 / 7, ge=0, le=1)
    sigma: float = Field(1.25, ge=0)
    flip: bool = True


class PyramidMethod(Generator):
    """Maps of all scales, all batches together; mean and std of the whole set relative to the stored std."""

    name = "pyramid"
    options_class = PyramidOptions
    batches_per_group = None
    curve = Curve(
        100,
        "MCUNet at 160 px, W4A4, agreement 32, 43, 42 % at 30, 100, 300 (real images 48 %)",
    )
    facts = Facts(
        paper="our own; statistics of the whole set: DGH, WACV 2025; image pyramids: Burt and Adelson 1983",
        summary="BN statistics of the whole set relative to their spread; images from coarse to fine",
        needs_batch_norm=True,
        recommended=True,
        takes_labels=True,
    )

    @classmethod
    def default_batch(cls, spec: ImageSpec) -> int:
        """128, as DGH."""
        return 128

    def synthesize(self, group: Group, log: StepLog) -> SyntheticBatch:
        """Optimise the whole set; its images are the centres, inside the box of valid pixel values."""
        targets_NK = self._targets(group)
        generator = group.generator("synthesis")
        batches, history = self._inversion().run(group.batch_sizes, generator, log, targets_NK)
        warn_of_idle_terms(self.name, history)
        images = centres(batches, self._smooth(), self.teacher.spec)
        return SyntheticBatch(images, targets_NK, history.last())

    def _targets(self, group: Group) -> Tensor | None:
        num_classes = self.teacher.num_classes
        if num_classes is None:
            return None
        hard_NK = shuffled_labels(group, num_classes)
        return with_confidence(hard_NK, self.options.least_confidence, group.generator("confidence"))

    def _smooth(self) -> tuple[View, ...]:
        """What turns the maps' sum into an image, for the teacher and in the end; nothing of it is random."""
        blur = (Blur(self.options.sigma),) if self.options.sigma else ()
        return *blur, Clip(self.teacher.spec, self.runtime.device)

    def _inversion(self) -> JointInversion:
        o, spec, device = self.options, self.teacher.spec, self.runtime.device
        wide = with_margin(spec, round(o.margin_share * shortest_side(spec.size)))
        gap = relative_set_gap if o.relative else partial(set_gap, Alignment("set"))
        terms = [Term("mean", 1.0, gap(0)), Term("std", o.std_weight, gap(1))]
        if self.teacher.num_classes is not None:
            terms.append(Term("confidence", o.confidence_weight, confidence_shortfall))
        flip = (Flip(),) if o.flip and not spec.is_signal else ()
        *blur, clip = self._smooth()
        return JointInversion(
            WithInput(TappedTeacher(self.teacher, self.name)),
            lambda batch: Pyramid(wide, batch, device, o.learning_rate, o.levels, o.betas, Cosine),
            terms,
            (*flip, *blur, RandomCrop(spec.size), clip),
            o.iterations,
            self.runtime,
        )
