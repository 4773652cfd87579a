"""MimiQ (Choi et al., AAAI 2025): the heads of an attention see the same things in an image."""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import Field
from torch import Tensor

from zsq.contract import Facts
from zsq.core.imagespec import ImageSpec, shortest_side
from zsq.core.options import Options
from zsq.engine.attention import AttentionTeacher
from zsq.engine.heads import head_distance
from zsq.engine.invert import Inversion, InversionMethod, Stage
from zsq.engine.objectives import Term, cross_entropy, total_variation_l2
from zsq.engine.parameterise import Pixels
from zsq.engine.schedules import Cosine, Iterations, Rate
from zsq.engine.targets import class_count, uniform_labels
from zsq.engine.views import ColourAffine, GrowingRoll
from zsq.plan import Group


class MimiQOptions(Options):
    """Constants of the public code, published for 224 px.

    jitter: largest shift of the second half of the run; the first half has half of it. colour_shift: standard
    deviation of the colours' shift at the beginning.
    """

    iterations: Iterations = 2000
    learning_rate: Rate = 0.1
    final_learning_rate: float = Field(0.001, ge=0)
    head_weight: float = Field(1.0, ge=0)
    ce_weight: float = Field(1.0, ge=0)
    tv_weight: float = Field(2.5e-5, ge=0)
    jitter: int = Field(16, ge=0)
    colour_shift: float = Field(0.5, ge=0)

    @classmethod
    def published(cls, spec: ImageSpec) -> dict[str, Any]:
        """The shift in proportion to the image: 2 at 32 px."""
        return {"jitter": round(16 * shortest_side(spec.size) / 224)}


class MimiQ(InversionMethod):
    """Pixels; structural similarity of the heads' logits, class targets, TV; colours shift and scale."""

    name = "mimiq"
    options_class = MimiQOptions
    facts = Facts(
        paper="Choi et al., MimiQ: Low-Bit Data-Free Quantization of Vision Transformers, AAAI 2025",
        summary="all heads of an attention see alike, class targets, total variation, colours that shift",
        needs_labels=True,
        needs_attention=True,
        recommended=True,
        deviations=(
            "Adam without the weight decay of 1e-6",
            "total variation is that of what the teacher sees, and its diagonals count like its sides",
            "the scale of the colours is drawn for each image",
            "structural similarity by Gram matrices: the same values in a fraction of the memory",
        ),
    )

    @classmethod
    def default_batch(cls, spec: ImageSpec) -> int:
        """16, as published."""
        return 16

    def labels(self, group: Group) -> Tensor:
        """Random classes."""
        return uniform_labels(group, class_count(self.teacher, self.name))

    def inversion(self, batch: int) -> Inversion:
        """The paper's objective on images."""
        o = self.options
        tapped = AttentionTeacher(self.teacher, ("logits",), self.name)
        schedule = partial(Cosine, final=o.final_learning_rate)
        pixels = Pixels(self.teacher.spec, batch, self.runtime.device, o.learning_rate, schedule=schedule)
        terms = [
            Term("heads", o.head_weight, head_distance),
            Term("ce", o.ce_weight, cross_entropy),
            Term("tv", o.tv_weight, total_variation_l2),
        ]
        views = (GrowingRoll(o.jitter // 2, o.jitter), ColourAffine(o.colour_shift))
        stages = [Stage(o.iterations, views)]
        return Inversion(tapped, pixels, terms, stages, self.runtime, attention=tapped)
