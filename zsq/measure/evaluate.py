"""Scores of networks on evaluation images: their task's metrics, of students beside their teacher."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor

from zsq.contract import FittedStudent, Teacher, check_fitted
from zsq.core.boxes import Target
from zsq.core.errors import MismatchError, TeacherAccuracyError
from zsq.core.imagespec import ImageSpec
from zsq.core.layout import maps_channels_last
from zsq.core.modes import in_eval_mode, usual_modes
from zsq.core.runtime import Runtime
from zsq.core.wording import quantity
from zsq.engine.executed import images_at_once
from zsq.tasks import Scores, Truth
from zsq.tasks.metrics import unit, with_unit
from zsq.tasks.nesting import Outputs, mapped, named_tensors

# Points or dB by which a teacher may measure away from what is stated: about one standard error at 88 % on
# 5000 images; another image decoder or resizing stays inside, a wrong normalisation does not.
TEACHER_TOLERANCE = 0.5
STANDARD_ERRORS = 3
BATCH = 250
# A teacher's outputs on the evaluation images are kept up to so much, and made again for every student above.
KEPT_BYTES = 2**30


class Scorable(Protocol):
    """A teacher or a fitted student."""

    @property
    def spec(self) -> ImageSpec:
        """The images it takes."""

    def logits(self, standard_NCHW: Tensor) -> Outputs:
        """Standard-space images -> outputs: one tensor, or a nesting of tensors."""


class EvaluationImages(Protocol):
    """An image set as `zsq.images.sources` reads it."""

    @property
    def pixels(self) -> Tensor:
        """uint8 (N, C, H, W)."""

    @property
    def labels(self) -> Tensor:
        """See `zsq.tasks.Truth`."""

    @property
    def targets(self) -> Tensor | None:
        """See `zsq.tasks.Truth`."""

    @property
    def boxes(self) -> tuple[Target, ...] | None:
        """See `zsq.tasks.Truth`."""


class Reference:
    """A teacher on evaluation images: what its students are scored against.

    Attributes:
        truth: the images, where their labels count, else None.
        teacher_scores: the teacher's own, None without truth.
    """

    def __init__(
        self, teacher: Teacher, images: EvaluationImages, runtime: Runtime, truth: Truth | None
    ) -> None:
        """`teacher` is on the runtime's device; it is scored where there is `truth`, already checked."""
        teacher.check_float32()
        self.teacher, self.images, self.runtime, self.truth = teacher, images, runtime, truth
        self.batch = BATCH
        if not teacher.task.stores_logits:
            self.batch = images_at_once(teacher.network, teacher.spec, BATCH)
        self._kept: dict[int, Outputs] = {}
        self._kept_bytes = 0
        what = f"teacher '{teacher.name}'"
        self.teacher_scores = None if truth is None else self.score(teacher, what)

    @property
    def quality(self) -> float | None:
        """The teacher's metric `Task.quality`, None where there is nothing to measure it on."""
        name = self.teacher.task.quality
        return None if self.teacher_scores is None or name is None else self.teacher_scores.metrics.get(name)

    def score(self, model: Scorable, what: str) -> Scores:
        """The task's metrics of `model`, which is on the runtime's device.

        Args:
            what: how an error calls it.

        Raises:
            MismatchError: images that are not the model's, or outputs that are not finite.
        """
        model.spec.check_pixels(self.images.pixels)
        meter = self.teacher.task.meter()
        for first in range(0, len(self.images.pixels), self.batch):
            rows = slice(first, first + self.batch)
            teacher = self._teacher_outputs(rows)
            own = teacher if model is self.teacher else self._outputs(model, rows, what)
            meter.add(own, teacher, self.truth, rows)
        return meter.scores()

    def _outputs(self, model: Scorable, rows: slice, what: str) -> Outputs:
        return outputs_of(model, self.images.pixels[rows], self.runtime, what)

    def _teacher_outputs(self, rows: slice) -> Outputs:
        if rows.start in self._kept:
            return self._kept[rows.start]
        outputs = self._outputs(self.teacher, rows, f"teacher '{self.teacher.name}'")
        size = sum(tensor.nbytes for _, tensor in named_tensors(outputs))
        if self._kept_bytes + size <= KEPT_BYTES:
            self._kept[rows.start] = outputs
            self._kept_bytes += size
        return outputs


def outputs_of(model: Scorable, pixels_NCHW: Tensor, runtime: Runtime, what: str) -> Outputs:
    """Outputs for one batch in float32 on the CPU, whatever the precision of synthesis or training.

    Raises:
        MismatchError: outputs that are not finite.
    """
    # A program of another library has no modes.
    mode = in_eval_mode(model.network) if isinstance(model, Teacher | FittedStudent) else nullcontext()
    with usual_modes(), mode, runtime.in_force(exact=True), torch.inference_mode():
        standard = model.spec.pixels_to_standard(pixels_NCHW.to(runtime.device))
        found = model.logits(maps_channels_last(standard))
        outputs = mapped(lambda tensor: tensor.float().cpu(), found)
    count = len(pixels_NCHW)
    broken = torch.zeros(count, dtype=torch.bool)
    for _, tensor in named_tensors(outputs):
        of_images = tensor.dim() > 0 and len(tensor) == count
        broken |= ~tensor.isfinite().reshape(count if of_images else 1, -1).all(1)
    if broken.any():
        found = f"{what} gives NaN or infinity on {int(broken.sum())} of {quantity(count, 'image')}"
        raise MismatchError(found, "finite outputs", "check its weights, mean, std and options")
    return outputs


def logits_of(
    model: Scorable, pixels_NCHW: Tensor, runtime: Runtime, batch: int = BATCH, what: str = "the network"
) -> Tensor:
    """float32 (N, num_outputs) on the CPU, of a network whose output is one such tensor.

    Raises:
        MismatchError: images that are not the model's, or outputs that are not finite.
    """
    model.spec.check_pixels(pixels_NCHW)
    return torch.cat([outputs_of(model, pixels, runtime, what) for pixels in pixels_NCHW.split(batch)])


def score_teacher(
    teacher: Teacher, images: EvaluationImages, runtime: Runtime, *, need_truth: bool = True
) -> Reference:
    """The teacher on evaluation images, scored where they have labels.

    Args:
        need_truth: refuse images without labels, of a task whose sources are compared by labels.

    Raises:
        MismatchError: images or labels of another network.
        ImagesError: unlabelled images, or too few identities.
        TeacherAccuracyError: more than `TEACHER_TOLERANCE` from `teacher.expected_accuracy`, and of a metric
            in points more than `STANDARD_ERRORS` of so many images.
    """
    task = teacher.task
    teacher.spec.check_pixels(images.pixels, "evaluation images")
    labelled = task.has_truth(images)
    count = len(images.pixels)
    if tuple(images.labels.shape) != (count,):
        raise MismatchError(
            f"labels of shape {tuple(images.labels.shape)}", f"({count},), one for each image"
        )
    if labelled or (need_truth and task.needs_truth):
        task.check_truth(images, teacher.num_outputs)
    reference = Reference(teacher, images, runtime, images if labelled else None)
    measured, expected = reference.quality, teacher.expected_accuracy
    if measured is None or expected is None:
        return reference
    assert task.quality is not None
    allowed = _allowed(task.quality, expected, len(images.pixels))
    if abs(measured - expected) > allowed:
        found = f"{with_unit(task.quality, measured)} on {quantity(len(images.pixels), 'image')}"
        why = "" if allowed == TEACHER_TOLERANCE else f", {STANDARD_ERRORS} standard errors of so many images"
        raise TeacherAccuracyError(
            f"teacher '{teacher.name}' measures {found}",
            f"{expected:.2f} within {allowed:.2f} {unit(task.quality)}{why}",
            "check its weights, mean, std and the evaluation images, or correct expected_accuracy",
        )
    return reference


def _allowed(metric: str, expected: float, num_images: int) -> float:
    """How far from `expected` a metric of the teacher may come out. The images may be a sample: one image has
    0..100 points, so the standard error of a mean is at most sqrt(p (100 - p) / N), as of a share p."""
    if unit(metric) != "points":
        return TEACHER_TOLERANCE
    # As if one image more were right and one wrong: the error is not zero at 100 points.
    share = (num_images * expected + 100) / (num_images + 2)
    error = math.sqrt(max(share * (100 - share), 0.0) / max(num_images, 1))
    return max(TEACHER_TOLERANCE, STANDARD_ERRORS * error)


def all_scores(student: FittedStudent, reference: Reference) -> Scores:
    """What a fitted student measures beside its teacher."""
    check_fitted(student)
    return reference.score(student, f"student {student.student} {student.bits}")


def score_student(student: FittedStudent, reference: Reference) -> dict[str, float]:
    """The metrics of `all_scores`."""
    return all_scores(student, reference).metrics
