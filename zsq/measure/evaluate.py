"""Scores of a network on evaluation images, in points.

A classifier has accuracy and agreement with the teacher; an embedding network has the figures of verification
and the cosine to the teacher's embeddings.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from zsq.contract import FittedStudent, Teacher
from zsq.core.boxes import Target
from zsq.core.errors import MismatchError, TeacherAccuracyError
from zsq.core.imagespec import ImageSpec
from zsq.core.runtime import Runtime
from zsq.tasks import Scores
from zsq.tasks.classify import accuracy, agreement
from zsq.tasks.embed import Embed, score_embeddings

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


class LabelledImages(Protocol):
    """An image set as `zsq.images.sources` reads it."""

    @property
    def pixels(self) -> Tensor:
        """uint8 (N, C, H, W)."""

    @property
    def labels(self) -> Tensor:
        """int64 (N,); -1 where there is none."""

    @property
    def targets(self) -> Tensor | None:
        """See `zsq.tasks.Truth`."""

    @property
    def boxes(self) -> tuple[Target, ...] | None:
        """See `zsq.tasks.Truth`."""


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


def score_teacher(teacher: Teacher, images: LabelledImages, runtime: Runtime) -> tuple[Tensor, float]:
    """The teacher's (N, K) logits or embeddings on the evaluation images, and its accuracy: top-1, or that of
    verification.

    Raises:
        MismatchError: images or labels of another network.
        ImagesError: unlabelled images, or too few identities.
        TeacherAccuracyError: more than `TEACHER_TOLERANCE` points from `teacher.expected_accuracy`.
    """
    teacher.spec.check_pixels(images.pixels, "evaluation images")
    teacher.task.check_truth(images, teacher.num_outputs)
    logits_NK = logits_of(teacher, images.pixels, runtime, what=f"teacher '{teacher.name}'")
    if isinstance(teacher.task, Embed):
        measured = score_embeddings(logits_NK, logits_NK, images.labels).metrics["accuracy"]
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
    if isinstance(student.task, Embed):
        return score_embeddings(student_NK, teacher_NK, images.labels)
    agreed = agreement(student_NK, teacher_NK)
    return Scores({"accuracy": accuracy(student_NK, images.labels), "agreement": agreed})


def score_student(
    student: FittedStudent, images: LabelledImages, teacher_NK: Tensor, runtime: Runtime
) -> dict[str, float]:
    """The metrics of `all_scores`."""
    return all_scores(student, images, teacher_NK, runtime).metrics
