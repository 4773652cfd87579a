"""Boxes of objects, their classes and scores.

The network ends with its raw maps. Functions of the user's own, named by the card, turn
them into boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from zsq.core.boxes import Target
from zsq.core.errors import ImagesError, MismatchError
from zsq.core.wording import quantity
from zsq.tasks.average_precision import average_precision, match
from zsq.tasks.base import Meter, Metric, Scores, Task, Truth, draw_weights
from zsq.tasks.nesting import Outputs, named_tensors

Decode = Callable[[Outputs], Sequence[Any]]
Dense = Callable[[Outputs], tuple[Tensor, Tensor]]
DetectorLoss = Callable[[Outputs, list[Target]], Any]

# The teacher's boxes that count as true, by their score; the first is what tables show.
PSEUDO_TRUTH = {"agreement_ap": 0.5, "agreement_ap25": 0.25}
MIN_SCORE = 0.001
MAX_BOXES = 100  # of an image
# Names that fill a list of classes where there is none; torchvision's lists of COCO have both.
NO_CLASSES = frozenset({"N/A", "__background__"})


@dataclass(frozen=True)
class Detect(Task):
    """The raw maps of a detector, any nesting of tensors. `boxes` of an image set are what its images show.

    Attributes:
        decode: maps -> of each image a dict of `boxes` (n, 4) x1 y1 x2 y2 in pixels, `scores` (n,) in 0..1
            and `labels` (n,) int64, after suppression of double ones; or the three in this order.
        dense: maps -> boxes (N, A, 4) and scores (N, A, K) of everything that the network predicts,
            differentiable.
        training_loss: maps and a target for each image -> the detector's own training loss: a scalar, or a
            dict of scalars.
        num_classes: K; None where the card does not say.
        labels: those of 0..K-1 that objects may have; None where the card does not say.
    """

    name: ClassVar[str] = "detect"
    wants: ClassVar[str] = "raw maps"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "agreement_ap": Metric("AP against the teacher", of_teacher=True),
        "agreement_ap25": Metric("AP against more of the teacher's boxes", of_teacher=True),
        "map": Metric("mAP"),
    }
    trains: ClassVar[bool] = True
    takes_signals: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = False
    has_replicates: ClassVar[bool] = True

    decode: Decode | None = None
    dense: Dense | None = None
    training_loss: DetectorLoss | None = None
    num_classes: int | None = None
    labels: tuple[int, ...] | None = None

    @property
    def quality(self) -> str | None:  # type: ignore[override]
        """Precision needs boxes."""
        return None if self.decode is None else "map"

    def suits(self, outputs: Outputs) -> bool:
        """There is a tensor."""
        return any(True for _ in named_tensors(outputs))

    def meter(self) -> Meter:
        """With `decode`, average precision against the teacher's boxes, and against the true ones where there
        are some."""
        return _Boxes(self)

    def has_truth(self, images: Truth) -> bool:
        """Boxes are known, and can be made of the maps."""
        return self.decode is not None and images.boxes is not None

    def check_truth(self, images: Truth, num_outputs: int | None) -> None:
        """There are boxes, of the network's classes."""
        if self.decode is None:
            raise MismatchError("a detector whose card names no `decode`", "decode = 'module:function'")
        labels = torch.cat([each["labels"] for each in images.boxes or ()] or [torch.zeros(0)])
        if len(labels) == 0:
            raise ImagesError(
                "evaluation images without boxes", "images/ with annotations.json in COCO's form"
            )
        highest = int(labels.max())
        if self.num_classes is not None and highest >= self.num_classes:
            expected = f"0..{self.num_classes - 1}, the teacher's {quantity(self.num_classes, 'class')}"
            raise MismatchError(f"boxes with class {highest}", expected)

    def found(self, outputs: Outputs, count: int) -> list[Target]:
        """What `decode` finds in each of `count` images, by falling score.

        Raises:
            MismatchError: it returns something else than it should.
        """
        images = _called("decode", self.decode, outputs)
        if not isinstance(images, Sequence) or len(images) != count:
            what = (
                quantity(len(images), "image")
                if isinstance(images, Sequence)
                else f"a {type(images).__name__}"
            )
            raise MismatchError(
                f"decode returned {what}", f"a list with an entry for each of {quantity(count, 'image')}"
            )
        return [_checked(image) for image in images]

    def settled(self, outputs: Outputs) -> Detect:
        """This task with what the `outputs` of one image say of the number of classes.

        Raises:
            MismatchError: `decode` or `dense` fails on them, or returns something else than it should.
        """
        count = self.num_classes
        if self.decode is not None:
            self.found(outputs, 1)
        if self.dense is not None:
            found = _called("dense", self.dense, outputs)
            if (
                not isinstance(found, tuple | list)
                or len(found) != 2
                or not all(isinstance(p, Tensor) for p in found)
            ):
                raise MismatchError(
                    f"dense returned a {type(found).__name__}", "two tensors: boxes and scores"
                )
            boxes, scores = (tuple(part.shape) for part in found)
            if len(boxes) != 3 or boxes[2] != 4 or len(scores) != 3 or scores[:2] != boxes[:2]:
                raise MismatchError(f"dense returned shapes {boxes} and {scores}", "(N, A, 4) and (N, A, K)")
            if count not in (None, scores[2]):
                raise MismatchError(
                    f"dense returned scores of {quantity(scores[2], 'class')}", f"num_classes = {count}"
                )
            count = scores[2]
        labels = self.labels if self.labels is not None or count is None else tuple(range(count))
        return replace(self, num_classes=count, labels=labels)

    def loss(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Mean over maps of the squared error / the variance of the teacher's map: all scales count alike."""
        pairs = zip(named_tensors(student), named_tensors(teacher), strict=True)
        parts = [_relative_error(own.float(), other.float()) for (_, own), (_, other) in pairs]
        return torch.stack(parts).mean()


def _called(name: str, function: Callable[..., Any] | None, outputs: Outputs) -> Any:
    assert function is not None
    try:
        return function(outputs)
    # It is the user's own code and may raise anything.
    except Exception as error:
        raise MismatchError(
            f"{name} failed with {type(error).__name__}: {error}", "it to take the raw maps"
        ) from error


def object_labels(names: Sequence[str]) -> tuple[int, ...]:
    """The classes of a list that an object may have: none of `NO_CLASSES`."""
    return tuple(index for index, name in enumerate(names) if name not in NO_CLASSES)


class _Boxes(Meter):
    """Keeps what was found: a few hundred numbers an image."""

    def __init__(self, task: Detect) -> None:
        super().__init__()
        self.task = task
        self.student: list[Target] = []
        self.teacher: list[Target] = []
        self.truth: list[Target] = []

    def _add(self, student: Outputs, teacher: Outputs, truth: Truth | None, rows: slice) -> None:
        if self.task.decode is None:
            return
        count = len(next(tensor for _, tensor in named_tensors(teacher)))
        self.student += [_best(each) for each in self.task.found(student, count)]
        self.teacher += self.task.found(teacher, count)
        if truth is not None and truth.boxes is not None:
            self.truth += truth.boxes[rows]

    def _scores(self) -> Scores:
        if self.task.decode is None:
            return Scores({})
        metrics: dict[str, float] = {}
        replicates: dict[str, list[float]] = {}
        for name, least in PSEUDO_TRUTH.items():
            pseudo = [_chosen(each, each["scores"] >= least) for each in self.teacher]
            precisions, draws = _precisions(self.student, pseudo)
            metrics[name], replicates[name] = precisions["map"], draws
        if self.truth:
            precisions, replicates["map"] = _precisions(self.student, self.truth)
            metrics |= precisions
        known = {name: value for name, value in metrics.items() if not np.isnan(value)}
        return Scores(known, {name: draws for name, draws in replicates.items() if name in known})


def _precisions(found: list[Target], truth: list[Target]) -> tuple[dict[str, float], list[float]]:
    """`map` over all thresholds, `map50` and `map75` in points, and `map` in every draw of images that holds
    a true box."""
    matches = match(found, truth)
    row = 100 * average_precision(matches)[0]
    weights = draw_weights(len(found))
    draws = 100 * average_precision(matches, weights).mean(1)
    values = {"map": row.mean(), "map50": row[0], "map75": row[5]}
    return {name: float(value) for name, value in values.items()}, draws[~np.isnan(draws)].round(4).tolist()


def _checked(image: Any) -> Target:
    names = ("boxes", "scores", "labels")
    if isinstance(image, tuple | list) and len(image) == len(names):
        image = dict(zip(names, image, strict=True))
    if not isinstance(image, Mapping) or not all(isinstance(image.get(name), Tensor) for name in names):
        raise MismatchError(
            "decode returned images without boxes, scores and labels", "the three, as tensors"
        )
    found = {name: image[name].detach().cpu() for name in names}
    count = len(found["scores"])
    shapes = [tuple(found[name].shape) for name in names]
    if shapes != [(count, 4), (count,), (count,)]:
        raise MismatchError(f"decode returned shapes {shapes}", "(n, 4), (n,) and (n,)")
    return _chosen(found, found["scores"].argsort(descending=True, stable=True))


def _best(image: Target) -> Target:
    return _chosen(image, (image["scores"] >= MIN_SCORE).nonzero()[:MAX_BOXES, 0])


def _chosen(image: Target, rows: Tensor) -> Target:
    return {name: values[rows] for name, values in image.items()}


def _relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    variance = teacher.var(correction=0)
    # A map that is the same everywhere has no scale: its error counts as it is.
    return (student - teacher).square().mean() / torch.where(
        variance > 0, variance, torch.ones_like(variance)
    )
