"""An embedding per image, compared by its cosine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zsq.tasks.base import Meter, Metric, Scores, Truth
from zsq.tasks.labelled import Labelled


@dataclass(frozen=True)
class Embed(Labelled):
    """(N, D) embeddings; the label of an image is its identity, any integer from 0."""

    name: ClassVar[str] = "embed"
    wants: ClassVar[str] = "(N, D) embeddings"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "cosine": Metric("cosine to the teacher", least=-100.0, of_teacher=True)
    }
    size_key: ClassVar[str | None] = "embedding_size"
    counted: ClassVar[str] = "dimension"
    has_replicates: ClassVar[bool] = True
    labels_are: ClassVar[str] = "identities"
    labelled_by: ClassVar[str] = "identity folders"

    def meter(self) -> Meter:
        """Cosine to the teacher, and where there are identities the figures of verification."""
        return _Embeddings()

    def check_truth(self, images: Truth, num_outputs: int | None) -> None:
        """There are enough identities to make pairs of."""
        from zsq.tasks.verification import make_pairs

        super().check_truth(images, num_outputs)
        make_pairs(images.labels.numpy())

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """1 - cosine, mean over N."""
        return 1 - F.cosine_similarity(student.float(), teacher.float()).mean()


class _Embeddings(Meter):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[tuple[Tensor, Tensor]] = []
        self.labels: list[Tensor] = []

    def _add(self, student: Tensor, teacher: Tensor, truth: Truth | None, rows: slice) -> None:
        self.parts.append((student, teacher))
        if truth is not None:
            self.labels.append(truth.labels[rows])

    def _scores(self) -> Scores:
        student_ND, teacher_ND = (torch.cat(side) for side in zip(*self.parts, strict=True))
        if not self.labels:
            cosine = F.cosine_similarity(student_ND.double(), teacher_ND.double()).mean()
            return Scores({"cosine": 100 * cosine.item()})
        return score_embeddings(student_ND, teacher_ND, torch.cat(self.labels))


def score_embeddings(student_ND: Tensor, teacher_ND: Tensor, labels_N: Tensor) -> Scores:
    """Verification of identities and cosine to the teacher, in points; see `zsq.tasks.verification`."""
    from zsq.tasks.verification import verify_embeddings

    found = verify_embeddings(student_ND.numpy(), teacher_ND.numpy(), labels_N.numpy())
    return Scores(
        {name: 100 * value for name, value in found.metrics.items() if value is not None},
        {name: (100 * draws).round(4).tolist() for name, draws in found.replicates_R.items()},
        [round(100 * tar, 4) for tar in found.roc],
    )
