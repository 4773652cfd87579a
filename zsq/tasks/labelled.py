"""What tasks share whose images have a label each and whose outputs are rows."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from zsq.core.errors import ImagesError
from zsq.tasks.base import Task, Truth


class Labelled(Task):
    """`labels_are` and `labelled_by` say in words what the labels are, and where they come from."""

    labels_are: ClassVar[str]
    labelled_by: ClassVar[str]
    quality: ClassVar[str | None] = "accuracy"
    stores_logits: ClassVar[bool] = True
    trains: ClassVar[bool] = True

    def suits(self, outputs: Tensor) -> bool:
        """One matrix."""
        return isinstance(outputs, Tensor) and outputs.dim() == 2

    def has_truth(self, images: Truth) -> bool:
        """An image has a label."""
        return bool((images.labels >= 0).any())

    def check_truth(self, images: Truth, num_outputs: int | None) -> None:
        """Every image has a label."""
        missing = int((images.labels < 0).sum())
        if missing:
            found = f"{missing} of {len(images.labels)} evaluation images have no label"
            remedy = f"evaluate on {self.labelled_by} or on an .npz with 'labels'"
            raise ImagesError(found, self.labels_are, remedy)
