"""Average precision is COCO's, to the last digit of a float."""

import contextlib
import io

import numpy as np
import pytest
import torch

from zsq.tasks import average_precision as average_precisions
from zsq.tasks.average_precision import THRESHOLDS, average_precision, match
from zsq.tasks.base import draw_weights


def image(*rows, **more):
    """Boxes and labels, given as x1 y1 x2 y2 label score; a true box has no score."""
    table = torch.tensor([(*row, 0.0)[:6] for row in rows], dtype=torch.float64).reshape(-1, 6)
    return {"boxes": table[:, :4], "labels": table[:, 4].long(), "scores": table[:, 5]} | more


def mean_precision(found, truth):
    return average_precision(match(found, truth)).mean()


EXACT = image((10, 10, 30, 30, 4), (40, 40, 80, 90, 2))


def test_a_detector_agrees_with_itself():
    found = EXACT | {"scores": torch.tensor([0.7, 0.9])}
    assert mean_precision([found, image()], [EXACT, image()]) == 1


def test_nothing_found_is_zero():
    assert mean_precision([image()], [EXACT]) == 0


def test_a_false_box_above_an_exact_one_halves():
    found = image((60, 60, 90, 90, 4, 0.9), (10, 10, 30, 30, 4, 0.8))
    assert mean_precision([found], [image((10, 10, 30, 30, 4))]) == 0.5


def test_a_false_box_below_costs_nothing():
    found = image((60, 60, 90, 90, 4, 0.1), (10, 10, 30, 30, 4, 0.8))
    assert mean_precision([found], [image((10, 10, 30, 30, 4))]) == 1


def test_the_right_place_with_another_class_is_no_hit():
    assert mean_precision([image((10, 10, 30, 30, 5, 0.9))], [image((10, 10, 30, 30, 4))]) == 0


def test_an_overlap_counts_up_to_its_threshold():
    # IoU 0.7: five of the ten thresholds.
    found, truth = image((0, 0, 7, 10, 0, 0.9)), image((0, 0, 10, 10, 0))
    result = average_precision(match([found], [truth]))[0]
    assert result.tolist() == (THRESHOLDS <= 0.7).astype(float).tolist() and result.sum() == 5


def test_a_true_box_is_taken_once():
    found = image((0, 0, 10, 10, 0, 0.9), (0, 0, 10, 10, 0, 0.8))
    truth = image((0, 0, 10, 10, 0), (50, 50, 60, 60, 0))
    assert mean_precision([found], [truth]) == pytest.approx(51 / 101)


def test_without_a_true_box_there_is_no_figure():
    assert np.isnan(average_precision(match([image((0, 0, 1, 1, 0, 0.5))], [image()]))).all()


def test_a_crowd_is_no_truth_and_takes_what_lies_in_it():
    crowd = image((0, 0, 100, 100, 0), (200, 0, 210, 10, 0), iscrowd=torch.tensor([True, False]))
    found = image((10, 10, 20, 20, 0, 0.9), (30, 30, 40, 40, 0, 0.8), (200, 0, 210, 10, 0, 0.7))
    assert mean_precision([found], [crowd]) == 1


def scenes(seed, count, crowds):
    """Boxes moved a little, left out and made up, with scores of which some are equal."""
    generator = np.random.default_rng(seed)
    found, truth = [], []
    for _ in range(count):
        n = int(generator.integers(0, 12))
        corner, side = generator.uniform(0, 200, (n, 2)), generator.uniform(5, 100, (n, 2))
        labels = generator.integers(0, 4, n)
        crowd = generator.random(n) < (0.15 if crowds else 0)
        truth.append({"boxes": np.hstack([corner, corner + side]), "labels": labels, "iscrowd": crowd})
        moved = np.repeat(np.hstack([corner, corner + side]), 3, 0) + generator.normal(0, 4, (3 * n, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        swapped = np.where(
            generator.random(3 * n) < 0.2, generator.integers(0, 4, 3 * n), np.repeat(labels, 3)
        )
        scores = generator.random(3 * n).round(1 if seed % 2 else 6)
        found.append({"boxes": moved, "labels": swapped, "scores": scores})
    return [[{k: torch.from_numpy(v) for k, v in each.items()} for each in part] for part in (found, truth)]


def cocos(found, truth):
    """The three figures of pycocotools."""
    coco, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")

    def rows(images):
        for number, each in enumerate(images, 1):
            columns = {name: values.tolist() for name, values in each.items()}
            for index, (x1, y1, x2, y2) in enumerate(columns["boxes"]):
                row = {
                    "image_id": number,
                    "category_id": columns["labels"][index],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                }
                more = {"score": columns["scores"][index]} if images is found else {}
                crowd = int(columns["iscrowd"][index]) if "iscrowd" in columns else 0
                yield row | more | {"area": (x2 - x1) * (y2 - y1), "iscrowd": crowd}

    with contextlib.redirect_stdout(io.StringIO()):
        data = coco.COCO()
        labels = {int(label) for each in (*truth, *found) for label in each["labels"]}
        data.dataset = {
            "images": [{"id": number} for number in range(1, len(truth) + 1)],
            "annotations": [row | {"id": index} for index, row in enumerate(rows(truth), 1)],
            "categories": [{"id": label} for label in sorted(labels)],
        }
        data.createIndex()
        result = evaluation.COCOeval(data, data.loadRes(list(rows(found))), "bbox")
        result.evaluate()
        result.accumulate()
        result.summarize()
    return result.stats[:3]


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_equal_to_pycocotools(seed, crowds):
    found, truth = scenes(seed, 12, crowds)
    result = average_precision(match(found, truth))[0]
    assert cocos(found, truth) == pytest.approx([result.mean(), result[0], result[5]], abs=1e-14)


@pytest.mark.parametrize("cells", [average_precisions.MAX_CELLS, 12])
def test_an_image_drawn_twice_is_two_images(cells, monkeypatch):
    """All at once, and two hits at a time."""
    monkeypatch.setattr(average_precisions, "MAX_CELLS", cells)
    found, truth = scenes(2, 6, False)
    weights = draw_weights(6, 20, seed=3)
    assert (weights.sum(1) == 6).all() and np.array_equal(weights, draw_weights(6, 20, seed=3))
    drawn = average_precision(match(found, truth), weights)
    for row, result in zip(weights, drawn, strict=True):
        chosen = np.repeat(np.arange(6), row)
        again = average_precision(match([found[i] for i in chosen], [truth[i] for i in chosen]))
        assert result == pytest.approx(again[0], abs=1e-14)
