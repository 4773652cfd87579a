"""What a loaded teacher is: its network and images, what it says of noise, and its accuracy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zsq.contract import Teacher
from zsq.core.runtime import Runtime
from zsq.core.seeding import torch_generator
from zsq.core.wording import quantity
from zsq.engine.norms import count_norms
from zsq.images.imageset import ImageSet
from zsq.measure.evaluate import logits_of, score_teacher
from zsq.tasks.metrics import with_unit, words

NOISE_IMAGES = 64


@dataclass(frozen=True)
class Answers:
    """How sure a classifier is of a set of images: mean of its largest probability, 0..1, and how many
    classes it names."""

    num_images: int
    confidence: float
    num_classes: int

    def __str__(self) -> str:
        """In words."""
        classes, images = quantity(self.num_classes, "class"), quantity(self.num_images, "image")
        return f"mean confidence {100 * self.confidence:.0f} %, {classes} named ({images})"


@dataclass(frozen=True)
class TeacherFacts:
    """`noise` and `labelled` are None for a teacher without classes or without images; `score` is the
    metric `Task.quality`."""

    teacher: Teacher
    num_parameters: int
    num_batch_norms: int
    noise: Answers | None
    labelled: Answers | None = None
    score: float | None = None

    def lines(self) -> list[str]:
        """As text."""
        teacher, spec = self.teacher, self.teacher.spec
        fitted = "" if spec.input_size in (None, spec.size) else f", resized to {_by(spec.input_size)} inside"
        channels = spec.channel_order if spec.channels == 3 else spec.channels
        units = "pixels 0..1" if spec.range is None else "values"
        moments = f"mean {_listed(spec.mean)}, std {_listed(spec.std)} of {units}, channels {channels}"
        lines = [
            f"teacher {teacher.name}: {self.num_parameters:,} parameters, "
            f"{quantity(self.num_batch_norms, 'batch norm layer')}, {self._outputs()}",
            f"{'signals' if spec.is_signal else 'images'} {_by(spec.shape)}{fitted}; {moments}",
            *([] if spec.step_line is None else [spec.step_line]),
            f"weights sha256 {teacher.weights_sha256[:16]}",
        ]
        lines += [] if self.noise is None else [f"noise: {self.noise}"]
        lines += [] if self.labelled is None else [f"labelled images: {self.labelled}"]
        name = teacher.task.quality
        if self.score is not None and name is not None:
            stated = teacher.expected_accuracy
            said = "" if stated is None else f", {stated:.2f} is stated"
            lines.append(f"{words(name)} {with_unit(name, self.score)}{said}")
        return lines

    def _outputs(self) -> str:
        """`10 classes`, `task image, 3 channels`, or the task alone."""
        task, size = self.teacher.task, self.teacher.num_outputs
        parts = [] if task.name in ("classify", "embed") else [f"task {task.name}"]
        return ", ".join(parts + ([] if size is None else [quantity(size, task.counted)]))


def teacher_facts(teacher: Teacher, runtime: Runtime, images: ImageSet | None = None) -> TeacherFacts:
    """Look at a teacher that is on the runtime's device; `images` are labelled ones.

    Raises:
        MismatchError, ImagesError: images or labels that are not the teacher's.
    """
    network = teacher.network
    parameters = sum(parameter.numel() for parameter in network.parameters())
    noise = torch.randint(
        256, (NOISE_IMAGES, *teacher.spec.shape), generator=torch_generator(0, 0, "noise to look at")
    )
    norms = count_norms(network, teacher.spec)
    facts = TeacherFacts(teacher, parameters, norms, _answers(teacher, noise.to(torch.uint8), runtime))
    if images is None:
        return facts
    reference = score_teacher(replace(teacher, expected_accuracy=None), images, runtime)
    answers = _answers(teacher, images.pixels, runtime)
    return replace(facts, labelled=answers, score=reference.quality)


def _answers(teacher: Teacher, pixels: Tensor, runtime: Runtime) -> Answers | None:
    if not teacher.task.has_classes:
        return None
    outputs_NK = logits_of(teacher, pixels, runtime)
    top, classes = outputs_NK.softmax(1).max(1)
    return Answers(len(outputs_NK), float(top.mean()), int(classes.unique().numel()))


def _by(lengths: tuple[int, ...] | None) -> str:
    return "x".join(map(str, lengths or ()))


def _listed(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
