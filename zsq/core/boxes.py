"""Boxes of objects: corners x1 y1 x2 y2 in pixels, float (n, 4), from the top left corner of the image.

What an image shows is a `Target`, a dict as torchvision's detectors take it: `boxes` and `labels` int64 (n,);
n may be 0. What a detector found also has `scores` (n,) in 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Target = dict[str, Tensor]

# Square pixels; a box that is cut to less by the border of the image is no box any more.
MIN_AREA = 1.0


def no_boxes() -> Target:
    """The target of an image that shows no object."""
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def iou(boxes_N4: Tensor, others_M4: Tensor) -> Tensor:
    """Intersection over union of each pair, (N, M) in 0..1; 0 for two boxes without area."""
    # Torchvision takes a second to load, and most that read this file need no overlap.
    from torchvision.ops import box_iou

    return box_iou(boxes_N4, others_M4).nan_to_num(0.0)


def complete_iou(boxes_N4: Tensor, others_N4: Tensor) -> Tensor:
    """Complete IoU of the boxes of one row, (N,) in -2..1, differentiable (Zheng et al., 2020).

    IoU - distance of centres² / diagonal of the hull² - alpha v; v compares the aspect ratios, and alpha is
    taken as constant.
    """
    from torchvision.ops import complete_box_iou_loss

    return 1 - complete_box_iou_loss(boxes_N4, others_N4)


def flipped(target: Target, width: int) -> Target:
    """The target of the image mirrored left to right."""
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    return target | {"boxes": torch.stack([width - x2, y1, width - x1, y2], 1)}


def rolled(target: Target, shift: Sequence[int] | Tensor, size: tuple[int, int]) -> Target:
    """The target of the image of `size` (height, width) rolled by `shift` pixels (down, right).

    Pixels wrap around and boxes do not: they are cut at the border.
    """
    down, right = (float(pixels) for pixels in shift)
    return clipped(target | {"boxes": target["boxes"] + _corners(target["boxes"], right, down)}, size)


def clipped(target: Target, size: tuple[int, int]) -> Target:
    """The boxes cut to an image of `size` (height, width); those with under `MIN_AREA` left are dropped.

    Each entry of `target` with a row per box loses the rows of the dropped boxes.
    """
    height, width = size
    boxes = target["boxes"].clamp(min=0).minimum(target["boxes"].new_tensor([width, height, width, height]))
    kept = (boxes[:, 2:] - boxes[:, :2]).prod(1) >= MIN_AREA
    return {name: rows[kept] for name, rows in (target | {"boxes": boxes}).items()}


def scaled(target: Target, factors: tuple[float, float], offset: tuple[float, float] = (0.0, 0.0)) -> Target:
    """The target of the image whose height and width are multiplied by `factors`, and which then loses
    `offset` pixels at the top and at the left."""
    boxes = target["boxes"]
    factor, lost = (_corners(boxes, right, down) for down, right in (factors, offset))
    return target | {"boxes": boxes * factor - lost}


def _corners(boxes: Tensor, right: float, down: float) -> Tensor:
    """What belongs to x1 y1 x2 y2."""
    return boxes.new_tensor([right, down, right, down])
