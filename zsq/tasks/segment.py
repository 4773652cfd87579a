"""A class per pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zsq.core.errors import ImagesError, MismatchError
from zsq.core.wording import quantity
from zsq.tasks.base import AGREEMENT, Meter, Metric, Scores, Task, Truth

# The class of pixels that do not count.
IGNORED = 255


@dataclass(frozen=True)
class Segment(Task):
    """(N, K, H, W) logits; `targets` are masks, a class for every pixel, uint8 (N, H, W), 255 for none."""

    name: ClassVar[str] = "segment"
    wants: ClassVar[str] = "(N, K, H, W) logits"
    metrics: ClassVar[Mapping[str, Metric]] = {"agreement": AGREEMENT, "miou": Metric("mean IoU")}
    size_key: ClassVar[str | None] = "num_classes"
    counted: ClassVar[str] = "class"
    quality: ClassVar[str | None] = "miou"
    trains: ClassVar[bool] = True
    takes_signals: ClassVar[bool] = False

    def suits(self, outputs: Tensor) -> bool:
        """One batch of maps."""
        return isinstance(outputs, Tensor) and outputs.dim() == 4

    def meter(self) -> Meter:
        """Mean IoU and pixel accuracy where there are masks, and agreement with the teacher."""
        return _Confusion()

    def has_truth(self, images: Truth) -> bool:
        """There are masks."""
        targets = images.targets
        return targets is not None and targets.dim() == 3 and targets.dtype == torch.uint8

    def check_truth(self, images: Truth, num_outputs: int | None) -> None:
        """There are masks, of the network's classes."""
        if images.targets is None or not self.has_truth(images):
            expected = "masks: an .npz with 'targets', uint8 (N, H, W), 255 for pixels that do not count"
            raise ImagesError("evaluation images without masks", expected)
        counted = images.targets[images.targets != IGNORED]
        highest = int(counted.max()) if len(counted) else -1
        if highest < 0:
            raise ImagesError(f"masks in which every pixel is {IGNORED}", "a class for some pixels")
        if num_outputs is not None and highest >= num_outputs:
            expected = f"0..{num_outputs - 1}, the teacher's {quantity(num_outputs, 'class')}, or {IGNORED}"
            raise MismatchError(f"masks with class {highest}", expected)

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL(softmax(teacher) || softmax(student)) of each position, mean over N and positions."""
        own, other = (F.log_softmax(part.float(), 1) for part in (student, teacher))
        divergence = F.kl_div(own, other, reduction="sum", log_target=True)
        return divergence / (student.numel() / student.shape[1])


class _Confusion(Meter):
    """`counts_KK`: pixels by their class in the mask and the one found."""

    def __init__(self) -> None:
        super().__init__()
        self.counts_KK: Tensor | None = None
        self.pixels = self.agreed = 0

    def _add(self, student: Tensor, teacher: Tensor, truth: Truth | None, rows: slice) -> None:
        same = student.argmax(1) == teacher.argmax(1)
        self.pixels += same.numel()
        self.agreed += int(same.sum())
        if truth is not None and truth.targets is not None:
            counts = confusion(student, truth.targets[rows])
            self.counts_KK = counts if self.counts_KK is None else self.counts_KK + counts

    def _scores(self) -> Scores:
        agreed = {"agreement": 100.0 * self.agreed / self.pixels}
        return Scores(agreed if self.counts_KK is None else from_confusion(self.counts_KK) | agreed)


def confusion(logits_NKHW: Tensor, masks_NHW: Tensor) -> Tensor:
    """int64 (K, K): pixels by class in the mask and class found. Logits of another size than the masks are
    resized to it, bilinearly."""
    num_classes, size = logits_NKHW.shape[1], masks_NHW.shape[1:]
    if logits_NKHW.shape[2:] != size:
        logits_NKHW = F.interpolate(logits_NKHW, size=list(size), mode="bilinear", align_corners=False)
    counted = masks_NHW != IGNORED
    cells = masks_NHW[counted].long() * num_classes + logits_NKHW.argmax(1)[counted]
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def from_confusion(counts_KK: Tensor) -> dict[str, float]:
    """`miou`, the mean over classes that occur in masks or were found, and `pixel_accuracy`, in points."""
    right_K = counts_KK.diagonal()
    union_K = counts_KK.sum(0) + counts_KK.sum(1) - right_K
    occurs = union_K > 0
    shares = right_K[occurs].double() / union_K[occurs].double()
    return {
        "miou": 100 * shares.mean().item(),
        "pixel_accuracy": 100.0 * int(right_K.sum()) / int(counts_KK.sum()),
    }
