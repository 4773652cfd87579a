"""What every task says of a network: the shape of its output, labels, metrics and loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import numpy as np
from torch import Tensor

from zsq.core.boxes import Target
from zsq.core.errors import MismatchError
from zsq.tasks.nesting import Outputs
from zsq.tasks.sqnr import LARGEST_DB, SignalToNoise

BOOTSTRAP_DRAWS = 1000


class Truth(Protocol):
    """An image set: what is known of its images besides their pixels."""

    @property
    def labels(self) -> Tensor:
        """int64 (N,); -1 where there is none."""

    @property
    def targets(self) -> Tensor | None:
        """What the network should make of each image, None where there is none: uint8 images (N, C, H, W), a
        class for every pixel, uint8 (N, H, W), or numbers of any type (N, ...)."""

    @property
    def boxes(self) -> tuple[Target, ...] | None:
        """The objects that each image shows, see `zsq.core.boxes`; None where they are not known."""


@dataclass(frozen=True)
class Metric:
    """One figure of a network.

    Attributes:
        words: how texts call it.
        unit: `points` of a share, `dB` of a ratio, nothing of an error in the unit of the outputs.
        least, most: how far it reaches.
        of_teacher: it compares a student with its teacher, and needs no labels.
    """

    words: str
    unit: Literal["points", "dB", ""] = "points"
    least: float = 0.0
    most: float = 100.0
    of_teacher: bool = False


# What every meter measures.
RATIOS = {
    "sqnr": Metric("signal-to-noise ratio", "dB", -LARGEST_DB, LARGEST_DB, of_teacher=True),
    "sqnr_centred": Metric(
        "signal-to-noise ratio without the mean over images", "dB", -LARGEST_DB, LARGEST_DB, of_teacher=True
    ),
}
# Of classes, whether of an image or a pixel.
AGREEMENT = Metric("agreement", of_teacher=True)


@dataclass(frozen=True)
class Scores:
    """What one network measures: shares in points, ratios in dB.

    Attributes:
        metrics: name -> value, first the one that tables show first; what cannot be measured is left out.
        replicates: each metric in every bootstrap draw, where the task makes some. The draws are the same for
            all students that are scored on the same images.
        roc: of embeddings, TAR at each of `zsq.tasks.verification.ROC_FARS`.
    """

    metrics: dict[str, float]
    replicates: dict[str, list[float]] = field(default_factory=dict)
    roc: list[float] = field(default_factory=list)


class Meter(ABC):
    """Collects batches of outputs of a student and its teacher, then scores them."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.noise = SignalToNoise()

    def add(self, student: Outputs, teacher: Outputs, truth: Truth | None, rows: slice) -> None:
        """Take a batch: outputs on the CPU in float32, as `Teacher.network` returns them.

        Args:
            truth: the whole image set where `Task.check_truth` passed it, else None.
            rows: which of its images these are.
        """
        self.noise.add(student, teacher)
        self._add(student, teacher, truth, rows)

    def scores(self) -> Scores:
        """Of all that was added; the signal-to-noise ratios stand last."""
        own = self._scores()
        return Scores(own.metrics | self.noise.metrics(), own.replicates, own.roc)

    @abstractmethod
    def _add(self, student: Outputs, teacher: Outputs, truth: Truth | None, rows: slice) -> None:
        """What the task wants of a batch."""

    @abstractmethod
    def _scores(self) -> Scores:
        """The task's own metrics."""


@dataclass(frozen=True)
class Task(ABC):
    """What a network's output means. Fields of a task are what a card says of it.

    Attributes:
        name: in cards, records and on the command line.
        wants: the network's output in words, for messages.
        metrics: those of this task by name, but for shares in points that texts call by their name.
        quality: the metric that a teacher alone has on labelled images, None where there is none.
        size_key: the card's field that says how many channels the output has, None where it need not.
        counted: what a channel of the output is.
        has_classes: outputs are logits of one class per image.
        stores_logits: shards hold the teacher's outputs.
        trains: there is a `loss`.
        needs_truth: sources of images are compared by labels; without, by the teacher's outputs.
        takes_signals: its network may take signals in the place of images.
        has_replicates: scores come with those of a bootstrap.
    """

    name: ClassVar[str]
    wants: ClassVar[str]
    metrics: ClassVar[Mapping[str, Metric]] = {}
    quality: ClassVar[str | None] = None
    size_key: ClassVar[str | None] = None
    counted: ClassVar[str] = "channel"
    has_classes: ClassVar[bool] = False
    stores_logits: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = True
    takes_signals: ClassVar[bool] = True
    has_replicates: ClassVar[bool] = False

    @abstractmethod
    def suits(self, outputs: Outputs) -> bool:
        """Whether these may be a batch of this task's outputs."""

    @abstractmethod
    def meter(self) -> Meter:
        """A fresh meter."""

    def has_truth(self, images: Truth) -> bool:
        """Whether some images carry what `quality` is measured against."""
        return False

    def check_truth(self, images: Truth, num_outputs: int | None) -> None:
        """Refuse images without labels, or with labels that are not of this network.

        Raises:
            ImagesError: without labels.
            MismatchError: labels of another network.
        """
        return None

    def loss(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Distance of a batch of a student's outputs from its teacher's, a scalar to minimise."""
        raise NotImplementedError(f"task {self.name} has no loss")


def targets_of(targets: Tensor, outputs: Tensor) -> Tensor:
    """The targets of a batch of outputs, in their shape; (N,) are those of outputs (N, 1).

    Raises:
        MismatchError: they have another shape.
    """
    if targets.dim() == 1 and outputs.shape == (len(targets), 1):
        return targets[:, None]
    if targets.shape != outputs.shape:
        found, made = (tuple(part.shape[1:]) for part in (targets, outputs))
        raise MismatchError(f"targets of {found}", f"{made}, as the network makes")
    return targets


def draw_weights(num_images: int, draws: int = BOOTSTRAP_DRAWS, seed: int = 0) -> np.ndarray:
    """How often each image is in each of `draws` bootstrap samples of the images, (R, N)."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_images, np.full(num_images, 1 / num_images), size=draws)
