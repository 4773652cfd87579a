"""A teacher that finds boxes, as methods see it, and the memory of the boxes that they ask of it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from zsq.contract import Teacher
from zsq.core.boxes import Target, flipped, rolled
from zsq.core.errors import MismatchError
from zsq.engine.detection import PaddedTargets, detection_loss, one_box, padded, resampled
from zsq.engine.executed import blank
from zsq.engine.objectives import TeacherPass
from zsq.engine.views import Flip, Roll
from zsq.tasks.detect import Detect


def require_boxes(teacher: Teacher, owner: str) -> Detect:
    """The teacher's task, where boxes can be asked of it.

    Raises:
        MismatchError: it does not detect, or its card does not say how boxes are asked for.
    """
    task = teacher.task
    if not isinstance(task, Detect):
        raise MismatchError(
            f"teacher '{teacher.name}' finds no boxes", f"a detector, since {owner} asks for boxes"
        )
    if task.dense is None and task.training_loss is None:
        raise MismatchError(
            f"the card of teacher '{teacher.name}' names neither `dense` nor `loss`",
            f"dense = 'module:function' that gives all boxes and scores, since {owner} asks for boxes",
        )
    return task


class Detector:
    """What a method that asks for boxes needs of a teacher.

    `teacher` is a copy whose network returns a tuple of tensors: boxes (N, A, 4) and scores (N, A, K), or
    where the card names a loss the raw maps one after another. `labels` are the classes that may be asked
    for.
    """

    def __init__(self, teacher: Teacher, owner: str) -> None:
        """Look at what the network returns for one image.

        Raises:
            MismatchError: as `require_boxes`, or the number of classes is not known.
        """
        self.task = require_boxes(teacher, owner)
        self.original = teacher
        with torch.no_grad():
            outputs = teacher.logits(blank(teacher.network, teacher.spec))
        self._form = tree_flatten(outputs)[1]
        network = copy.deepcopy(teacher.network)
        network.register_forward_hook(lambda module, inputs, outputs: self._asked_of(outputs))
        self.teacher = dataclasses.replace(teacher, network=network)
        self.labels = self._labels(outputs, owner)

    def _asked_of(self, outputs: Any) -> tuple[Tensor, ...]:
        if self.task.training_loss is not None:
            return tuple(tree_flatten(outputs)[0])
        assert self.task.dense is not None
        return tuple(self.task.dense(outputs))

    def _labels(self, outputs: Any, owner: str) -> tuple[int, ...]:
        if self.task.labels is not None:
            return self.task.labels
        if self.task.dense is None:
            raise MismatchError(
                f"the card of teacher '{self.original.name}' does not say which classes there are",
                f"classes = [...], since {owner} asks for classes",
            )
        return tuple(range(self.task.dense(outputs)[1].shape[-1]))

    def task_loss(self, outputs: Sequence[Tensor], targets: PaddedTargets) -> Tensor:
        """The loss of what `teacher` returns against what is asked: the card's own, else the mean over images
        of `detection_loss`."""
        if self.task.training_loss is None:
            return detection_loss(outputs[0], outputs[1], targets).mean()
        loss = self.task.training_loss(tree_unflatten(list(outputs), self._form), targets.unpadded())
        return torch.stack(list(loss.values())).sum() if isinstance(loss, Mapping) else loss

    @torch.no_grad()
    def find(self, standard_NCHW: Tensor) -> list[Target]:
        """What the teacher finds in each image, on the CPU, of the classes that may be asked for."""
        allowed = torch.tensor(self.labels)
        found = self.task.found(self.original.logits(standard_NCHW), len(standard_NCHW))
        kept = [torch.isin(each["labels"], allowed) for each in found]
        return [
            {name: values[rows] for name, values in each.items()}
            for each, rows in zip(found, kept, strict=True)
        ]


class Followed:
    """A view, a roll or a flip of the whole batch, whose last draw boxes can follow."""

    def __init__(self, view: Roll | Flip) -> None:
        """Nothing is drawn yet."""
        self.view, self.drawn = view, torch.empty(0)

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """As the view's own."""
        self.drawn = self.view.draw(shape, generator)
        return self.drawn

    def __call__(self, images_NCHW: Tensor, draw: Tensor) -> Tensor:
        """As the view's own."""
        return self.view(images_NCHW, draw)

    def follow(self, target: Target, size: tuple[int, int]) -> Target:
        """The target of an image of `size` (height, width) as the last draw leaves it."""
        if isinstance(self.view, Roll):
            return rolled(target, self.drawn, size)
        return flipped(target, size[1]) if bool(self.drawn) else target


class AskedBoxes:
    """A memory: the boxes asked of each image of a batch, one at random at first. They follow the views of a
    step, and some steps sample them anew from what the detector finds.

    `targets` are those of the images themselves, `seen` those of what the teacher sees in this step.
    """

    def __init__(
        self,
        detector: Detector,
        images: Callable[[], Tensor],
        sampled_at: range = range(0),
        views: Sequence[Followed] = (),
    ) -> None:
        """`images` gives the batch as it is, in standard space; boxes are sampled anew before the iterations
        `sampled_at`."""
        self.detector, self.images = detector, images
        self.sampled_at, self.views = sampled_at, tuple(views)
        self.targets: list[Target] = []
        self.seen: PaddedTargets | None = None

    def before_step(self, iteration: int, generator: torch.Generator) -> None:
        """Draw boxes for a new batch, sample where it is time, then follow the views."""
        images, size = self.images(), self.detector.original.spec.plane
        if iteration == 0:
            self.targets = [one_box(self.detector.labels, size, generator) for _ in images]
        if iteration in self.sampled_at:
            pairs = zip(self.targets, self.detector.find(images), strict=True)
            self.targets = [resampled(target, found, size) for target, found in pairs]
        seen = self.targets
        for view in self.views:
            seen = [view.follow(target, size) for target in seen]
        self.seen = padded(seen, images.device)

    def after_step(self, iteration: int, forward: TeacherPass) -> None:
        """Nothing is learned."""

    def loss(self, forward: TeacherPass) -> Tensor:
        """The detector's loss against the boxes asked for in this step."""
        assert self.seen is not None and not isinstance(forward.outputs, Tensor)
        return self.detector.task_loss(forward.outputs, self.seen)
