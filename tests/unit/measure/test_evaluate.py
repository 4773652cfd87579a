import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from zsq.contract import FittedStudent, Teacher
from zsq.core.errors import ImagesError, MismatchError, TeacherAccuracyError
from zsq.core.imagespec import ImageSpec
from zsq.core.runtime import Runtime
from zsq.measure.evaluate import (
    all_scores,
    logits_of,
    score_student,
    score_teacher,
)
from zsq.tasks import TASKS
from zsq.tasks.classify import accuracy, agreement
from zsq.tasks.embed import Embed
from zsq.tasks.verification import ROC_FARS, fold_decisions, make_pairs
from zsq.widths import Bits

SPEC = ImageSpec(channels=2, size=(3, 4), mean=(0.4, 0.5), std=(0.2, 0.25))
CPU = Runtime()


@dataclass
class Images:
    pixels: torch.Tensor
    labels: torch.Tensor
    targets: torch.Tensor | None = None


def linear_teacher(expected_accuracy=None, task="classify"):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(24, 5))
    return Teacher("linear", network, SPEC, 5, "0" * 64, TASKS[task](), expected_accuracy)


def random_pixels(count, seed=1):
    return torch.randint(0, 256, (count, 2, 3, 4), generator=torch.Generator().manual_seed(seed)).byte()


def float64_logits(teacher, pixels):
    mean, std = (np.array(v).reshape(1, 2, 1, 1) for v in (SPEC.mean, SPEC.std))
    norm = (pixels.numpy().astype(np.float64) / 255 - mean) / std
    linear = teacher.network[1]
    return norm.reshape(len(norm), -1) @ linear.weight.double().numpy().T + linear.bias.double().numpy()


def labelled_as_teacher(teacher, count, wrong):
    """Labels that the teacher gets right on all but `wrong` images."""
    pixels = random_pixels(count)
    labels = torch.from_numpy(float64_logits(teacher, pixels).argmax(1))
    labels[:wrong] = (labels[:wrong] + 1) % 5
    return Images(pixels, labels)


@pytest.mark.parametrize("batch", [1, 7, 250])
def test_logits_equal_a_float64_computation_for_any_batch(batch):
    teacher, pixels = linear_teacher(), random_pixels(20)
    logits = logits_of(teacher, pixels, CPU, batch=batch)
    assert logits.dtype == torch.float32 and not logits.requires_grad
    np.testing.assert_allclose(logits.numpy(), float64_logits(teacher, pixels), atol=1e-5)


def test_scores_do_not_depend_on_the_precision_of_training():
    teacher, pixels = linear_teacher(), random_pixels(9)
    half = logits_of(teacher, pixels, Runtime(precision="bf16"))
    assert torch.equal(half, logits_of(teacher, pixels, CPU))


def test_accuracy_and_agreement_are_shares_of_top_1_in_points():
    logits = torch.tensor([[0.1, 0.9, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 5.0], [1.0, 3.0, 2.0]])
    other = torch.tensor([[0.0, 9.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [3.0, 1.0, 2.0]])
    assert accuracy(logits, torch.tensor([1, 0, 2, 2])) == 75.0
    assert agreement(logits, other) == 50.0


def test_a_student_is_scored_against_labels_and_teacher():
    teacher = linear_teacher()
    images = labelled_as_teacher(teacher, 40, wrong=10)
    student = FittedStudent("copy", Bits(32, 32), None, teacher.network, SPEC, ())
    reference = score_teacher(teacher, images, CPU)
    assert reference.quality == 75.0
    equal = {"sqnr": 150.0, "sqnr_centred": 150.0}
    assert score_student(student, reference) == {"accuracy": 75.0, "agreement": 100.0, **equal}


def test_logits_are_refused_for_another_shape():
    with pytest.raises(MismatchError, match=r"\(1, 2, 9, 9\) uint8"):
        logits_of(linear_teacher(), torch.zeros(1, 2, 9, 9, dtype=torch.uint8), CPU)


@pytest.mark.parametrize("expected", [75.5, 74.5, None])
def test_a_teacher_within_half_a_point_passes(expected):
    teacher = linear_teacher(expected)
    assert score_teacher(teacher, labelled_as_teacher(teacher, 40, 10), CPU).quality == 75.0


@pytest.mark.parametrize(("expected", "allowed"), [(96.0, 11.43), (50.0, 23.72), (100.0, 7.23)])
def test_a_teacher_that_measures_elsewhere_stops_the_run(expected, allowed):
    teacher = linear_teacher(expected)
    line = rf"75\.00 % on 40 images; expected {expected:.2f} within {allowed} points, 3 standard errors"
    with pytest.raises(TeacherAccuracyError, match=line):
        score_teacher(teacher, labelled_as_teacher(teacher, 40, 10), CPU)


def test_few_images_may_measure_elsewhere_by_chance():
    teacher = linear_teacher(85.0)
    assert score_teacher(teacher, labelled_as_teacher(teacher, 40, 10), CPU).quality == 75.0


def test_evaluation_images_need_labels_of_the_teacher():
    teacher = linear_teacher()
    images = labelled_as_teacher(teacher, 10, 0)
    images.labels[3:5] = -1
    with pytest.raises(ImagesError, match="2 of 10"):
        score_teacher(teacher, images, CPU)
    images.labels[:] = 5
    with pytest.raises(MismatchError, match=r"up to 5.*0\.\.4"):
        score_teacher(teacher, images, CPU)


def embedding_images():
    """Five identities of four images each, whose embeddings are near when their images are."""
    random = torch.Generator().manual_seed(0)
    centres = torch.randint(60, 196, (5, 2, 3, 4), generator=random)
    noise = torch.randint(-40, 41, (20, 2, 3, 4), generator=random)
    pixels = (centres.repeat_interleave(4, 0) + noise).to(torch.uint8)
    return Images(pixels, torch.arange(5).repeat_interleave(4))


def as_student(teacher):
    return FittedStudent("copy", Bits(32, 32), None, teacher.network, SPEC, (), task=teacher.task)


def test_an_embedding_network_is_scored_by_verification():
    teacher = dataclasses.replace(linear_teacher(), task=Embed())
    images = embedding_images()
    reference = score_teacher(teacher, images, CPU)
    measured, embeddings = reference.quality, logits_of(teacher, images.pixels, CPU)
    decisions = fold_decisions(
        make_pairs(images.labels.numpy()).similarity(embeddings.numpy()), make_pairs(images.labels.numpy())
    )
    pairs = make_pairs(images.labels.numpy())
    counted = ~np.isnan(decisions)
    shares = [decisions[counted & kind].mean() for kind in (pairs.same_P, ~pairs.same_P)]
    assert measured == pytest.approx(100 * np.mean(shares))
    with pytest.raises(TeacherAccuracyError):
        score_teacher(dataclasses.replace(teacher, expected_accuracy=measured / 3), images, CPU)
    own = all_scores(as_student(teacher), reference)
    assert own.metrics["cosine"] == pytest.approx(100) and own.metrics["accuracy"] == pytest.approx(measured)
    assert "tar@1e-3" not in own.metrics  # 160 impostor pairs
    assert (
        set(own.replicates) == set(own.metrics) - {"sqnr", "sqnr_centred"}
        and len(own.replicates["auc"]) == 1000
    )
    assert len(own.roc) == len(ROC_FARS) and max(own.roc) == 100
    assert score_student(as_student(teacher), reference) == own.metrics


@pytest.mark.parametrize("task", ["classify", "embed"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_outputs_that_are_not_finite_are_one_line_and_no_score(task, value):
    whole, broken = linear_teacher(task=task), linear_teacher(task=task)
    with torch.no_grad():
        broken.network[1].bias[2] = value
    images = Images(random_pixels(20), torch.arange(20) % 5)
    found = "gives NaN or infinity on 20 of 20 images; expected finite outputs"
    with pytest.raises(MismatchError, match=f"^teacher 'linear' {found}"):
        score_teacher(broken, images, CPU)
    reference = score_teacher(whole, images, CPU)
    with pytest.raises(MismatchError, match=f"^student copy W32A32 {found}"):
        all_scores(as_student(broken), reference)


def test_one_identity_makes_no_pairs():
    teacher = dataclasses.replace(linear_teacher(), task=Embed())
    images = embedding_images()
    with pytest.raises(ImagesError, match="1 identities"):
        score_teacher(teacher, Images(images.pixels, torch.zeros(20, dtype=torch.int64)), CPU)
    with pytest.raises(ImagesError, match="no label"):
        score_teacher(teacher, Images(images.pixels, torch.full((20,), -1)), CPU)
