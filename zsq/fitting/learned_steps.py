"""Grids whose step is learned (LSQ, Esser et al. 2020): where they start, and at which rate they learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from zsq.fitting.training import Course
from zsq.placement.sites import Placement
from zsq.quantizers.grids import FakeQuantizer, integer_range, keep_positive
from zsq.quantizers.observers import Histogram
from zsq.quantizers.ranges import lp_symmetric
from zsq.widths import Kind

# Of the least error, or 2 mean|x| / sqrt(Qp).
StepStart = Literal["mse", "mean"]


def learned_weight(
    weight: Tensor, bits: int, per_channel: bool = True, start: StepStart = "mse"
) -> FakeQuantizer:
    """Symmetric, a step per output channel or for all."""
    weight = weight.detach()
    rows_CM = weight.flatten(1) if per_channel else weight.flatten()[None]
    grid = integer_range(bits, signed=True)
    # Searched on the levels that have a counterpart below zero: at 2 bits the least error over -2..1
    # clips a sixth of the weights, which then get no gradient.
    step = _first_step(rows_CM, (-grid[1], grid[1]), start)
    return _learned(step.view(-1, *[1] * (weight.dim() - 1)), grid, "weight")


def learned_activation(histogram: Histogram, bits: int, start: StepStart = "mse") -> FakeQuantizer:
    """Symmetric per tensor, unsigned where none is below zero."""
    values, counts = histogram.occupied()
    grid = integer_range(bits, signed=histogram.low < 0)
    return _learned(_first_step(values[None], grid, start, counts).squeeze(0), grid, "activation")


def _first_step(
    values_CM: Tensor, grid: tuple[int, int], start: StepStart, counts_M: Tensor | None = None
) -> Tensor:
    if start == "mse":
        return lp_symmetric(values_CM, *grid, counts_M)
    counts = torch.ones_like(values_CM[0]) if counts_M is None else counts_M
    return 2 * (values_CM.abs() * counts).sum(dim=1) / counts.sum() / grid[1] ** 0.5


def _learned(step: Tensor, grid: tuple[int, int], kind: Kind) -> FakeQuantizer:
    return FakeQuantizer(step, torch.zeros_like(step), *grid, kind, learned=True)


def with_learned_steps(
    course: Course, placement: Placement, rate: float, optimizer: str, more: Sequence[Tensor] = ()
) -> Course:
    """`course` in which the steps of all grids, and `more` scales, stay positive, and with Adam learn at
    `rate` times their own size, which its updates have. SGD has one rate for all, since its updates have the
    size of the gradient."""
    grids = (part for part in course.network.modules() if isinstance(part, FakeQuantizer))
    steps = [*(grid.step for grid in grids), *more]
    # Which tensors have values below zero differs between sets of images.
    structure = (course.structure, placement.table())
    course = replace(course, structure=structure, after_step=partial(keep_positive, steps))
    if optimizer == "sgd":
        return course
    others = [p for p in course.network.parameters() if all(p is not step for step in steps)]
    rates = ({"params": [step], "lr": rate * step.mean().item()} for step in steps)
    return replace(course, groups=[{"params": others}, *rates])
