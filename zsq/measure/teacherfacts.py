"""What a loaded teacher is: its network and images, what it says of noise, and its accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zsq.contract import Teacher
from zsq.core.runtime import Runtime
from zsq.core.seeding import torch_generator
from zsq.engine.statistics import batch_norms
from zsq.images.sources import ImageSet
from zsq.measure.evaluate import logits_of
from zsq.tasks.classify import accuracy
from zsq.tasks.embed import Embed, score_embeddings

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
        classes = "1 class" if self.num_classes == 1 else f"{self.num_classes} classes"
        return f"mean confidence {self.confidence:.2f}, {classes} named on {self.num_images} images"


@dataclass(frozen=True)
class TeacherFacts:
    """`noise` and `labelled` are None for an embedding teacher or without images; `accuracy` is 0..100, top-1
    or that of verification."""

    teacher: Teacher
    num_parameters: int
    num_batch_norms: int
    noise: Answers | None
    labelled: Answers | None = None
    accuracy: float | None = None

    def lines(self) -> list[str]:
        """As text."""
        teacher, spec = self.teacher, self.teacher.spec
        what = "classes" if teacher.task.has_classes else "numbers of an embedding"
        fitted = "" if spec.input_size in (None, spec.size) else f", resized to {_by(spec.input_size)} inside"
        channels = spec.channel_order if spec.channels == 3 else spec.channels
        moments = f"mean {_listed(spec.mean)}, std {_listed(spec.std)} of pixels 0..1, channels {channels}"
        lines = [
            f"teacher {teacher.name}: {self.num_parameters:,} parameters, "
            f"{self.num_batch_norms} batch norm layers, {teacher.num_outputs} {what}",
            f"images {_by(spec.shape)}{fitted}; {moments}",
            f"weights sha256 {teacher.weights_sha256[:16]}",
        ]
        lines += [] if self.noise is None else [f"noise: {self.noise}"]
        lines += [] if self.labelled is None else [f"labelled images: {self.labelled}"]
        if self.accuracy is not None:
            stated = teacher.expected_accuracy
            said = "" if stated is None else f", {stated:.2f} is stated"
            lines.append(f"accuracy {self.accuracy:.2f} %{said}")
        return lines


def teacher_facts(teacher: Teacher, runtime: Runtime, images: ImageSet | None = None) -> TeacherFacts:
    """Look at a teacher that is on the runtime's device; `images` are labelled ones.

    Raises:
        MismatchError, ImagesError: images or labels that are not the teacher's.
    """
    network = teacher.network
    noise = torch.randint(
        256, (NOISE_IMAGES, *teacher.spec.shape), generator=torch_generator(0, 0, "noise to look at")
    )
    parameters = sum(parameter.numel() for parameter in network.parameters())
    found = _answers(teacher, logits_of(teacher, noise.to(torch.uint8), runtime))
    facts = TeacherFacts(teacher, parameters, len(batch_norms(network)), found)
    if images is None:
        return facts
    teacher.task.check_truth(images, teacher.num_outputs)
    outputs = logits_of(teacher, images.pixels, runtime)
    if isinstance(teacher.task, Embed):
        measured = score_embeddings(outputs, outputs, images.labels).metrics["accuracy"]
    else:
        measured = accuracy(outputs, images.labels)
    return TeacherFacts(
        teacher, parameters, facts.num_batch_norms, found, _answers(teacher, outputs), measured
    )


def _answers(teacher: Teacher, outputs_NK: Tensor) -> Answers | None:
    if not teacher.task.has_classes:
        return None
    top, classes = outputs_NK.softmax(1).max(1)
    return Answers(len(outputs_NK), float(top.mean()), int(classes.unique().numel()))


def _by(lengths: tuple[int, ...] | None) -> str:
    return "x".join(map(str, lengths or ()))


def _listed(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
