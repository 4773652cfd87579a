"""What a unit's reconstruction minimises: a weighted sum of losses over one minibatch, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from zsq.quantizers.rounding import rounding_penalty


@dataclass(frozen=True)
class UnitBatch:
    """One minibatch of a unit.

    Attributes:
        output, target: the quantized unit's values and the float network's, float32, same shape.
        importance: weight of each squared error, None for 1.
        variables: V of each weight whose rounding is learned.
        beta, strength: exponent of the rounding penalty and 0 or 1, scalars.
        channels: number of channels of the output, over which errors are summed.
        prediction, reference: the network's output behind the unit, as this batch's student has it and as
            the teacher has it; None where the phase does not look beyond the unit.
    """

    output: Tensor
    target: Tensor
    importance: Tensor | None
    variables: tuple[Tensor, ...]
    beta: Tensor
    strength: Tensor
    channels: int
    prediction: Tensor | None = None
    reference: Tensor | None = None


@dataclass(frozen=True)
class UnitLoss:
    """`weight` times `value`, a scalar."""

    name: str
    weight: float
    value: Callable[[UnitBatch], Tensor]


def unit_error(exponent: float = 2.0) -> UnitLoss:
    """|output - target|^p, summed over channels, mean over images and positions."""

    def value(batch: UnitBatch) -> Tensor:
        difference = batch.output - batch.target
        powered = difference.square() if exponent == 2 else difference.abs().pow(exponent)
        if batch.importance is not None:
            powered = powered * batch.importance
        return powered.sum() * (batch.channels / powered.numel())

    return UnitLoss("error", 1.0, value)


def rounding_loss(weight: float) -> UnitLoss:
    """The rounding penalty of all weights of the unit: a plain sum, so `weight` goes with `unit_error`."""

    def value(batch: UnitBatch) -> Tensor:
        penalty = sum((rounding_penalty(v, batch.beta) for v in batch.variables), batch.strength * 0)
        return penalty * batch.strength

    return UnitLoss("rounding", weight, value)


def prediction_loss(weight: float, loss: Callable[[Tensor, Tensor], Tensor]) -> UnitLoss:
    """`loss` of the network's output behind the unit, against the teacher's."""

    def value(batch: UnitBatch) -> Tensor:
        assert batch.prediction is not None and batch.reference is not None
        return loss(batch.prediction, batch.reference)

    return UnitLoss("prediction", weight, value)
