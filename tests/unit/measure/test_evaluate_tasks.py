"""Students of every task beside their teachers: what is measured, with labels and without."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zsq.contract import FittedStudent, Teacher
from zsq.core.errors import ImagesError, MismatchError, TeacherAccuracyError
from zsq.core.imagespec import ImageSpec
from zsq.core.runtime import Runtime
from zsq.images.imageset import ImageSet
from zsq.images.sources import load_images
from zsq.measure import evaluate
from zsq.measure.evaluate import all_scores, score_student, score_teacher
from zsq.tasks import TASKS
from zsq.tasks.classify import Classify
from zsq.tasks.image import Image
from zsq.tasks.regress import Regress
from zsq.tasks.segment import Segment
from zsq.teacher import load_teacher
from zsq.widths import Bits

SPEC = ImageSpec(size=(12, 12), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CPU = Runtime()


class Outputs(nn.Module):
    """Outputs of each kind, moved by `shift` in a student."""

    def __init__(self, kind, shift=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.shift = kind, shift
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        maps = self.conv(x) + self.shift * x[:, :1] * torch.tensor([0.0, 1.0, 2.0, 3.0]).view(4, 1, 1)
        if self.kind == "image":
            return F.interpolate(maps[:, :3].sigmoid(), scale_factor=2)
        if self.kind == "segment":
            return maps
        return {"maps": [maps, maps[..., ::2]], "mean": maps.mean((2, 3))}


def pixels(count=7):
    return torch.randint(0, 256, (count, 3, 12, 12), generator=torch.Generator().manual_seed(1)).byte()


def teacher_of(kind, task, size=None):
    return Teacher("toy", Outputs(kind), SPEC, size, "0" * 64, task=task)


def student_of(teacher, shift=0.02):
    network = Outputs(teacher.network.kind, shift).eval()
    return FittedStudent("copy", Bits(8, 8), None, network, SPEC, (), task=teacher.task)


def images(targets=None, labels=-1, count=7):
    return ImageSet(pixels(count), torch.full((count,), labels), "toy", targets=targets)


def outputs(teacher):
    with torch.no_grad():
        return teacher.network(pixels().float() / 255)


def test_an_image_network_is_scored_against_targets_and_teacher():
    teacher = teacher_of("image", Image(), 3)
    targets = (outputs(teacher) * 255).round().byte()
    reference = score_teacher(teacher, images(targets), CPU)
    assert reference.quality == 100.0
    found = score_student(student_of(teacher), reference)
    assert list(found) == ["psnr", "ssim", "psnr_teacher", "sqnr", "sqnr_centred"]
    assert found["psnr"] == found["psnr_teacher"] < 60 and found["ssim"] < 100
    replicates = all_scores(student_of(teacher), reference).replicates
    assert Image.has_replicates
    assert set(replicates) == {"psnr", "ssim", "psnr_teacher"} and len(replicates["psnr"]) == 1000
    assert np.mean(replicates["psnr"]) == pytest.approx(found["psnr"], abs=0.1)
    stated = dataclasses.replace(teacher, expected_accuracy=90.0)
    with pytest.raises(TeacherAccuracyError, match=r"measures 100\.00 dB on 7 images; expected 90\.00"):
        score_teacher(stated, images(targets), CPU)


def test_targets_of_another_size_are_one_line():
    teacher = teacher_of("image", Image(), 3)
    targets = torch.zeros(7, 3, 12, 12, dtype=torch.uint8)
    with pytest.raises(MismatchError, match=r"targets of \(3, 12, 12\); expected \(3, 24, 24\)"):
        score_teacher(teacher, images(targets), CPU)


def test_masks_score_a_segmenter():
    teacher = teacher_of("segment", Segment(), 4)
    masks = outputs(teacher).argmax(1).byte()
    masks[:, :2] = 255
    reference = score_teacher(teacher, images(masks), CPU)
    assert reference.quality == 100.0
    found = score_student(student_of(teacher), reference)
    assert list(found) == ["miou", "pixel_accuracy", "agreement", "sqnr", "sqnr_centred"]
    assert 0 < found["miou"] < found["pixel_accuracy"] < 100


def test_numbers_are_scored_against_true_values():
    teacher = teacher_of("segment", Regress())
    reference = score_teacher(teacher, images(outputs(teacher)), CPU)
    assert reference.quality == pytest.approx(100)
    found = score_student(student_of(teacher), reference)
    assert list(found) == ["r2", "mae", "sqnr", "sqnr_centred"]
    assert found["r2"] == pytest.approx(100 * (1 - 10 ** (-found["sqnr_centred"] / 10)), abs=1e-3)
    with pytest.raises(MismatchError, match=r"targets of \(12, 12\); expected \(4, 12, 12\)"):
        score_teacher(teacher, images(outputs(teacher)[:, 0]), CPU)
    unlabelled = score_teacher(teacher, images(), CPU)
    assert list(score_student(student_of(teacher), unlabelled)) == ["sqnr", "sqnr_centred"]


def test_any_outputs_have_a_ratio_each_and_need_no_labels():
    teacher = teacher_of("nested", TASKS["other"]())
    reference = score_teacher(teacher, images(), CPU)
    assert reference.quality is None
    found = score_student(student_of(teacher), reference)
    assert list(found)[2:] == ["sqnr.maps.0", "sqnr.maps.1", "sqnr.mean"]
    assert 0 < found["sqnr"] == min(value for name, value in found.items() if name.startswith("sqnr."))


@pytest.mark.parametrize(
    ("kind", "task", "size"), [("image", Image(), 3), ("segment", Segment(), 4)], ids=["image", "segment"]
)
def test_without_labels_a_comparison_stops_and_a_student_has_what_needs_none(kind, task, size):
    teacher = teacher_of(kind, task, size)
    with pytest.raises(ImagesError, match="evaluation images without"):
        score_teacher(teacher, images(), CPU)
    reference = score_teacher(teacher, images(), CPU, need_truth=False)
    found = score_student(student_of(teacher), reference)
    assert reference.quality is None and "sqnr" in found and not {"psnr", "miou"} & set(found)


def test_half_labelled_images_are_refused_even_where_labels_are_not_needed():
    teacher = load_teacher("embedded:digits")
    shown = load_images("embedded:digits:test", teacher.spec, 20)
    shown.labels[3] = -1
    with pytest.raises(ImagesError, match="1 of 20 evaluation images have no label"):
        score_teacher(teacher, shown, CPU, need_truth=False)
    shown.labels[:] = -1
    reference = score_teacher(teacher, shown, CPU, need_truth=False)
    assert reference.teacher_scores is None and isinstance(teacher.task, Classify)


def test_scores_are_the_same_where_the_teachers_outputs_are_not_kept(monkeypatch):
    teacher = teacher_of("nested", TASKS["detect"]())
    kept = score_student(student_of(teacher), score_teacher(teacher, images(), CPU))
    monkeypatch.setattr(evaluate, "KEPT_BYTES", 0)
    monkeypatch.setattr(evaluate, "BATCH", 3)
    again = score_student(student_of(teacher), score_teacher(teacher, images(), CPU))
    assert again == pytest.approx(kept, abs=1e-4)


def test_one_output_that_is_not_finite_is_one_line():
    teacher = teacher_of("nested", TASKS["other"]())
    reference = score_teacher(teacher, images(), CPU)
    broken = student_of(teacher)
    with torch.no_grad():
        broken.network.conv.bias[0] = torch.inf
    with pytest.raises(MismatchError, match=r"^student copy W8A8 gives NaN or infinity on 7 of 7 images"):
        score_student(broken, reference)


def test_miou_is_that_of_torchmetrics():
    classification = pytest.importorskip("torchmetrics.classification")
    random = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 4, (7, 12, 12), generator=random).byte()
    masks[:, 5:7] = 255
    teacher = teacher_of("segment", Segment(), 4)
    found = score_student(student_of(teacher), score_teacher(teacher, images(masks), CPU))
    with torch.no_grad():
        classes = student_of(teacher).network(pixels().float() / 255).argmax(1)
    jaccard = classification.MulticlassJaccardIndex(4, average="macro", ignore_index=255)
    assert found["miou"] == pytest.approx(100 * jaccard(classes, masks.long()).item(), abs=1e-4)
    accuracy = classification.MulticlassAccuracy(4, average="micro", ignore_index=255)
    assert found["pixel_accuracy"] == pytest.approx(100 * accuracy(classes, masks.long()).item(), abs=1e-4)


def test_the_super_resolution_teacher_on_every_fourth_image(data_folder):
    """All 80 give 28.46, as stated."""
    teacher = load_teacher(f"file:{data_folder / 'sr' / 'carn_m_x4.toml'}")
    shown = load_images(data_folder / "sr" / "bsd100_lr48_eval.npz", teacher.spec, limit=20)
    assert (teacher.task.psnr_on, teacher.task.border) == ("y", 4)
    assert score_teacher(teacher, shown, CPU).quality == pytest.approx(29.68, abs=0.005)
