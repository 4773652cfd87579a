"""Textured dead leaves: random images that look natural to a network. No network is asked."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, field_validator

from zsq.contract import Facts, Generator, StepLog, SyntheticBatch
from zsq.core.options import Options
from zsq.engine.textures import EXPONENTS, LEAVES, TEXTURE, dead_leaves, lit
from zsq.plan import Group

Exponent = Annotated[float, Field(ge=0, le=8)]


class LeavesOptions(Options):
    """Constants of our own: benchmarks/experiments.py measures them.

    `light` is the share of the variance that is between images, in their brightness and colour; `contrast`
    the standard deviation of the logarithm of their contrasts. With 0 for both, images are as they fall.
    """

    leaves: int = Field(LEAVES, ge=0, le=10_000)
    exponents: tuple[Exponent, Exponent] = EXPONENTS
    texture: float = Field(TEXTURE, ge=0, le=1)
    light: float = Field(0.0, ge=0, lt=1)
    contrast: float = Field(0.0, ge=0, le=2)

    @field_validator("exponents")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("the first is at most the second")
        return value


class Leaves(Generator):
    """Discs of random size and colour, one upon the other, with power-law textures; nothing is optimised."""

    name = "leaves"
    options_class = LeavesOptions
    facts = Facts(
        paper="our own; dead leaves: Lee, Mumford, Huang, IJCV 2001; as training images: Baradad et al., "
        "Learning to See by Looking at Noise, NeurIPS 2021",
        summary="textured dead leaves: edges, surfaces and spectra of natural images; no network is asked",
        recommended=True,
        deviations=("our own combination: leaves have power-law textures, and images are for calibration",),
    )

    def synthesize(self, group: Group, log: StepLog) -> SyntheticBatch:
        """Draw the group's images one after another."""
        o, shape, rng = self.options, self.teacher.spec.shape, group.generator("synthesis")
        images = []
        for _ in range(group.num_images):
            image = dead_leaves(shape, o.leaves, o.exponents, o.texture, rng)
            images.append(lit(image, o.light, o.contrast, rng) if o.light or o.contrast else image)
            log.advance(1)
        return SyntheticBatch(torch.stack(images))
