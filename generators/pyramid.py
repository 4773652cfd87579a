"""Our own method: images from coarse to fine, statistics of the whole set relative to their spread."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from zsq.contract import Facts, Generator, StepLog, SyntheticBatch
from zsq.core.imagespec import ImageSpec
from zsq.core.options import Options
from zsq.engine.invert import warn_of_idle_terms
from zsq.engine.joint import JointInversion, WithInput
from zsq.engine.objectives import TeacherPass, Term
from zsq.engine.parameterise import fused_adam
from zsq.engine.pyramid import Pyramid
from zsq.engine.schedules import Cosine, Iterations, Rate
from zsq.engine.statistics import TappedTeacher, mean_gap_and_var
from zsq.engine.views import Clip, Flip, RandomCrop, centre_crop
from zsq.plan import Group

# Adam's. The statistics of a set change with every step, so that old gradients mislead.
BETAS = (0.5, 0.95)
# Of a layer's mean variance, added to each channel's: a channel that is nearly constant counts less.
FLOOR = 1e-3


class PyramidOptions(Options):
    """Constants of our own: docs/research-log.md says what was tried."""

    iterations: Iterations = 100
    learning_rate: Rate = 0.1
    std_weight: float = Field(1.0, ge=0)
    margin_share: float = Field(1 / 7, ge=0, le=1)
    flip: bool = True


def mean_gap(forward: TeacherPass) -> Tensor:
    """Mean over layers and channels of ((m - M) / S)^2: the whole set's mean m against the stored M, S^2."""
    return torch.stack([mean.mean() for mean, _ in _relative_gaps(forward)]).mean()


def std_gap(forward: TeacherPass) -> Tensor:
    """Mean over layers and channels of (s / S - 1)^2: the whole set's std s against the stored S."""
    return torch.stack([std.mean() for _, std in _relative_gaps(forward)]).mean()


def _relative_gaps(forward: TeacherPass) -> list[tuple[Tensor, Tensor]]:
    """Per layer the squared gaps of mean and std (C,), in units of the stored std."""
    assert forward.others is not None
    gaps = []
    for sums, rest in zip(forward.layers, forward.others, strict=True):
        gap_C, var_C = mean_gap_and_var(sums, "set", others=rest)
        floor = FLOOR * sums.var_C.mean()
        wanted_C = sums.var_C + floor
        gaps.append((gap_C.square() / wanted_C, (((var_C + floor) / wanted_C).sqrt() - 1).square()))
    return gaps


class PyramidMethod(Generator):
    """Maps of all scales, all batches together; mean and std of the whole set relative to the stored std."""

    name = "pyramid"
    options_class = PyramidOptions
    batches_per_group = None
    facts = Facts(
        paper="our own; statistics of the whole set: DGH, WACV 2025; image pyramids: Burt and Adelson 1983",
        summary="BN statistics of the whole set relative to their spread; images from coarse to fine",
        needs_batch_norm=True,
    )

    @classmethod
    def default_batch(cls, spec: ImageSpec) -> int:
        """128, as DGH."""
        return 128

    def synthesize(self, group: Group, log: StepLog) -> SyntheticBatch:
        """Optimise the whole set; its images are the centres, inside the box of valid pixel values."""
        batches, history = self._inversion().run(group.batch_sizes, group.generator("synthesis"), log)
        warn_of_idle_terms(self.name, history)
        low, high = self.teacher.spec.valid_box(self.runtime.device)
        images = [centre_crop(batch.clamp(low, high), self.teacher.spec.size).cpu() for batch in batches]
        return SyntheticBatch(torch.cat(images), None, history.last())

    def _inversion(self) -> JointInversion:
        o, spec, device = self.options, self.teacher.spec, self.runtime.device
        margin = round(o.margin_share * min((side for side in spec.size if side > 1), default=0))
        sides = tuple(side + margin if side > 1 else 1 for side in spec.size)
        wide = spec.model_copy(update={"size": sides})
        flip = (Flip(),) if o.flip and not spec.is_signal else ()
        return JointInversion(
            WithInput(TappedTeacher(self.teacher, self.name)),
            lambda batch: Pyramid(wide, batch, device, o.learning_rate, BETAS, Cosine),
            [Term("mean", 1.0, mean_gap), Term("std", o.std_weight, std_gap)],
            (*flip, RandomCrop(spec.size), Clip(spec, device)),
            o.iterations,
            self.runtime,
            fused_adam,
        )
