"""What a detector is asked to find: boxes for each image, the loss against them, and how they change.

Suffixes: N images, T boxes asked of an image at most, A boxes that the detector puts out, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zsq.core.boxes import Target, clipped, complete_iou, iou

# Task-aligned assignment and weights of the loss, as TSZ takes them from YOLO11.
SCORE_POWER, IOU_POWER, TOP = 0.5, 6, 10
BOX_WEIGHT, CLASS_WEIGHT = 7.5, 0.5
# A score of exactly 0 or 1 has no logarithm.
SCORE_MARGIN = 1e-6

# Label sampling of TSZ: what counts as found, as the same box, and as a box at all by its share of the image.
FOUND_SCORE, SAME_IOU, LEAST_SHARE, LARGEST_SHARE = 0.2, 0.35, 0.01, 0.85
# Boxes of an image are padded to a multiple of it.
ROWS = 4
# Sides of the first box, as shares of the image's (DIODE).
SIDES = (0.2, 0.8)


@dataclass(frozen=True)
class PaddedTargets:
    """The targets of N images side by side: `boxes` (N, T, 4), `labels` int64 (N, T), and `present` bool
    (N, T), False in rows that only fill up."""

    boxes: Tensor
    labels: Tensor
    present: Tensor

    def unpadded(self) -> list[Target]:
        """The target of each image."""
        rows = zip(self.boxes, self.labels, self.present, strict=True)
        return [{"boxes": boxes[present], "labels": labels[present]} for boxes, labels, present in rows]


def padded(targets: Sequence[Target], device: torch.device | str = "cpu") -> PaddedTargets:
    """The targets filled up to a multiple of `ROWS`: a compiled step is compiled anew for another number."""
    most = max([1, *(len(each["labels"]) for each in targets)])
    most += ROWS - (most - 1) % ROWS - 1
    boxes, labels, present = [], [], []
    for each in targets:
        missing = most - len(each["labels"])
        boxes.append(F.pad(each["boxes"].float(), (0, 0, 0, missing)))
        labels.append(F.pad(each["labels"], (0, missing)))
        present.append(torch.arange(most) < len(each["labels"]))
    return PaddedTargets(*(torch.stack(part).to(device) for part in (boxes, labels, present)))


def detection_loss(boxes_NA4: Tensor, scores_NAK: Tensor, targets: PaddedTargets) -> Tensor:
    """The loss of each image (N,) against its own targets alone.

    A box a suits a target t of class c by q = score_ac^.5 IoU^6. A target takes the 10 boxes that suit it
    best of those whose centre it holds, and a box taken twice goes to the target it overlaps more. With
    y = q max_a IoU / max_a q, constant: 7.5 sum y (1 - CIoU) / sum y + .5 sum BCE(score, y) / max(sum y, 1).
    This is the loss of YOLO11 in TSZ (ICCV 2025), without its distribution of distances.
    """
    with torch.no_grad():
        soft_NTA = _assigned(boxes_NA4, scores_NAK, targets)
        weight_NA, owner_NA = soft_NTA.max(1)
        labels_NA = targets.labels.gather(1, owner_NA)
        wanted_NAK = F.one_hot(labels_NA, scores_NAK.shape[-1]) * weight_NA[..., None]
        wanted_NA4 = targets.boxes.gather(1, owner_NA[..., None].expand(-1, -1, 4))
        total_N = weight_NA.sum(1)
    # The gradient of a box without area is NaN, also where its weight is 0.
    some_4 = boxes_NA4.new_tensor([0.0, 0.0, 1.0, 1.0])
    pair = (torch.where((weight_NA > 0)[..., None], each, some_4) for each in (boxes_NA4, wanted_NA4))
    ciou_NA = complete_iou(*(each.flatten(0, 1) for each in pair)).view_as(weight_NA)
    boxes_N = (weight_NA * (1 - ciou_NA)).sum(1) / total_N.clamp_min(1e-9)
    safe_NAK = scores_NAK.clamp(SCORE_MARGIN, 1 - SCORE_MARGIN)
    entropy_N = F.binary_cross_entropy(safe_NAK, wanted_NAK, reduction="none").sum((1, 2))
    return BOX_WEIGHT * boxes_N + CLASS_WEIGHT * entropy_N / total_N.clamp_min(1)


def _assigned(boxes_NA4: Tensor, scores_NAK: Tensor, targets: PaddedTargets) -> Tensor:
    """y (N, T, A): 0 where the target does not take the box."""
    overlap_NTA = torch.stack([iou(t, b) for t, b in zip(targets.boxes, boxes_NA4, strict=True)])
    labels_NAT = targets.labels[:, None].expand(-1, boxes_NA4.shape[1], -1)
    score_NTA = scores_NAK.gather(2, labels_NAT).transpose(1, 2)
    centre_N1A2 = ((boxes_NA4[..., :2] + boxes_NA4[..., 2:]) / 2)[:, None]
    low_NT12, high_NT12 = targets.boxes[:, :, None, :2], targets.boxes[:, :, None, 2:]
    inside_NTA = ((centre_N1A2 > low_NT12) & (centre_N1A2 < high_NT12)).all(-1)
    suits_NTA = score_NTA**SCORE_POWER * overlap_NTA**IOU_POWER * inside_NTA * targets.present[..., None]
    best = suits_NTA.topk(min(TOP, suits_NTA.shape[-1]), dim=-1)
    taken_NTA = torch.zeros_like(suits_NTA).scatter(-1, best.indices, 1.0) * (suits_NTA > 0)
    owner_NA = (overlap_NTA * taken_NTA).argmax(1)
    owned_NTA = F.one_hot(owner_NA, suits_NTA.shape[1]).transpose(1, 2) * taken_NTA
    largest_NT1, most_NT1 = ((each * owned_NTA).amax(-1, True) for each in (overlap_NTA, suits_NTA))
    return suits_NTA * owned_NTA * largest_NT1 / most_NT1.clamp_min(1e-30)


def one_box(labels: Sequence[int], size: tuple[int, int], generator: torch.Generator) -> Target:
    """A target of one box: sides drawn from .2 to .8 of those of an image of `size` (height, width), anywhere
    inside, and one of `labels`, all uniform (DIODE, Chawla et al., WACV 2021)."""
    draws = torch.rand(4, generator=generator)
    extent = torch.tensor([size[1], size[0]])
    sides = extent * (SIDES[0] + (SIDES[1] - SIDES[0]) * draws[:2])
    corner = (extent - sides) * draws[2:]
    label = torch.randint(len(labels), (1,), generator=generator)
    return {"boxes": torch.cat([corner, corner + sides])[None], "labels": torch.tensor(labels)[label]}


def resampled(target: Target, found: Target, size: tuple[int, int]) -> Target:
    """The target after TSZ's label sampling: boxes that the detector found are added where no box is asked
    for, and boxes that it did not find are taken away.

    Found is what scores over .2, the same an overlap of at least .35 whatever the class. What is added covers
    more than 1 % and less than 85 % of the image of `size` (height, width). Where nothing is found, or a
    single box is asked for, nothing is taken away; if all would go, the one with the largest overlap stays.
    """
    seen = clipped({name: rows[found["scores"] > FOUND_SCORE] for name, rows in found.items()}, size)
    boxes, labels = target["boxes"], target["labels"]
    if len(seen["labels"]) == 0:
        return target
    overlap_PT = iou(seen["boxes"], boxes)
    share_P = (seen["boxes"][:, 2:] - seen["boxes"][:, :2]).prod(1) / (size[0] * size[1])
    sized_P = (share_P > LEAST_SHARE) & (share_P < LARGEST_SHARE)
    if len(labels) == 0:
        return {"boxes": seen["boxes"][sized_P], "labels": seen["labels"][sized_P]}
    new_P = sized_P & (overlap_PT.amax(1) < SAME_IOU)
    best_T = overlap_PT.amax(0)
    kept_T = best_T >= SAME_IOU
    if len(labels) == 1 or not kept_T.any():
        kept_T[best_T.argmax()] = True
    return {
        "boxes": torch.cat([boxes[kept_T], seen["boxes"][new_P]]),
        "labels": torch.cat([labels[kept_T], seen["labels"][new_P]]),
    }
