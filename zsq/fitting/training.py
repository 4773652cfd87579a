"""The training loop of quantization-aware students: shuffled views of the images, a target from the teacher,
a loss, an optimizer. It knows neither classes nor quantizers; what a student is stands in its own file."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR

from zsq.contract import Fit
from zsq.core.imagespec import ImageSpec
from zsq.core.layout import maps_channels_last
from zsq.core.options import Options, later
from zsq.core.runtime import Runtime
from zsq.core.seeding import torch_generator
from zsq.fitting.augmentation import cutmix, mixup, random_gain, shift_and_flip
from zsq.tasks.nesting import Outputs, mapped
from zsq.widths import Bits

LOG_EVERY = 20
# With 256 images, what 160 steps of 128 images are.
EPOCHS = 80
# Weights of so many bits are so coarse that what enters a batch norm has other statistics than the teacher's.
COARSE_BITS = 3
# Structures that stay compiled. A pass that looks at images makes a network of its own for each fit.
MOST_TWINS = 16

Loss = Callable[[Any, Any], Tensor]
Norms = Literal["frozen", "train"]
NormsAsked = Literal["auto", "frozen", "train"]


class TrainingOptions(Options):
    """What every trained student has; a student states its own defaults.

    `iterations` are optimiser steps; None is `EPOCHS` over the images. `batch_norm`: its statistics are the
    teacher's (frozen) or follow the images (train); auto is train where weights have at most `COARSE_BITS`.
    """

    iterations: int | None = Field(160, ge=0)
    batch: int = Field(128, ge=1)
    optimizer: Literal["adam", "sgd"] = "adam"
    # At 1e-3 students of four bits leave their start too fast, and on poor images for good.
    learning_rate: float = Field(5e-4, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "step"] = "cosine"
    # Of the schedule `step`: the learning rate falls tenfold after every so many steps.
    decay_every: int = Field(100, ge=1)
    clip_norm: float | None = Field(None, gt=0)
    batch_norm: NormsAsked = "frozen"
    shift: int = Field(3, ge=0)
    flip: bool = True
    # Further views, 0 for none: of `zsq.fitting.augmentation`, in this order.
    gain: float = Field(0.0, ge=0, le=1)
    mixup: float = Field(0.0, ge=0, le=100)
    cutmix: float = Field(0.0, ge=0, le=100)
    # Share of the weights of inner layers that become zero on the way: of every layer, or of all together.
    sparsity: float = later(0.0, ge=0, lt=1)
    sparsity_over: Literal["layer", "network"] = later("layer")

    def steps(self, num_images: int) -> int:
        """Optimiser steps of a fit on so many images."""
        if self.iterations is not None:
            return self.iterations
        return math.ceil(EPOCHS * num_images / self.batch)

    def norms(self, bits: Bits) -> Norms:
        """What batch norms do in a fit at `bits`."""
        if self.batch_norm != "auto":
            return self.batch_norm
        return "train" if bits.weights <= COARSE_BITS else "frozen"


@dataclass(frozen=True)
class Course:
    """One network to train.

    Attributes:
        network: trained in place; on the runtime's device.
        target: what it follows, frozen. Both take norm images and return a tensor, or tensors in
            any nesting, the same for both.
        groups: the optimiser's parameter groups; a learning rate or weight decay in a group stands before the
            options'.
        structure: equal for networks that differ in their tensors alone; the next of them is not compiled
            again.
        taught: the network's twin that the loss sees, where it should return more than the network does; its
            parameters and buffers have the network's names and are replaced by the network's.
        target_structure: as `structure`, for a target that is another network in each course.
        before_step: called with the number of the step, from 1.
        after_step: called after each optimiser step, without gradients.
    """

    network: nn.Module
    target: nn.Module
    groups: Sequence[dict[str, Any]]
    structure: Hashable
    taught: nn.Module | None = None
    target_structure: Hashable | None = None
    before_step: Callable[[int], None] = lambda step: None
    after_step: Callable[[], None] = lambda: None


class Training:
    """Runs courses that share one loss. What is compiled takes a network of the same structure and a course's
    tensors, so that the next course of that structure finds it compiled."""

    def __init__(self, name: str, options: TrainingOptions, runtime: Runtime, loss: Loss) -> None:
        """`name` keeps the random streams of students apart; `loss` takes outputs and target, in float32."""
        self.name, self.options, self.runtime, self.loss = name, options, runtime, loss
        self._twins: dict[Hashable, tuple[nn.Module, Callable[..., Any]]] = {}

    def run(self, course: Course, fit: Fit) -> None:
        """Train on the fit's images for the options' steps and leave the network in eval mode, frozen.

        The fit's log advances in images, with the loss.
        """
        options, network = self.options, course.network
        template, loss_of = self._twin(course.structure, course.taught or network, self._losses)
        target_template, target_of, target_tensors = self._target(course)
        for module in (template, network):
            set_modes(module, options.norms(fit.bits))
        tensors = tensors_of(network)
        optimizer = make_optimizer(options, course.groups)
        pixels_NCHW, spec = fit.pixels_NCHW, fit.teacher.spec
        num_steps = options.steps(len(pixels_NCHW))
        schedule = make_schedule(options, optimizer, num_steps)
        batches = shuffled_batches(len(pixels_NCHW), options.batch, num_steps, fit.seed, self.name)
        views = torch_generator(fit.seed, 0, f"{self.name} views")
        for step, batch in enumerate(batches, start=1):
            course.before_step(step)
            norm = self._view(spec, pixels_NCHW[batch], views)
            self.runtime.begin_step()
            with torch.no_grad():
                target = mapped(torch.clone, target_of(target_template, target_tensors, norm))
            optimizer.zero_grad()
            loss = loss_of(template, tensors, norm, target)
            loss.backward()
            if options.clip_norm is not None:
                nn.utils.clip_grad_norm_([p for g in course.groups for p in g["params"]], options.clip_norm)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                course.after_step()
            if step % LOG_EVERY == 0 or step == len(batches):
                fit.log.advance(len(batch) * ((step - 1) % LOG_EVERY + 1), loss=loss.item())
        network.eval().requires_grad_(False)

    def _view(self, spec: ImageSpec, pixels_NCHW: Tensor, generator: torch.Generator) -> Tensor:
        options = self.options
        standard = spec.pixels_to_standard(pixels_NCHW.to(self.runtime.device))
        view = shift_and_flip(standard, options.shift, options.flip, generator)
        for change, strength in (
            (random_gain, options.gain),
            (mixup, options.mixup),
            (cutmix, options.cutmix),
        ):
            if strength:
                view = change(view, strength, generator)
        return spec.standard_to_norm(view)

    def _outputs(self, network: nn.Module, tensors: dict[str, Tensor], norm_NCHW: Tensor) -> Outputs:
        with self.runtime.autocast():
            images = maps_channels_last(norm_NCHW)
            outputs = torch.func.functional_call(network, tensors, (images,))
        return mapped(lambda part: part.float() if part.is_floating_point() else part, outputs)

    def _losses(
        self, network: nn.Module, tensors: dict[str, Tensor], norm_NCHW: Tensor, target: Outputs
    ) -> Tensor:
        return self.loss(self._outputs(network, tensors, norm_NCHW), target)

    def _twin(
        self, structure: Hashable, network: nn.Module, function: Callable[..., Any]
    ) -> tuple[nn.Module, Callable[..., Any]]:
        """A copy of the first network of this structure, and the function compiled for it."""
        known = self._twins.pop(structure, None)
        twin = known or (copy.deepcopy(network), self.runtime.compiled(function))
        self._twins[structure] = twin  # the last in use stands last
        while len(self._twins) > MOST_TWINS:
            del self._twins[next(iter(self._twins))]
        return twin

    def _target(self, course: Course) -> tuple[nn.Module, Callable[..., Any], dict[str, Tensor]]:
        # Without a structure the target is one network that never changes: its twin has its tensors.
        structure = course.target if course.target_structure is None else course.target_structure
        template, target_of = self._twin(("target", structure), course.target, self._outputs)
        return template, target_of, {} if course.target_structure is None else tensors_of(course.target)


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, as `functional_call` takes them."""
    return dict(network.named_parameters()) | dict(network.named_buffers())


def set_modes(network: nn.Module, norms: Norms) -> None:
    """Everything in eval mode and trainable; batch norms in train mode where they shall follow the images."""
    network.eval().requires_grad_(True)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(norms == "train")


def make_optimizer(options: TrainingOptions, groups: Sequence[dict[str, Any]]) -> Optimizer:
    """Adam or SGD over `groups`."""
    shared: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    if options.optimizer == "adam":
        return torch.optim.Adam(groups, **shared)
    return torch.optim.SGD(groups, momentum=options.momentum, nesterov=options.nesterov, **shared)


def make_schedule(options: TrainingOptions, optimizer: Optimizer, num_steps: int) -> LRScheduler:
    """Cosine to 0 over all steps, or tenfold down after every `decay_every` steps."""
    if options.schedule == "cosine":
        return CosineAnnealingLR(optimizer, max(num_steps, 1))
    return StepLR(optimizer, options.decay_every, gamma=0.1)


def shuffled_batches(num_images: int, batch: int, steps: int, seed: int, name: str) -> Tensor:
    """(steps, batch) image indices: one shuffled epoch after another, whatever the number of images."""
    generator = torch_generator(seed, 0, f"{name} batches")
    num_epochs = max(1, math.ceil(steps * batch / num_images))
    epochs = [torch.randperm(num_images, generator=generator) for _ in range(num_epochs)]
    return torch.cat(epochs)[: steps * batch].view(steps, batch)
