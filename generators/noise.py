"""Gaussian noise with the normalisation's mean and std: the floor every method must beat."""

from __future__ import annotations

from zsq.contract import Facts, Generator, StepLog, SyntheticBatch
from zsq.engine.parameterise import gaussian
from zsq.plan import Group


class Noise(Generator):
    """Independent N(0, 1) pixels in standard space, clipped to valid pixel values when stored."""

    name = "noise"
    facts = Facts(paper="none", summary="Gaussian pixels with the data's mean and std; nothing is optimised")

    def synthesize(self, group: Group, log: StepLog) -> SyntheticBatch:
        """Draw the group's images."""
        rng = group.generator("synthesis")
        images = gaussian((group.num_images, *self.teacher.spec.shape), rng)
        log.advance(group.num_images)
        return SyntheticBatch(images)
