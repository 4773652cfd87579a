"""The trained network that images and students come from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zsq.core.errors import MismatchError
from zsq.core.imagespec import ImageSpec
from zsq.core.photofit import OWN_SIZE, PhotoFit
from zsq.core.runtime import device_of
from zsq.tasks import Task
from zsq.tasks.classify import Classify


@dataclass(frozen=True)
class Teacher:
    """A frozen pretrained network: eval mode, no parameter requires grad, never modified by anybody.

    `network` itself is frozen so. Give a copy of a network that you go on training.

    `classes` are the names of its classes in their order, None where it does not say; `photo_fit` is how its
    own preprocessing brings photos to the size of `spec`. `num_outputs` is the number of classes,
    of numbers of an embedding or of channels of an image; None where the output is not one tensor.
    """

    name: str
    network: nn.Module
    spec: ImageSpec
    num_outputs: int | None
    weights_sha256: str
    task: Task = dataclasses.field(default_factory=Classify)
    expected_accuracy: float | None = None
    classes: tuple[str, ...] | None = None
    photo_fit: PhotoFit = OWN_SIZE

    def __post_init__(self) -> None:
        """Freeze the network."""
        self.network.eval().requires_grad_(False)

    def check_float32(self) -> None:
        """Refuse weights that were converted since the teacher was loaded.

        Raises:
            MismatchError: some are not float32.
        """
        tensors = (*self.network.parameters(), *self.network.buffers())
        other = next((t.dtype for t in tensors if t.is_floating_point() and t.dtype != torch.float32), None)
        if other is not None:
            found = f"teacher '{self.name}' with weights of {str(other).removeprefix('torch.')}"
            raise MismatchError(found, "float32", "teacher.network.float() converts them")

    @property
    def num_classes(self) -> int | None:
        """Number of classes, None for a network whose task has none."""
        return self.num_outputs if self.task.has_classes else None

    def logits(self, standard_NCHW: Tensor) -> Tensor:
        """Standard-space images -> the network's output: one tensor, such as (N, num_outputs) logits; of the
        tasks detect and other any nesting of tensors."""
        return self.network(self.spec.standard_to_norm(standard_NCHW))

    def example(self) -> Tensor:
        """Two black images as the network takes them, on the CPU."""
        return self.spec.pixels_to_norm(torch.zeros(2, *self.spec.shape, dtype=torch.uint8))

    def to(self, device: str | torch.device) -> Teacher:
        """This teacher with its network on `device` (moved in place): `cpu`, `cuda`, `cuda:N` or `auto`.

        Raises:
            OptionError: a device that is not there.
        """
        return dataclasses.replace(self, network=self.network.to(device_of(device)))
