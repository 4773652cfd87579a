"""Label policies: which class each image is asked to show. Always (N, K) class probabilities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zsq.contract import Teacher
from zsq.core.errors import MismatchError
from zsq.plan import Group


def uniform_labels(group: Group, num_classes: int) -> Tensor:
    """Each image's class drawn uniformly from the group's own stream."""
    classes = torch.randint(num_classes, (group.num_images,), generator=group.generator("labels"))
    return F.one_hot(classes, num_classes).float()


def balanced_labels(group: Group, num_classes: int) -> Tensor:
    """Classes in turn over the whole run: image i of the run shows class i mod K."""
    classes = (torch.arange(group.num_images) + group.first_image) % num_classes
    return F.one_hot(classes, num_classes).float()


def shuffled_labels(group: Group, num_classes: int) -> Tensor:
    """All classes once in a random order, then again, and so on: of each class nearly equally many."""
    generator = group.generator("labels")
    rounds = -(-group.num_images // num_classes)
    classes = torch.cat([torch.randperm(num_classes, generator=generator) for _ in range(rounds)])
    return F.one_hot(classes[: group.num_images], num_classes).float()


def with_confidence(targets_NK: Tensor, low: float, generator: torch.Generator) -> Tensor:
    """One-hot rows whose 1 becomes t ~ U(low, 1); the other classes share the rest."""
    return _shared(targets_NK, low + (1 - low) * torch.rand(len(targets_NK), generator=generator))


def softened(targets_NK: Tensor, low: float, generator: torch.Generator) -> Tensor:
    """One-hot rows whose 1 becomes t ~ U(low, 1) at even odds; the other classes share the rest."""
    drawn_N = low + (1 - low) * torch.rand(len(targets_NK), generator=generator)
    is_soft_N = torch.rand(len(targets_NK), generator=generator) < 0.5
    return _shared(targets_NK, torch.where(is_soft_N, drawn_N, 1.0))


def _shared(targets_NK: Tensor, kept_N: Tensor) -> Tensor:
    kept_N1 = kept_N[:, None]
    return targets_NK * kept_N1 + (1 - targets_NK) * (1 - kept_N1) / max(1, targets_NK.shape[1] - 1)


def class_count(teacher: Teacher, owner: str) -> int:
    """The teacher's number of classes.

    Raises:
        MismatchError: its task has none.
    """
    if teacher.num_classes is None:
        raise MismatchError(
            f"teacher '{teacher.name}' has task '{teacher.task.name}', which has no classes",
            f"a classifier, since {owner} asks for classes",
        )
    return teacher.num_classes
