"""Boxes follow what is done to their image."""

import math

import pytest
import torch

from zsq.core.boxes import clipped, complete_iou, flipped, iou, rolled, scaled
from zsq.engine.views import Flip, Roll

SIZE = (24, 32)


def target(*boxes, labels=None):
    labels = range(len(boxes)) if labels is None else labels
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(list(labels), dtype=torch.int64),
    }


def painted(found):
    """An image (1, 1, H, W) that is 1 inside of the boxes."""
    image = torch.zeros(1, 1, *SIZE)
    for x1, y1, x2, y2 in found["boxes"].round().int().tolist():
        image[..., y1:y2, x1:x2] = 1
    return image


def test_overlaps_by_hand():
    left, right = target((0, 0, 4, 4), (0, 0, 0, 0)), target((2, 0, 6, 4), (0, 0, 4, 4), (0, 0, 0, 0))
    expected = [[8 / 24, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert torch.allclose(iou(left["boxes"], right["boxes"]), torch.tensor(expected))


def test_complete_overlap_by_hand():
    wide, tall = target((0, 0, 4, 2))["boxes"], target((2, 0, 4, 4))["boxes"]
    overlap = 4 / 12
    distance = (1**2 + 1**2) / (4**2 + 4**2)
    aspect = 4 / math.pi**2 * (math.atan(2) - math.atan(0.5)) ** 2
    expected = overlap - distance - aspect * aspect / (1 - overlap + aspect)
    assert complete_iou(wide, tall).item() == pytest.approx(expected, abs=1e-6)
    assert complete_iou(wide, wide).item() == pytest.approx(1, abs=1e-6)


def test_a_painted_box_and_its_target_agree_after_a_flip():
    shown = target((3, 5, 11, 9))
    image = Flip()(painted(shown), torch.tensor([True]).reshape(1, 1, 1, 1))
    assert torch.equal(image, painted(flipped(shown, SIZE[1])))


def test_a_painted_box_and_its_target_agree_after_a_roll():
    shown = target((3, 5, 11, 9))
    image = Roll(8)(painted(shown), torch.tensor([-3, 6]))
    assert torch.equal(image, painted(rolled(shown, (-3, 6), SIZE)))


def test_pixels_wrap_and_boxes_do_not():
    shown = target((20, 4, 30, 8), (1, 1, 3, 3), labels=(7, 8))
    after = rolled(shown, torch.tensor([0, 8]), SIZE)
    assert after["boxes"].tolist() == [[28, 4, 32, 8], [9, 1, 11, 3]]
    away = rolled(shown, (0, 12), SIZE)
    assert away["boxes"].tolist() == [[13, 1, 15, 3]] and away["labels"].tolist() == [8]


def test_less_than_a_pixel_is_no_box():
    shown = target((31, 0, 40, 1), (31.5, 0, 40, 1.9), (-5, -5, -1, -1)) | {
        "scores": torch.tensor([0.3, 0.2, 0.1])
    }
    after = clipped(shown, SIZE)
    assert after["boxes"].tolist() == [[31, 0, 32, 1]]
    assert after["labels"].tolist() == [0] and after["scores"].tolist() == pytest.approx([0.3])


def test_an_image_without_boxes_passes():
    nothing = target()
    for after in (flipped(nothing, 32), rolled(nothing, (1, 2), SIZE), scaled(nothing, (0.5, 2))):
        assert after["boxes"].shape == (0, 4) and after["labels"].shape == (0,)


def test_scaled_as_the_photo_is():
    after = scaled(target((2, 4, 10, 8)), (0.5, 2), (1, 3))
    assert after["boxes"].tolist() == [[1, 1, 17, 3]]
