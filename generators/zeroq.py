"""ZeroQ (Cai, Yao, Dong, Gholami, Mahoney, Keutzer; CVPR 2020): each image matches the BN statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from zsq.contract import Facts
from zsq.core.imagespec import ImageSpec
from zsq.engine.invert import Inversion, InversionMethod, Stage
from zsq.engine.objectives import Term, bn_alignment, input_alignment
from zsq.engine.parameterise import Initialiser, Pixels, gaussian
from zsq.engine.schedules import Iterations, Patience, PlateauOptions, Rate
from zsq.engine.statistics import Alignment, TappedTeacher


class ZeroQOptions(PlateauOptions):
    """Constants of the public code; `init="code"` is its narrow uniform start instead of the paper's."""

    iterations: Iterations = 500
    learning_rate: Rate = 0.5
    patience: Patience = 100
    input_weight: float = Field(1.0, ge=0)
    init: Literal["gaussian", "code"] = "gaussian"


def _code_start(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Integers 0..254 minus 127.5, over their variance: std 0.0136."""
    return (torch.randint(0, 255, tuple(shape), generator=generator) - 127.5) / 5418.75


STARTS: dict[str, Initialiser] = {"gaussian": gaussian, "code": _code_start}


class ZeroQ(InversionMethod):
    """Pixels; per-sample, unbiased std; squared, summed over channels and layers; input statistics."""

    name = "zeroq"
    options_class = ZeroQOptions
    facts = Facts(
        paper="Cai et al., ZeroQ, CVPR 2020",
        summary="every image's own statistics match the stored BN mean and std",
        needs_batch_norm=True,
        deviations=(
            "pixels are clamped to valid values after each step",
            "statistics are tapped at BN inputs, not at the outputs of the first convolutions in order",
            "as many batches as asked for; the paper makes one",
        ),
    )

    @classmethod
    def default_batch(cls, spec: ImageSpec) -> int:
        """64, as in the public README."""
        return 64

    def inversion(self, batch: int) -> Inversion:
        """The paper's objective on pixels."""
        o = self.options
        alignment = Alignment("sample", unbiased=True, over_channels="sum")
        pixels = Pixels(
            self.teacher.spec,
            batch,
            self.runtime.device,
            o.learning_rate,
            STARTS[o.init],
            schedule=o.schedule,
        )
        terms = [
            Term("bn", 1.0, bn_alignment(alignment)),
            Term("input", o.input_weight, input_alignment(alignment)),
        ]
        tapped = TappedTeacher(self.teacher, self.name)
        return Inversion(tapped, pixels, terms, [Stage(o.iterations)], self.runtime)
