"""Real numbers of an image: an age, an angle, the places of landmarks, a depth for every pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zsq.core.errors import ImagesError
from zsq.tasks.base import Meter, Metric, Scores, Task, Truth, targets_of

# Of a batch of outputs that are all zero, a loss is finite too.
TINY = 1e-12


@dataclass(frozen=True)
class Regress(Task):
    """A floating tensor (N, ...); `targets` are the true values in its shape, NaN where there is none."""

    name: ClassVar[str] = "regress"
    wants: ClassVar[str] = "(N, ...) real numbers"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "r2": Metric("R²", least=-math.inf),
        "mae": Metric("mean absolute error", "", most=math.inf),
    }
    quality: ClassVar[str | None] = "r2"
    trains: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = False

    def suits(self, outputs: Tensor) -> bool:
        """One batch of numbers."""
        return isinstance(outputs, Tensor) and outputs.dim() > 1 and outputs.is_floating_point()

    def meter(self) -> Meter:
        """R² and the mean absolute error where there are true values."""
        return _Errors()

    def has_truth(self, images: Truth) -> bool:
        """There are true values."""
        return images.targets is not None

    def check_truth(self, images: Truth, num_outputs: int | None) -> None:
        """There are true values, and some of them are numbers."""
        if images.targets is None:
            expected = "an .npz with 'targets', numbers in the shape of the network's output"
            raise ImagesError("evaluation images without true values", expected)
        if images.targets.isinf().any():
            raise ImagesError("targets with infinity", "finite values, NaN where there is none")
        unknown = images.targets.isnan()
        least, most = images.targets.where(~unknown, torch.inf), images.targets.where(~unknown, -torch.inf)
        if not bool((most.amax(0) > least.amin(0)).any()):
            raise ImagesError("targets that are the same for all images", "values that differ, for r2")

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """sum (s - t)² / sum t²: no unit of the values changes it."""
        s, t = student.float(), teacher.float()
        return (s - t).square().sum() / t.square().sum().clamp(min=TINY)


class _Errors(Meter):
    """Sums over known values, in float64. `mean` is that of the true values over all images, by position."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor | None = None
        self.count = 0
        self.square = self.varying = self.distance = 0.0

    def _add(self, student: Tensor, teacher: Tensor, truth: Truth | None, rows: slice) -> None:
        if truth is None or truth.targets is None:
            return
        if self.mean is None:
            self.mean = truth.targets.double().nanmean(0)
        y = targets_of(truth.targets[rows], student).double()
        known = ~y.isnan()
        off = (student.double() - y)[known]
        self.count += len(off)
        self.distance += off.abs().sum().item()
        self.square += off.square().sum().item()
        self.varying += (y - self.mean)[known].square().sum().item()

    def _scores(self) -> Scores:
        """`r2` = 100 (1 - sum (s - y)² / sum (y - mean)²), and `mae` in the unit of y."""
        if self.mean is None:
            return Scores({})
        return Scores({"r2": 100 * (1 - self.square / self.varying), "mae": self.distance / self.count})
