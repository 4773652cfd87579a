"""Scores of a network on evaluation images, in points.

A classifier has accuracy and agreement with the teacher; an embedding network has the figures of verification
and the cosine to the teacher's embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from zsq.contract import FittedStudent, Teacher
from zsq.core.errors import ImagesError, MismatchError, TeacherAccuracyError
from zsq.core.imagespec import ImageSpec
from zsq.core.runtime import Runtime
from zsq.measure.verification import make_pairs, verify_embeddings

# Points by which a teacher may measure away from its stated accuracy: about one standard error at 88 % on
# 5000 images; another image decoder or resizing stays inside, a wrong normalisation does not.
TEACHER_TOLERANCE = 0.5


class Scorable(Protocol):
    """A teacher or a fitted student."""

    @property
    def spec(self) -> ImageSpec:
        """The images it takes."""

    def logits(self, standard_NCHW: Tensor) -> Tensor:
        """Standard-space images -> (N, num_outputs)."""


@dataclass(frozen=True)
class Scores:
    """What one student measures, in points.

    Attributes:
        metrics: name -> value; what cannot be measured is left out.
        replicates: of embeddings, each metric in every bootstrap draw of identities. The draws are the same
            for all students that are scored on the same images.
        roc: of embeddings, TAR at each of `zsq.measure.verification.ROC_FARS`.
    """

    metrics: dict[str, float]
    replicates: dict[str, list[float]] = field(default_factory=dict)
    roc: list[float] = field(default_factory=list)


class LabelledImages(Protocol):
    """An image set as `zsq.images.sources` reads it."""

    @property
    def pixels(self) -> Tensor:
        """uint8 (N, C, H, W)."""

    @property
    def labels(self) -> Tensor:
        """int64 (N,); -1 where there is none."""


def logits_of(
    model: Scorable, pixels_NCHW: Tensor, runtime: Runtime, batch: int = 250, what: str = "the network"
) -> Tensor:
    """float32 (N, num_outputs) on the CPU; `model` is on the runtime's device.

    Always in float32: a score must not depend on the precision chosen for synthesis or training.

    Args:
        what: how an error calls the model.

    Raises:
        MismatchError: images that are not the model's, or outputs that are not finite.
    """
    model.spec.check_pixels(pixels_NCHW)
    parts = []
    with runtime.threads_set(), torch.inference_mode():
        for pixels in pixels_NCHW.split(batch):
            standard = model.spec.pixels_to_standard(pixels.to(runtime.device))
            parts.append(model.logits(standard.contiguous(memory_format=torch.channels_last)).float().cpu())
    logits_NK = torch.cat(parts)
    broken = int((~logits_NK.isfinite()).any(1).sum())
    if broken:
        found = f"{what} gives NaN or infinity on {broken} of {len(logits_NK)} images"
        raise MismatchError(found, "finite outputs", "check its weights, mean, std and options")
    return logits_NK


def accuracy(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Share of images whose largest logit is their label, 0..100."""
    return _percent_equal(logits_NK.argmax(1), labels_N)


def agreement(student_NK: Tensor, teacher_NK: Tensor) -> float:
    """Share of images on which two networks have the same top-1, 0..100."""
    return _percent_equal(student_NK.argmax(1), teacher_NK.argmax(1))


def check_labels(images: LabelledImages, num_classes: int | None) -> None:
    """Refuse images without labels, or with labels that are none of the teacher's classes.

    Args:
        num_classes: None for an embedding network, whose images may have any labels.

    Raises:
        ImagesError: unlabelled images, or too few identities to make pairs of.
        MismatchError: labels beyond the teacher's classes.
    """
    lowest, highest = int(images.labels.min()), int(images.labels.max())
    if lowest < 0:
        missing = int((images.labels < 0).sum())
        found = f"{missing} of {len(images.labels)} evaluation images have no label"
        raise ImagesError(found, "class labels", "evaluate on class folders or on an .npz with 'labels'")
    if num_classes is None:
        make_pairs(images.labels.numpy())
    elif highest >= num_classes:
        raise MismatchError(
            f"evaluation labels up to {highest}", f"0..{num_classes - 1}, the teacher's {num_classes} classes"
        )


def score_teacher(teacher: Teacher, images: LabelledImages, runtime: Runtime) -> tuple[Tensor, float]:
    """The teacher's (N, K) logits or embeddings on the evaluation images, and its accuracy: top-1, or that of
    verification.

    Raises:
        MismatchError: images or labels of another network.
        ImagesError: unlabelled images, or too few identities.
        TeacherAccuracyError: more than `TEACHER_TOLERANCE` points from `teacher.expected_accuracy`.
    """
    teacher.spec.check_pixels(images.pixels, "evaluation images")
    check_labels(images, teacher.num_classes)
    logits_NK = logits_of(teacher, images.pixels, runtime, what=f"teacher '{teacher.name}'")
    if teacher.task == "embed":
        measured = score_embeddings(logits_NK, logits_NK, images).metrics["accuracy"]
    else:
        measured = accuracy(logits_NK, images.labels)
    expected = teacher.expected_accuracy
    if expected is not None and abs(measured - expected) > TEACHER_TOLERANCE:
        raise TeacherAccuracyError(
            f"teacher '{teacher.name}' measures {measured:.2f} % on {len(logits_NK)} images",
            f"{expected:.2f} within {TEACHER_TOLERANCE} points",
            "check its weights, mean, std and the evaluation images, or correct expected_accuracy",
        )
    return logits_NK, measured


def all_scores(
    student: FittedStudent, images: LabelledImages, teacher_NK: Tensor, runtime: Runtime
) -> Scores:
    """What a fitted student measures; `teacher_NK` is the teacher's on the same images.

    `accuracy` and `agreement`, or of an embedder `cosine`, `tar@...`, `auc`, `eer` and `accuracy`.
    """
    name = f"student {student.student} {student.bits}"
    student_NK = logits_of(student, images.pixels, runtime, what=name)
    if student.task == "embed":
        return score_embeddings(student_NK, teacher_NK, images)
    agreed = agreement(student_NK, teacher_NK)
    return Scores({"accuracy": accuracy(student_NK, images.labels), "agreement": agreed})


def score_student(
    student: FittedStudent, images: LabelledImages, teacher_NK: Tensor, runtime: Runtime
) -> dict[str, float]:
    """The metrics of `all_scores`."""
    return all_scores(student, images, teacher_NK, runtime).metrics


def score_embeddings(student_ND: Tensor, teacher_ND: Tensor, images: LabelledImages) -> Scores:
    """Verification of identities and cosine to the teacher, in points; see `zsq.measure.verification`."""
    found = verify_embeddings(student_ND.numpy(), teacher_ND.numpy(), images.labels.numpy())
    return Scores(
        {name: 100 * value for name, value in found.metrics.items() if value is not None},
        {name: (100 * draws).round(4).tolist() for name, draws in found.replicates_R.items()},
        [round(100 * tar, 4) for tar in found.roc],
    )


def _percent_equal(left_N: Tensor, right_N: Tensor) -> float:
    return 100.0 * int((left_N.cpu() == right_N.cpu()).sum()) / len(left_N)
