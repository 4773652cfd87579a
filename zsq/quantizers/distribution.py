"""Distribution-aware grids (DAQ, Hong et al., WACV 2022): steps follow the standard deviation of a tensor.

A weight has one step; an activation has one per image and channel, measured in the tensor itself whenever
it passes. Levels are half steps around the mean; behind a ReLU 0, d, 2d, ... for a step d. Gradients pass
unchanged, also where the grid clips (STE-all).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from zsq.quantizers.grids import SMALLEST_STEP, Quantizer, stored
from zsq.widths import FLOAT_BITS, Kind, is_width

# Bits -> the step of the half-step grid of the least squared error for a normal distribution, in standard
# deviations.
STEPS = {1: 1.596, 2: 0.996, 3: 0.586, 4: 0.335, 5: 0.188, 6: 0.104, 7: 0.057, 8: 0.031}
# The least deviation of a channel on its own grid, in parts of the mean one: below, it would be flat.
LEAST_DEVIATION = 0.01


def half_steps(x: Tensor, step: Tensor, bits: int) -> Tensor:
    """`x` on (k + 1/2) `step`, 2^b levels around zero."""
    half = 2 ** (bits - 1) - 0.5
    return ((x / step + 0.5).round() - 0.5).clamp(-half, half) * step


def _with_gradient(values: Tensor, x: Tensor) -> Tensor:
    """`values`, with the gradient of `x`."""
    return values.detach() + (x - x.detach())


class _Distribution(Quantizer):
    no_onnx_form = "steps that follow the tensor"
    bits: int

    @property
    def num_scales(self) -> int:
        """Of a weight one; of an activation none is fixed, which counts as one."""
        return 1

    @property
    def bounds(self) -> tuple[int, int]:
        """0 and 2^b - 1."""
        return 0, 2**self.bits - 1

    def extra_repr(self) -> str:
        """Shown by print(network)."""
        return f"{self.kind}, {self.bits} bits"


def weight_step(weight: Tensor, bits: int) -> Tensor:
    """The step of a weight: its deviation over all channels, from its mean, unbiased, times `STEPS`."""
    deviation = weight.std() if weight.numel() > 1 else weight.abs().sum()
    return (STEPS[bits] * deviation).clamp(min=SMALLEST_STEP)


@stored("weight")
class HalfSteps(_Distribution):
    """A weight on half steps around zero, none of them zero."""

    kind, form = "weight", "distribution"
    holds_zero = False
    signed = True
    step: Tensor

    def __init__(self, step: Tensor, bits: int) -> None:
        """`step` is a scalar."""
        super().__init__()
        self.bits = bits
        self.register_buffer("step", step.detach().clone().float())

    @classmethod
    def restored(cls, kind: Kind, bits: int, bounds: tuple[int, int], tensors: Mapping[str, Tensor]) -> Self:
        """See `Quantizer.restored`."""
        step = tensors["step"]
        if bounds != (0, 2**bits - 1) or step.dim() or not bool(step > 0):
            raise ValueError(f"no half steps of {bits} bits")
        return cls(step, bits)

    def forward(self, weight: Tensor) -> Tensor:
        """Any shape -> the same."""
        weight = weight.float()
        return _with_gradient(half_steps(weight.detach(), self.step, self.bits), weight)

    def integers(self, weight: Tensor) -> Tensor:
        """Numbers of the levels in ascending order."""
        return (half_steps(weight.detach().float(), self.step, self.bits) / self.step).floor() + (
            2 ** (self.bits - 1)
        )

    def values(self, integers: Tensor) -> Tensor:
        """The levels of these numbers."""
        return (integers - 2 ** (self.bits - 1) + 0.5) * self.step


class CurrentHalfSteps(_Distribution):
    """A weight on half steps of the deviation that it has now."""

    kind = "weight"
    signed = True

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        """Any shape -> the same."""
        weight = weight.float()
        step = weight_step(weight.detach(), self.bits)
        return _with_gradient(half_steps(weight.detach(), step, self.bits), weight)

    def settled(self, weight: Tensor) -> HalfSteps:
        """The grid of this weight."""
        return HalfSteps(weight_step(weight.detach().float(), self.bits), self.bits)


class _PerImage(_Distribution):
    """An activation (N, ...) with a mean and a deviation of each image and channel. A tensor with one value
    per channel has one of each image."""

    kind = "activation"
    axis: Tensor
    scale_bits: Tensor

    def __init__(self, bits: int, axis: int, scale_bits: int) -> None:
        """`axis` is that of the channels, 1 or -1; `scale_bits` those of the deviations, 32 for float."""
        super().__init__()
        self.bits, self._axis, self._scale_bits = bits, axis, scale_bits
        self.register_buffer("axis", torch.tensor(float(axis)))
        self.register_buffer("scale_bits", torch.tensor(float(scale_bits)))

    @classmethod
    def restored(cls, kind: Kind, bits: int, bounds: tuple[int, int], tensors: Mapping[str, Tensor]) -> Self:
        """See `Quantizer.restored`."""
        axis, scale_bits = tensors["axis"], tensors["scale_bits"]
        if axis.dim() or scale_bits.dim() or float(axis) not in (1.0, -1.0):
            raise ValueError("no axis of channels")
        if bounds != (0, 2**bits - 1) or float(scale_bits) % 1 or not is_width(int(scale_bits)):
            raise ValueError(f"no steps by distribution of {bits} bits")
        return cls(bits, int(axis), int(scale_bits))

    def _measured(self, x: Tensor) -> tuple[int, ...]:
        """The axes over which an image's channel lies."""
        others = [each for each in range(1, x.dim()) if each != self._axis % x.dim()]
        alone = all(x.shape[each] == 1 for each in others)
        return tuple(range(1, x.dim()) if alone else others)

    def _step(self, deviation: Tensor) -> Tensor:
        """Steps of each image and channel. Their deviations are on a grid by distribution themselves, over
        the channels of an image."""
        channels = deviation[0].numel()
        if self._scale_bits != FLOAT_BITS and channels > 1:
            rows = deviation.flatten(1)
            mean, spread = rows.mean(1, keepdim=True), rows.std(1, keepdim=True)
            step = (STEPS[self._scale_bits] * spread).clamp(min=SMALLEST_STEP)
            rows = mean + half_steps(rows - mean, step, self._scale_bits)
            deviation = torch.maximum(rows, LEAST_DEVIATION * mean).view(deviation.shape)
        return (STEPS[self.bits] * deviation).clamp(min=SMALLEST_STEP)


@stored("activation")
class AroundMean(_PerImage):
    """Half steps around the mean."""

    form = "distribution"
    signed = True

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> the same."""
        x = x.float()
        value = x.detach()
        axes = self._measured(value)
        mean = value.mean(axes, keepdim=True)
        count = value[0].numel() // mean[0].numel()
        deviation = value.std(axes, keepdim=True, correction=min(1, count - 1))
        return _with_gradient(mean + half_steps(value - mean, self._step(deviation), self.bits), x)


@stored("activation")
class FromZero(_PerImage):
    """Levels 0, d, 2d, ... of the deviation of the values above zero: for what a ReLU gives."""

    form = "distribution-unsigned"
    signed = False

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> the same."""
        x = x.float()
        value = x.detach()
        axes = self._measured(value)
        # The public code counts one more.
        count = (value > 0).sum(axes, keepdim=True) + 1
        above = value.clamp(min=0)
        mean = above.sum(axes, keepdim=True) / count
        variance = above.square().sum(axes, keepdim=True) / count - mean.square()
        step = self._step(variance.clamp(min=0).sqrt())
        return _with_gradient((value / step).round().clamp(*map(float, self.bounds)) * step, x)


def activation_grid(bits: int, axis: int, scale_bits: int, rectified: bool) -> Any:
    """The grid of an activation; `rectified`: a ReLU gave it."""
    return (FromZero if rectified else AroundMean)(bits, axis, scale_bits)
