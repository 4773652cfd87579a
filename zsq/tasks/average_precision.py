"""Average precision as COCO's evaluation has it, for all sizes of objects together: numpy alone.

Per class and threshold of the overlap, each box takes, by falling score, the free true box of the largest
overlap. Precision is made monotone and averaged over 101 recalls; the mean is over classes that have a true
box. Boxes marked `iscrowd` are no truth: a box found inside of one counts neither way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MAX_BOXES = 100  # of one class in one image
MAX_CELLS = 4_000_000  # draws x hits, or images x hits, at once: 32 MB an array


class Matches(NamedTuple):
    """What was found of one class in all images, by falling score: D boxes found, T thresholds, N images.

    Attributes:
        images_D: the image of each box.
        hits_TD: it took a true box.
        counts_TD: it counts at all: it took none that is marked as a crowd.
        truths_N: the true boxes in each image.
    """

    images_D: np.ndarray
    hits_TD: np.ndarray
    counts_TD: np.ndarray
    truths_N: np.ndarray


def match(found: Sequence[Mapping[str, Tensor]], truth: Sequence[Mapping[str, Tensor]]) -> dict[int, Matches]:
    """What was `found` in each image against the `truth`, by class; classes without a true box are left out.

    Args:
        found: of each image `boxes` (n, 4) x1 y1 x2 y2, `scores` (n,), `labels` (n,).
        truth: of each image `boxes`, `labels`, and perhaps `iscrowd` bool (n,).
    """
    found_arrays, truth_arrays = ([_arrays(each) for each in images] for images in (found, truth))
    labels = [each["labels"][~each["iscrowd"]] for each in truth_arrays]
    return {
        int(label): _match_class(found_arrays, truth_arrays, label)
        for label in np.unique(np.concatenate(labels or [np.empty(0, np.int64)]))
    }


def average_precision(matches: Mapping[int, Matches], weights_RN: np.ndarray | None = None) -> np.ndarray:
    """(R, T) in 0..1 at each of `THRESHOLDS`; NaN where no image has a true box.

    Args:
        weights_RN: how often each image counts, in each of R draws; None: every image once, R = 1.
    """
    if not matches:
        return np.full((1 if weights_RN is None else len(weights_RN), len(THRESHOLDS)), np.nan)
    if weights_RN is None:
        weights_RN = np.ones((1, len(next(iter(matches.values())).truths_N)), int)
    rows = max(1, MAX_CELLS // max(int(each.hits_TD.sum(1).max(initial=1)) for each in matches.values()))
    blocks = [weights_RN[first : first + rows] for first in range(0, len(weights_RN), rows)]
    classes = [
        np.concatenate([_class_precision(each, block) for block in blocks]) for each in matches.values()
    ]
    per_class = np.stack(classes)
    known = ~np.isnan(per_class)
    # A draw may hold no image with a true box.
    with np.errstate(invalid="ignore"):
        return np.where(known, per_class, 0).sum(0) / known.sum(0)


def _arrays(image: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    arrays = {name: rows.detach().cpu().numpy() for name, rows in image.items()}
    return (
        {"iscrowd": np.zeros(len(arrays["labels"]), bool)} | arrays | {"boxes": arrays["boxes"].astype(float)}
    )


def _match_class(found: list[dict], truth: list[dict], label: int) -> Matches:
    scores, images, hits, counts = [], [], [], []
    truths = np.array([((each["labels"] == label) & ~each["iscrowd"]).sum() for each in truth])
    for image, (boxes, true) in enumerate(zip(found, truth, strict=True)):
        chosen = np.flatnonzero(boxes["labels"] == label)
        order = chosen[np.argsort(-boxes["scores"][chosen], kind="stable")][:MAX_BOXES]
        wanted = np.flatnonzero(true["labels"] == label)
        overlaps = _overlaps(boxes["boxes"][order], true["boxes"][wanted], true["iscrowd"][wanted])
        taken = np.stack([_taken(overlaps, true["iscrowd"][wanted], at) for at in THRESHOLDS])
        scores.append(boxes["scores"][order])
        images.append(np.full(len(order), image))
        crowd = np.append(true["iscrowd"][wanted], False)[taken]
        hits.append((taken >= 0) & ~crowd)
        counts.append(~crowd)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hits_TD, counts_TD = (np.concatenate(each, 1)[:, order] for each in (hits, counts))
    return Matches(np.concatenate(images)[order], hits_TD, counts_TD, truths)


def _overlaps(boxes_D4: np.ndarray, truth_G4: np.ndarray, crowd_G: np.ndarray) -> np.ndarray:
    """IoU (D, G); with a crowd, the share of the found box that lies in it."""
    low = np.maximum(boxes_D4[:, None, :2], truth_G4[None, :, :2])
    high = np.minimum(boxes_D4[:, None, 2:], truth_G4[None, :, 2:])
    common = (high - low).clip(0).prod(2)
    area_D, area_G = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (boxes_D4, truth_G4))
    whole = np.where(crowd_G, area_D[:, None], area_D[:, None] + area_G - common)
    return np.divide(common, whole, out=np.zeros_like(common), where=whole > 0)


def _taken(overlaps_DG: np.ndarray, crowd_G: np.ndarray, threshold: float) -> np.ndarray:
    """The true box that each found one takes, -1 for none; a crowd where nothing else is left to take."""
    taken, free = np.full(len(overlaps_DG), -1), np.ones(len(crowd_G), bool)
    for row in np.flatnonzero((overlaps_DG >= threshold).any(1)):
        for candidates in (free & ~crowd_G, crowd_G):
            possible = np.where(candidates, overlaps_DG[row], -1.0)
            # Of equal overlaps the last, as pycocotools has it.
            best = len(possible) - 1 - int(possible[::-1].argmax())
            if possible[best] >= threshold:
                taken[row], free[best] = best, crowd_G[best]
                break
    return taken


def _class_precision(matches: Matches, weights_RN: np.ndarray) -> np.ndarray:
    """(R, T); NaN where a draw holds no image with a true box of the class."""
    truths_R = weights_RN @ matches.truths_N
    columns = []
    for hits_D, counts_D in zip(matches.hits_TD, matches.counts_TD, strict=True):
        # Precision falls between two hits: what is largest from a hit on is that of a hit.
        passed_RH = _passed(matches.images_D, np.flatnonzero(hits_D), counts_D, weights_RN)
        hits_RH = np.cumsum(weights_RN[:, matches.images_D[hits_D]], axis=1)
        precision = hits_RH / np.maximum(passed_RH, 1)
        monotone = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # A recall is read where it is first reached; a hit reaches as many of them as its step passes.
        recalls = np.searchsorted(RECALLS, hits_RH / np.maximum(truths_R, 1)[:, None], side="right")
        reached = np.diff(recalls, axis=1, prepend=0)
        columns.append((monotone * reached).sum(1) / len(RECALLS))
    return np.where(truths_R[:, None] > 0, np.stack(columns, 1), np.nan)


def _passed(
    images_D: np.ndarray, places_H: np.ndarray, counts_D: np.ndarray, weights_RN: np.ndarray
) -> np.ndarray:
    """(R, H): how many boxes that count are found up to each hit, which stands at a place among them.

    A product with what each image adds, since draws times boxes would be a hundred times as many numbers.
    """
    num_images = weights_RN.shape[1]
    step = max(1, MAX_CELLS // max(num_images, 1))
    blocks, seen_N1, start = [np.empty((len(weights_RN), 0))], np.zeros((num_images, 1)), 0
    for first in range(0, len(places_H), step):
        block_H = places_H[first : first + step]
        boxes = np.flatnonzero(counts_D[start : block_H[-1] + 1]) + start
        cells = images_D[boxes] * len(block_H) + np.searchsorted(block_H, boxes)
        added_NH = np.bincount(cells, minlength=num_images * len(block_H)).reshape(num_images, -1)
        passed_NH = seen_N1 + added_NH.cumsum(1)
        # Of floats, for which a product is fast; whole numbers stay exact in them.
        blocks.append(weights_RN.astype(float) @ passed_NH)
        seen_N1, start = passed_NH[:, -1:], block_H[-1] + 1
    return np.concatenate(blocks, 1)
