"""Genie's data generation, GENIE-D (Jeon, Lee, Kim; CVPR 2023)."""

from __future__ import annotations

import torch
from pydantic import Field

from zsq.contract import Facts
from zsq.core.imagespec import ImageSpec
from zsq.core.options import scales_with_iterations
from zsq.engine.estimate import training_bytes
from zsq.engine.invert import Inversion, InversionMethod, Stage
from zsq.engine.latent import LatentGenerator, LatentNetwork
from zsq.engine.objectives import Term, bn_alignment, input_alignment
from zsq.engine.schedules import Iterations, Patience, PlateauOptions, Rate, exponential
from zsq.engine.statistics import Alignment, TappedTeacher
from zsq.engine.swing import SwingConvolution


class GenieOptions(PlateauOptions):
    """Constants of the public ImageNet code; none are published for other sizes."""

    iterations: Iterations = 4000
    latent: int = Field(256, ge=1)
    learning_rate: Rate = 0.1
    patience: Patience = 100
    generator_learning_rate: float = Field(0.01, gt=0)
    decay: float = Field(0.95, gt=0, le=1)
    decay_every: int = scales_with_iterations(100, ge=1)
    input_weight: float = Field(1.0, ge=0)
    swing: bool = True


class Genie(InversionMethod):
    """Latent vectors and a generator fresh for each batch; swing convolution; batch BN statistics as std."""

    name = "genie"
    options_class = GenieOptions
    facts = Facts(
        paper="Jeon et al., Genie: Show Me the Data for Quantization, CVPR 2023",
        summary="latent vectors and a fresh generator per batch, swing convolution, batch BN statistics",
        needs_batch_norm=True,
        deviations=(
            "the images after the last step are kept, not those before it",
            "a last batch smaller than the others is made too, not left out",
        ),
    )

    @classmethod
    def default_batch(cls, spec: ImageSpec) -> int:
        """128, as in the public code."""
        return 128

    def network_bytes(self, batch: int) -> int:
        """Of a batch's generator."""
        latent = self.options.latent
        with torch.device("meta"):
            return training_bytes(LatentNetwork(self.teacher.spec, latent), [torch.zeros(2, latent)], batch)

    def inversion(self, batch: int) -> Inversion:
        """The paper's objective on latent vectors and generator."""
        o = self.options
        images = LatentGenerator(
            self.teacher.spec,
            batch,
            self.runtime.device,
            o.latent,
            o.learning_rate,
            o.generator_learning_rate,
            o.schedule,
            exponential(o.decay, o.decay_every),
        )
        terms = [
            Term("bn", 1.0, bn_alignment(Alignment("batch", unbiased=True))),
            Term(
                "input",
                o.input_weight,
                input_alignment(Alignment("sample", unbiased=True, over_channels="sum")),
            ),
        ]
        tapped = TappedTeacher(self.teacher, self.name)
        views = (SwingConvolution(tapped),) if o.swing else ()
        return Inversion(tapped, images, terms, [Stage(o.iterations, views)], self.runtime)
