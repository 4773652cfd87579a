"""One class per image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from zsq.core.errors import MismatchError
from zsq.core.wording import quantity
from zsq.tasks.base import AGREEMENT, Meter, Metric, Scores, Truth
from zsq.tasks.labelled import Labelled


def accuracy(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Share of images whose largest logit is their label, 0..100."""
    return 100.0 * int((logits_NK.argmax(1).cpu() == labels_N.cpu()).sum()) / len(labels_N)


def agreement(student_NK: Tensor, teacher_NK: Tensor) -> float:
    """Share of images on which two networks have the same top-1, 0..100."""
    return accuracy(student_NK, teacher_NK.argmax(1))


@dataclass(frozen=True)
class Classify(Labelled):
    """(N, K) logits; the label of an image is its class, 0..K-1."""

    name: ClassVar[str] = "classify"
    wants: ClassVar[str] = "(N, K) logits"
    metrics: ClassVar[Mapping[str, Metric]] = {"agreement": AGREEMENT}
    size_key: ClassVar[str | None] = "num_classes"
    counted: ClassVar[str] = "class"
    has_classes: ClassVar[bool] = True
    labels_are: ClassVar[str] = "class labels"
    labelled_by: ClassVar[str] = "class folders"

    def meter(self) -> Meter:
        """Accuracy where there are labels, and agreement with the teacher."""
        return _Counts()

    def check_truth(self, images: Truth, num_outputs: int | None) -> None:
        """Labels are 0..K-1."""
        super().check_truth(images, num_outputs)
        highest = int(images.labels.max())
        if num_outputs is not None and highest >= num_outputs:
            expected = f"0..{num_outputs - 1}, the teacher's {quantity(num_outputs, 'class')}"
            raise MismatchError(f"evaluation labels up to {highest}", expected)

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL(softmax(teacher) || softmax(student)), mean over N."""
        own, other = (F.log_softmax(part.float(), 1) for part in (student, teacher))
        return F.kl_div(own, other, reduction="batchmean", log_target=True)


class _Counts(Meter):
    def __init__(self) -> None:
        super().__init__()
        self.images = self.right = self.agreed = 0
        self.labelled = False

    def _add(self, student: Tensor, teacher: Tensor, truth: Truth | None, rows: slice) -> None:
        found_N = student.argmax(1)
        self.images += len(found_N)
        self.agreed += int((found_N == teacher.argmax(1)).sum())
        if truth is not None:
            self.labelled = True
            self.right += int((found_N == truth.labels[rows]).sum())

    def _scores(self) -> Scores:
        known = {"accuracy": 100.0 * self.right / self.images} if self.labelled else {}
        return Scores(known | {"agreement": 100.0 * self.agreed / self.images})
