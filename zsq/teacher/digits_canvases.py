"""The images of `embedded:digits-detector`: scikit-learn's handwritten digits placed on 96-px canvases."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zsq.core.boxes import Target, iou, no_boxes
from zsq.core.errors import ImagesError
from zsq.core.seeding import numpy_generator
from zsq.teacher.digits import Split, load_digit_originals

CANVAS = 96
# Sides of the enlarged 8x8 digits in pixels, and how many stand on a canvas at most.
SMALLEST, LARGEST, MOST = 18, 44, 4
# Largest value of the background and least of a digit's own white; both are drawn for each.
DARK, BRIGHT = 110, 150
# A pixel is inside a digit's box from this share of its white on.
INK = 0.25
# Added before rounding down, so that values computed to end in .5 go up on every machine.
ROUND_UP = 0.5 + 1e-6
TRIES = 20

# Canvases in each split, by the split of the digits that stand on them.
NUM_CANVASES: dict[Split, int] = {"train": 512, "test": 256}


def load_digits_canvases(split: Split) -> tuple[Tensor, list[Target]]:
    """The canvases of `embedded:digits-detector:train` (512) or `:test` (256), as `place_digits` makes them.

    Raises:
        ImagesError: no such split.
    """
    if split not in NUM_CANVASES:
        raise ImagesError(f"split '{split}' of embedded:digits-detector", f"one of {', '.join(NUM_CANVASES)}")
    return place_digits(split, NUM_CANVASES[split], seed=0)


def place_digits(split: Split, num_images: int, seed: int) -> tuple[Tensor, list[Target]]:
    """Canvases with one to four digits of `split` on a smooth grey background.

    Returns:
        uint8 pixels (N, 1, 96, 96), and per image `boxes` float32 (n, 4), x1 y1 x2 y2 in pixels around the
        ink, none on another, with `labels` int64 (n,). The same bytes on every machine.

    Raises:
        ImagesError: no such split.
    """
    small_N1HW, labels_N = load_digit_originals(split)
    canvases, targets = [], []
    for index in range(num_images):
        rng = numpy_generator(seed, index, f"digits canvases {split}")
        canvas_HW = _enlarged(torch.from_numpy(rng.integers(0, DARK, (4, 4))).double(), CANVAS)
        target = no_boxes()
        for _ in range(rng.integers(1, MOST + 1)):
            digit = int(rng.integers(len(labels_N)))
            ink_HW = _enlarged(small_N1HW[digit, 0] / 16, int(rng.integers(SMALLEST, LARGEST + 1)))
            box_14 = _drawn(canvas_HW, ink_HW, target["boxes"], rng)
            labels = torch.cat([target["labels"], labels_N[digit].expand(len(box_14))])
            target = {"boxes": torch.cat([target["boxes"], box_14]), "labels": labels}
        canvases.append((canvas_HW + ROUND_UP).floor().to(torch.uint8)[None])
        targets.append(target)
    return torch.stack(canvases), targets


def _enlarged(small_HW: Tensor, side: int) -> Tensor:
    return F.interpolate(small_HW[None, None], size=(side, side), mode="bilinear", align_corners=False)[0, 0]


def _drawn(canvas_HW: Tensor, ink_HW: Tensor, taken_B4: Tensor, rng: np.random.Generator) -> Tensor:
    """Draw the digit where its box overlaps none of `taken_B4`: that box (1, 4), or (0, 4) where no place is
    found."""
    side, white = len(ink_HW), int(rng.integers(BRIGHT, 256))
    rows, columns = (torch.nonzero((ink_HW >= INK).any(axis))[:, 0].tolist() for axis in (1, 0))
    for left, top in rng.integers(0, CANVAS - side + 1, (TRIES, 2)).tolist():
        corners = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
        box_14 = torch.tensor([corners]).float()
        if not iou(box_14, taken_B4).any():
            place_HW = canvas_HW[top : top + side, left : left + side]
            torch.maximum(place_HW, ink_HW * white, out=place_HW)
            return box_14
    return torch.zeros(0, 4)
