"""Parameterisations: what is optimised, and how images come from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zsq.core.imagespec import ImageSpec
from zsq.engine.schedules import MakeSchedule, Schedule

Initialiser = Callable[[Sequence[int], torch.Generator], Tensor]


def gaussian(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """N(0, 1) in standard space."""
    return torch.randn(*shape, generator=generator)


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """U[0, 1) in standard space."""
    return torch.rand(*shape, generator=generator)


@dataclass(frozen=True)
class ParameterGroup:
    """Tensors optimised by one Adam with one rate and schedule."""

    tensors: Sequence[Tensor]
    rate: float
    betas: tuple[float, float]
    schedule: MakeSchedule = Schedule


class Parameterisation(nn.Module):
    """Images as a function of parameters. `forward()` gives (N, C, H, W) in standard space."""

    def reset(self, generator: torch.Generator) -> None:
        """Start a new batch, in place, so that a compiled step stays valid."""
        raise NotImplementedError

    def redraw(self, generator: torch.Generator, targets_NK: Tensor | None) -> Tensor | None:
        """Called before each step: fresh random inputs where there are any, and the targets of this step."""
        return targets_NK

    def groups(self) -> Sequence[ParameterGroup]:
        """What is optimised, and at which rates."""
        raise NotImplementedError

    def project(self) -> None:
        """Called after each optimizer step."""


MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]

fused_adam: MakeOptimizer = partial(torch.optim.Adam, fused=True)


class Optimised:
    """A parameterisation with a fresh optimizer and fresh schedules."""

    def __init__(
        self,
        parameterisation: Parameterisation,
        iterations: int,
        device: str,
        make: MakeOptimizer = fused_adam,
    ) -> None:
        """`iterations`: length of the run that the schedules are for."""
        self.parameterisation = parameterisation
        groups = parameterisation.groups()
        self.schedules = [g.schedule(g.rate, iterations, device) for g in groups]
        self.optimizer = make(
            [
                {"params": list(g.tensors), "lr": s.rate, "betas": g.betas}
                for g, s in zip(groups, self.schedules, strict=True)
            ]
        )

    def step(self, iteration: int, loss: Tensor) -> None:
        """One step along the gradients, then that of the schedules with the detached loss."""
        self.optimizer.step()
        for schedule in self.schedules:
            schedule.step(iteration, loss)
        self.parameterisation.project()


class Pixels(Parameterisation):
    """The pixels themselves, kept inside the box of valid pixel values."""

    def __init__(
        self,
        spec: ImageSpec,
        batch: int,
        device: str,
        rate: float,
        initialise: Initialiser = gaussian,
        betas: tuple[float, float] = (0.9, 0.999),
        schedule: MakeSchedule = Schedule,
    ) -> None:
        """`batch` images of `spec`; `rate`, `betas` and `schedule` are Adam's."""
        super().__init__()
        self.images = nn.Parameter(torch.empty(batch, *spec.shape, device=device))
        self.low, self.high = spec.valid_box(device)
        self.initialise = initialise
        self._group = ParameterGroup([self.images], rate, betas, schedule)

    def forward(self) -> Tensor:
        """The images."""
        return self.images

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw new images on the CPU and clamp them."""
        self.images.copy_(self.initialise(self.images.shape, generator))
        self.project()

    def groups(self) -> Sequence[ParameterGroup]:
        """One group: the pixels."""
        return [self._group]

    @torch.no_grad()
    def project(self) -> None:
        """Clamp to the values that pixels 0..255 have in standard space."""
        self.images.clamp_(self.low, self.high)
