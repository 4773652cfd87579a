"""The detection loss and label sampling against numbers by hand."""

import math

import pytest
import torch

from zsq.core.boxes import iou, no_boxes
from zsq.engine.detection import detection_loss, one_box, padded, resampled

SIZE = (100, 100)


def target(*boxes, labels=None):
    labels = [0] * len(boxes) if labels is None else labels
    return {"boxes": torch.tensor(boxes).float().view(-1, 4), "labels": torch.tensor(labels).long()}


def found(*boxes, score=0.9, labels=None):
    return target(*boxes, labels=labels) | {"scores": torch.full((len(boxes),), score)}


def beside(overlap, box=(10.0, 10.0, 50.0, 50.0)):
    """The box moved right until its IoU with where it was is `overlap`."""
    width = box[2] - box[0]
    shift = width * (1 - overlap) / (1 + overlap)
    return (box[0] + shift, box[1], box[2] + shift, box[3])


ASKED = (10.0, 10.0, 50.0, 50.0)
FAR = (60.0, 60.0, 90.0, 90.0)


@pytest.mark.parametrize(("overlap", "count"), [(0.34, 2), (0.36, 1)])
def test_a_box_is_added_where_none_is_asked_for(overlap, count):
    after = resampled(target(ASKED), found(beside(overlap), labels=[7]), SIZE)
    assert iou(torch.tensor([ASKED]), torch.tensor([beside(overlap)])).item() == pytest.approx(overlap)
    assert len(after["boxes"]) == count
    assert after["labels"].tolist() == [0, 7][:count]


@pytest.mark.parametrize(("side", "count"), [(9.9, 1), (10.1, 2), (math.sqrt(8490), 2), (math.sqrt(8510), 1)])
def test_what_is_added_covers_one_to_85_percent(side, count):
    asked = target((95.0, 95.0, 100.0, 100.0))
    assert len(resampled(asked, found((0.0, 0.0, side, side)), SIZE)["boxes"]) == count


def test_a_box_half_outside_counts_with_its_part_inside():
    after = resampled(target(ASKED), found((80.0, 80.0, 140.0, 140.0)), SIZE)
    assert after["boxes"].tolist() == [list(ASKED), [80, 80, 100, 100]]


def test_what_scores_no_more_than_a_fifth_is_not_found():
    assert resampled(target(ASKED), found(FAR, score=0.2), SIZE)["boxes"].tolist() == [list(ASKED)]
    assert len(resampled(target(ASKED), found(FAR, score=0.21), SIZE)["boxes"]) == 2


def test_what_is_not_found_is_taken_away():
    after = resampled(target(ASKED, FAR, labels=[1, 2]), found(beside(0.36), labels=[5]), SIZE)
    assert after["boxes"].tolist() == [list(ASKED)] and after["labels"].tolist() == [1]


def test_of_two_that_are_not_found_the_better_one_stays():
    two = target(FAR, ASKED, labels=[1, 2])
    after = resampled(two, found(beside(0.3), labels=[5]), SIZE)
    assert after["labels"].tolist() == [2, 5]


def test_of_two_without_any_overlap_one_stays():
    two = target((0.0, 0.0, 20.0, 20.0), (30.0, 0.0, 50.0, 20.0), labels=[1, 2])
    assert resampled(two, found(FAR, labels=[5]), SIZE)["labels"].tolist() == [1, 5]


def test_a_single_box_stays():
    assert resampled(target(ASKED), found(FAR, labels=[5]), SIZE)["labels"].tolist() == [0, 5]


def test_nothing_changes_where_nothing_is_found():
    two = target(ASKED, FAR)
    for nothing in (found(), found(ASKED, score=0.1)):
        assert resampled(two, nothing, SIZE) is two


def test_an_image_without_boxes_gets_what_is_found():
    assert resampled(no_boxes(), found(FAR, labels=[4]), SIZE)["labels"].tolist() == [4]


def test_the_first_box_is_drawn_inside_of_the_image():
    generator = torch.Generator().manual_seed(0)
    drawn = [one_box([2, 5], (50, 200), generator) for _ in range(300)]
    boxes = torch.cat([each["boxes"] for each in drawn])
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    assert (boxes >= 0).all() and (boxes[:, [0, 2]] <= 200).all() and (boxes[:, [1, 3]] <= 50).all()
    for side, whole in ((width, 200), (height, 50)):
        assert side.min() / whole == pytest.approx(0.2, abs=0.02)
        assert side.max() / whole == pytest.approx(0.8, abs=0.02)
    assert {each["labels"].item() for each in drawn} == {2, 5}


def test_padding_is_undone():
    targets = [target(ASKED, FAR, labels=[1, 2]), no_boxes()]
    both = padded(targets)
    assert both.boxes.shape == (2, 4, 4) and both.present.sum() == 2
    for before, after in zip(targets, both.unpadded(), strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_loss_of_exact_boxes_is_the_entropy_of_their_scores():
    boxes = torch.tensor([[ASKED, FAR]])
    scores = torch.tensor([[[0.8, 0.1], [0.3, 0.2]]])
    (loss,) = detection_loss(boxes, scores, padded([target(ASKED, labels=[0])]))
    entropy = -math.log(0.8) - math.log(0.9) - math.log(0.7) - math.log(0.8)
    assert loss.item() == pytest.approx(0.5 * entropy, rel=1e-5)


def test_the_loss_of_two_candidates_by_hand():
    near = beside(0.5)
    boxes = torch.tensor([[ASKED, near]])
    scores = torch.tensor([[[0.25], [1.0]]])
    (loss,) = detection_loss(boxes, scores, padded([target(ASKED)]))
    suits = [0.25**0.5, 0.5**6]
    soft = [q * 1.0 / max(suits) for q in suits]
    shift = near[0] - ASKED[0]
    ciou = 0.5 - shift**2 / ((40 + shift) ** 2 + 40**2)
    regression = soft[1] * (1 - ciou) / sum(soft)
    first = -math.log(0.25)
    second = -(1 - soft[1]) * math.log(1e-6) - soft[1] * math.log(1 - 1e-6)
    expected = 7.5 * regression + 0.5 * (first + second) / sum(soft)
    assert loss.item() == pytest.approx(expected, rel=1e-3)


def test_a_box_taken_twice_goes_to_the_larger_overlap():
    boxes = torch.tensor([[beside(0.9)]]).requires_grad_()
    both = padded([target(beside(0.6), ASKED, labels=[0, 1])])
    scores = torch.tensor([[[0.5, 0.5]]]).requires_grad_()
    detection_loss(boxes, scores, both).sum().backward()
    assert scores.grad[0, 0, 1] < 0 < scores.grad[0, 0, 0]
    assert boxes.grad[0, 0, 0] > 0  # to the left, to ASKED: the other one is further right


def test_a_target_takes_ten_boxes():
    boxes = torch.tensor([[beside(0.95 - 0.02 * index) for index in range(15)]]).requires_grad_()
    detection_loss(boxes, torch.full((1, 15, 1), 0.5), padded([target(ASKED)])).sum().backward()
    assert (boxes.grad[0].abs().sum(1) > 0).tolist() == [True] * 10 + [False] * 5


def test_a_box_whose_centre_is_outside_is_not_taken():
    large = (0.0, 0.0, 100.0, 100.0)  # its centre is at 50, 50
    boxes = torch.tensor([[large]]).requires_grad_()
    scores = torch.tensor([[[0.5]]]).requires_grad_()
    detection_loss(boxes, scores, padded([target((0.0, 0.0, 49.0, 100.0))])).sum().backward()
    assert not boxes.grad.any() and scores.grad > 0


def test_an_image_without_boxes_lowers_all_scores():
    boxes = torch.tensor([[ASKED, FAR]]).requires_grad_()
    scores = torch.tensor([[[0.8], [1.0]]]).requires_grad_()
    detection_loss(boxes, scores, padded([no_boxes()])).sum().backward()
    assert boxes.grad.isfinite().all() and not boxes.grad.any()
    assert scores.grad[0, 0, 0] > 0 and scores.grad.isfinite().all()


def test_an_image_does_not_depend_on_the_others_of_its_batch():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 30, 2, generator=generator) * 70
    boxes = torch.cat([corners, corners + 10 + 20 * torch.rand(2, 30, 2, generator=generator)], -1)
    scores = torch.rand(2, 30, 3, generator=generator)
    targets = [one_box([0, 1, 2], SIZE, generator) for _ in range(2)]

    def gradients(times):
        tensors = [each.repeat(times, 1, 1).requires_grad_() for each in (boxes, scores)]
        losses = detection_loss(*tensors, padded(targets * times))
        losses.sum().backward()
        return losses.detach(), [each.grad for each in tensors]

    once, twice = gradients(1), gradients(2)
    assert torch.equal(once[0].repeat(2), twice[0]) and (once[0] > 0).all()
    assert once[1][0].any()
    for own, both in zip(once[1], twice[1], strict=True):
        torch.testing.assert_close(own.repeat(2, 1, 1), both)
