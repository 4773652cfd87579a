"""Learning-rate schedules that live on the device: no host synchronisation per step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from zsq.core.options import Options, scales_with_iterations

Iterations = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Patience = Annotated[int, scales_with_iterations(ge=0)]
Factor = Annotated[float, Field(gt=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
# Of Adam.
Betas = tuple[Beta, Beta]


class Schedule:
    """Constant learning rate, and the base of the others; `rate` is the 0-d tensor the optimizer reads."""

    def __init__(self, rate: float, iterations: int, device: str) -> None:
        """`iterations`: length of the run the schedule is for."""
        self.initial = rate
        self.iterations = iterations
        self.rate = torch.tensor(rate, device=device)

    def step(self, iteration: int, loss: Tensor) -> None:
        """After iteration `iteration` (from 0) with this detached loss."""


class Plateau(Schedule):
    """Multiply by `factor` when the loss has not fallen by 0.01 % for more than `patience` steps."""

    def __init__(
        self, rate: float, iterations: int, device: str, factor: float, patience: int, floor: float
    ) -> None:
        """`floor`: smallest rate. The rule is that of torch's ReduceLROnPlateau, kept on the device."""
        super().__init__(rate, iterations, device)
        self.factor, self.patience, self.floor = factor, patience, floor
        self.best = torch.tensor(math.inf, device=device)
        self.waited = torch.zeros((), device=device)

    def step(self, iteration: int, loss: Tensor) -> None:
        """Update the running minimum and, where it stood still too long, the rate."""
        better = loss < self.best * (1 - 1e-4)
        self.best = torch.where(better, loss, self.best)
        self.waited = torch.where(better, 0.0, self.waited + 1)
        late = self.waited > self.patience
        self.rate.copy_(torch.where(late, (self.rate * self.factor).clamp_min(self.floor), self.rate))
        self.waited = torch.where(late, 0.0, self.waited)


class Cosine(Schedule):
    """Linear warm-up over `warmup` steps, then half a cosine to the rate `final`."""

    def __init__(
        self, rate: float, iterations: int, device: str, warmup: int = 0, final: float = 0.0
    ) -> None:
        """`warmup` in steps."""
        super().__init__(rate, iterations, device)
        self.warmup, self.final = warmup, final
        self._set(0)

    def step(self, iteration: int, loss: Tensor) -> None:
        """Set the rate for the next iteration."""
        self._set(iteration + 1)

    def _set(self, iteration: int) -> None:
        if iteration < self.warmup:
            share = (iteration + 1) / self.warmup
        else:
            share = 0.5 + 0.5 * math.cos(
                math.pi * (iteration - self.warmup) / max(1, self.iterations - self.warmup)
            )
            share += (1 - share) * self.final / self.initial
        self.rate.fill_(self.initial * share)


class Exponential(Schedule):
    """Multiply by `factor` every `every` steps."""

    def __init__(self, rate: float, iterations: int, device: str, factor: float, every: int) -> None:
        """`every` in steps."""
        super().__init__(rate, iterations, device)
        self.factor, self.every = factor, every

    def step(self, iteration: int, loss: Tensor) -> None:
        """Set the rate for the next iteration."""
        self.rate.fill_(self.initial * self.factor ** ((iteration + 1) // self.every))


MakeSchedule = Callable[[float, int, str], Schedule]


class PlateauOptions(Options):
    """Options of a method whose learning rate falls where the loss stands still: see `Plateau`."""

    iterations: Iterations
    learning_rate: Rate
    patience: Patience
    factor: Factor = 0.1
    min_learning_rate: float = Field(1e-4, ge=0)

    def schedule(self, rate: float, iterations: int, device: str) -> Plateau:
        """A `MakeSchedule`."""
        return Plateau(rate, iterations, device, self.factor, self.patience, self.min_learning_rate)


def exponential(factor: float, every: int) -> MakeSchedule:
    """Maker of `Exponential` schedules with these constants."""
    return lambda rate, iterations, device: Exponential(rate, iterations, device, factor, every)
