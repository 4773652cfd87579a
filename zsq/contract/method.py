"""How images are made."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from zsq.contract.parts import Facts, StepLog
from zsq.contract.teacher import Teacher
from zsq.core.boxes import Target
from zsq.core.effort import Curve
from zsq.core.imagespec import ImageSpec
from zsq.core.options import Options
from zsq.core.runtime import Runtime
from zsq.plan import Group


@dataclass(frozen=True)
class SyntheticBatch:
    """A group's images as a method leaves them: un-augmented, standard space, float32, on any device.

    `targets_NK` are the class probabilities the method asked for (rows sum to 1), None for a method without
    labels. `losses` are the final values of each loss term, for the log. `boxes` are those that the method
    asked of each image, see `zsq.core.boxes`; None for a method that asks for none.
    """

    standard_NCHW: Tensor
    targets_NK: Tensor | None = None
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict)
    boxes: tuple[Target, ...] | None = None


class Generator(ABC):
    """A method. It draws randomness only from the group's streams and leaves the teacher as it was."""

    name: ClassVar[str]
    facts: ClassVar[Facts]
    options_class: ClassVar[type[Options]] = Options
    batches_per_group: ClassVar[int | None] = 1
    curve: ClassVar[Curve | None] = None
    # Of a method that makes boxes: drawn at random, or also taken from what the teacher finds in the images.
    box_labels: Literal["random", "sampled"] | None = None

    def __init__(self, teacher: Teacher, options: Any, runtime: Runtime) -> None:
        """Keep the parts; `zsq.generators.require` has checked that the teacher suits the method's facts."""
        self.teacher = teacher
        self.options = options
        self.runtime = runtime

    @classmethod
    def default_batch(cls, spec: ImageSpec) -> int:
        """Images optimised together where `--batch` does not say."""
        return 128

    @classmethod
    def grouping(cls, options: Any) -> int | None:
        """Batches per group with these options; None: the whole set is one group."""
        return cls.batches_per_group

    @classmethod
    def teacher_passes(cls, options: Any, count: int) -> int:
        """Teacher passes (forward and backward of one image) that `count` images take in all."""
        return getattr(options, "iterations", 0) * count

    def network_bytes(self, batch: int) -> int:
        """Memory that training a network of the method's own takes in a step of `batch` images, about."""
        return 0

    def read(self, pixels_NCHW: Tensor, labels_N: Tensor) -> None:
        """Take the images that `--real` names, once and before `prepare`, where the facts say `needs_real`:
        uint8 pixels and int64 labels, -1 for none. Of real images there is one per class.

        Raises:
            MismatchError: the method cannot use them.
        """
        raise NotImplementedError

    def prepare(self, seed: int, cache: Path, log: StepLog) -> None:
        """What all groups share, such as a trained network: made once per run, from `seed` alone, and cached
        below `cache` where it is expensive. Nothing for most pixel methods.

        Of several processes, the first is through with it before the others begin: they find its cache.
        """
        return None

    @abstractmethod
    def synthesize(self, group: Group, log: StepLog) -> SyntheticBatch:
        """Make the group's images; `log` advances in image-iterations."""
