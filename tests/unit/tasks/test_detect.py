"""Detectors: what is measured with and without the functions that a card names."""

from types import SimpleNamespace

import pytest
import torch

from zsq.core.boxes import no_boxes
from zsq.core.errors import ImagesError, MismatchError
from zsq.tasks.base import BOOTSTRAP_DRAWS
from zsq.tasks.detect import Detect, object_labels


def decode(outputs):
    """Boxes x1 y1 x2 y2, class and score, as the maps say: rows of score 0 are no boxes."""
    rows = outputs["rows"]
    return [
        {"boxes": r[:, :4], "labels": r[:, 4].long(), "scores": r[:, 5]}
        for r in (x[x[:, 5] > 0] for x in rows)
    ]


def maps(*images, length=3):
    """Maps of images, each a list of x1 y1 x2 y2 class score."""
    rows = torch.zeros(len(images), length, 6)
    for row, image in zip(rows, images, strict=True):
        row[: len(image)] = torch.tensor(image, dtype=torch.float32).reshape(-1, 6)
    return {"rows": rows}


def truth(*images):
    targets = []
    for image in images:
        table = torch.tensor(image, dtype=torch.float64).reshape(-1, 5)
        targets.append({"boxes": table[:, :4], "labels": table[:, 4].long()})
    return SimpleNamespace(labels=torch.full((len(images),), -1), targets=None, boxes=tuple(targets))


def scores(student, teacher, images=None, task=None):
    meter = (task or Detect(decode=decode)).meter()
    meter.add(student, teacher, images, slice(0, len(teacher["rows"])))
    return meter.scores()


TEACHER = maps([(10, 10, 30, 30, 4, 0.9), (40, 40, 90, 90, 2, 0.6)], [(0, 0, 9, 9, 1, 0.3)])


def test_a_teacher_agrees_with_itself():
    found = scores(TEACHER, TEACHER)
    assert found.metrics["agreement_ap"] == found.metrics["agreement_ap25"] == 100
    assert next(iter(found.metrics)) == "agreement_ap"
    assert set(found.replicates["agreement_ap"]) == {100.0} and Detect.has_replicates
    assert not {"map", "map50"} & set(found.metrics)


def test_a_student_that_finds_nothing_does_not_agree():
    assert scores(maps([], []), TEACHER).metrics["agreement_ap"] == 0


def test_a_false_box_above_an_exact_one_halves_agreement():
    teacher = maps([(10, 10, 30, 30, 4, 0.9)])
    student = maps([(60, 60, 90, 90, 4, 0.95), (10, 10, 30, 30, 4, 0.4)])
    assert scores(student, teacher).metrics["agreement_ap"] == 50


def test_the_teachers_unsure_boxes_are_no_truth():
    student = maps([(10, 10, 30, 30, 4, 0.9), (40, 40, 90, 90, 2, 0.6)], [])
    found = scores(student, TEACHER).metrics
    assert found["agreement_ap"] == 100
    assert found["agreement_ap25"] == pytest.approx(200 / 3)


def test_a_teacher_without_a_sure_box_has_no_agreement():
    unsure = maps([(10, 10, 30, 30, 4, 0.3)])
    found = scores(unsure, unsure)
    assert "agreement_ap" not in found.metrics and "agreement_ap" not in found.replicates
    assert found.metrics["agreement_ap25"] == 100


def test_boxes_beyond_the_best_hundred_do_not_count():
    many = maps([(i, 0, i + 1, 1, 3, 0.9) for i in range(100)] + [(10, 10, 30, 30, 4, 0.5)], length=101)
    teacher = maps([(10, 10, 30, 30, 4, 0.9)], length=101)
    assert scores(many, teacher).metrics["agreement_ap"] == 0


def test_precision_where_boxes_are_known():
    shown = truth([(10, 10, 30, 30, 4)], [(0, 0, 9, 10, 1)])
    found = scores(TEACHER, TEACHER, shown)
    # 0.9 of the second image's box are found.
    assert found.metrics["map"] == pytest.approx((100 + 90) / 2)
    assert found.metrics["map50"] == found.metrics["map75"] == 100
    assert len(found.replicates["map"]) == BOOTSTRAP_DRAWS


def test_draws_are_the_same_for_every_student():
    teacher = maps([(10, 10, 30, 30, 4, 0.9)], [(0, 0, 9, 9, 4, 0.8)])
    again = [scores(maps([(10, 10, 30, 29, 4, 0.9)], []), teacher).replicates for _ in range(2)]
    assert again[0] == again[1] and len(set(again[0]["agreement_ap"])) > 1


def test_without_decode_there_is_the_noise_of_each_map():
    student = TEACHER["rows"] + 0.01
    found = scores({"rows": student}, TEACHER, truth([], []), task=Detect())
    assert Detect().quality is None
    assert set(found.metrics) == {"sqnr", "sqnr_centred"} and found.replicates == {}


def test_decode_may_return_the_three_in_order():
    in_order = Detect(
        decode=lambda outputs: [(d["boxes"], d["scores"], d["labels"]) for d in decode(outputs)]
    )
    assert scores(TEACHER, TEACHER, task=in_order).metrics["agreement_ap"] == 100


@pytest.mark.parametrize(
    ("returned", "word"),
    [
        (None, "a NoneType"),
        ([], "0 images"),
        ([1, 2], "without boxes"),
        ([{"boxes": torch.zeros(2, 4), "scores": torch.zeros(1), "labels": torch.zeros(1)}] * 2, "shapes"),
    ],
)
def test_decode_that_returns_something_else_is_one_line(returned, word):
    with pytest.raises(MismatchError, match=word):
        scores(TEACHER, TEACHER, task=Detect(decode=lambda outputs: returned))


def test_boxes_of_other_classes_and_missing_boxes_are_refused():
    task = Detect(decode=decode, num_classes=5)
    shown = truth([(10, 10, 30, 30, 4)], [])
    task.check_truth(shown, None)
    assert task.has_truth(shown) and not Detect().has_truth(shown)
    with pytest.raises(MismatchError, match=r"class 4; expected 0\.\.3"):
        Detect(decode=decode, num_classes=4).check_truth(shown, None)
    with pytest.raises(ImagesError, match="without boxes"):
        task.check_truth(truth([], []), None)
    with pytest.raises(MismatchError, match="no `decode`"):
        Detect().check_truth(shown, None)


def test_all_maps_count_alike_in_the_loss():
    teacher = {"small": torch.tensor([[0.0, 2.0]]), "large": torch.tensor([[0.0, 200.0]])}
    student = {
        "small": torch.tensor([[1.0, 2.0]], requires_grad=True),
        "large": torch.tensor([[100.0, 200.0]]),
    }
    loss = Detect().loss(student, teacher)
    assert loss.item() == pytest.approx(0.5)
    loss.backward()
    assert student["small"].grad.tolist() == [[0.5, 0.0]]


def test_a_map_that_is_the_same_everywhere_has_a_finite_loss():
    assert Detect().loss([torch.tensor([3.0])], [torch.tensor([1.0])]).item() == 4


def test_names_that_stand_for_no_class_are_never_drawn():
    from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

    names = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    labels = object_labels(names)
    assert len(names) == 91 and len(labels) == 80
    assert 0 not in labels and not any(names[label] == "N/A" for label in labels)


def test_an_image_without_boxes_is_a_target():
    assert (
        scores(
            TEACHER, TEACHER, SimpleNamespace(boxes=(no_boxes(), *truth([(0, 0, 9, 9, 1)]).boxes))
        ).metrics["map"]
        == 100
    )
