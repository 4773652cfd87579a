"""What a unit's reconstruction minimises: terms over one minibatch, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from zsq.quantizers.rounding import rounding_penalty


@dataclass(frozen=True)
class Forward:
    """One minibatch of a unit.

    Attributes:
        output, target: the quantized unit's values and the float network's, float32, same shape.
        importance: weight of each squared error, None for 1.
        variables: V of each weight whose rounding is learned.
        beta, strength: exponent of the rounding penalty and 0 or 1, scalars.
        channels: number of channels of the output, over which errors are summed.
    """

    output: Tensor
    target: Tensor
    importance: Tensor | None
    variables: tuple[Tensor, ...]
    beta: Tensor
    strength: Tensor
    channels: int


@dataclass(frozen=True)
class Term:
    """`weight` times `value`, a scalar."""

    name: str
    weight: float
    value: Callable[[Forward], Tensor]


def unit_error(exponent: float = 2.0) -> Term:
    """|output - target|^p, summed over channels, mean over images and positions."""

    def value(forward: Forward) -> Tensor:
        difference = forward.output - forward.target
        powered = difference.square() if exponent == 2 else difference.abs().pow(exponent)
        if forward.importance is not None:
            powered = powered * forward.importance
        return powered.sum() * (forward.channels / powered.numel())

    return Term("error", 1.0, value)


def rounding_term(weight: float) -> Term:
    """The rounding penalty of all weights of the unit: a plain sum, so `weight` goes with `unit_error`."""

    def value(forward: Forward) -> Tensor:
        penalty = sum((rounding_penalty(v, forward.beta) for v in forward.variables), forward.strength * 0)
        return penalty * forward.strength

    return Term("rounding", weight, value)
