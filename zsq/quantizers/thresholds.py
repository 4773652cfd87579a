"""Activations rounded up where they pass a threshold of their own, one between any two levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from zsq.quantizers.grids import SMALLEST_STEP, FakeQuantizer, Quantizer, Role, stored
from zsq.widths import Kind

# A border is where, between a level and the next, rounding up begins: 1/2 is rounding to nearest.
LEAST_BORDER, MOST_BORDER = 0.05, 0.95
# Of the sigmoid that stands for the border in gradients, at the beginning and at the end of a phase.
FIRST_TEMPERATURE, LAST_TEMPERATURE = 0.5, 0.02


def temperature_at(progress: float) -> float:
    """The sigmoid's temperature at `progress` in 0..1: it falls by equal factors."""
    return FIRST_TEMPERATURE * (LAST_TEMPERATURE / FIRST_TEMPERATURE) ** progress


class _OneStep(Quantizer):
    """Activations on a grid of one step and one zero point, whatever decides between its levels."""

    kind = "activation"
    zero_point: Tensor

    @property
    def num_scales(self) -> int:
        """One step."""
        return 1

    @property
    def signed(self) -> bool:
        """Whether the grid has values below zero."""
        return bool(self.zero_point > 0)


@stored("activation")
class Thresholds(_OneStep):
    """s (q - z), where q counts the thresholds of x's channel that are below x / s + z; 0..2^b-1.

    `thresholds` is (C, 2^b-1), rising, in units of the step; C may be 1 for all channels. A value at a
    threshold is rounded down.
    """

    form = "thresholds"
    no_onnx_form = "thresholds between levels"
    step: Tensor
    thresholds: Tensor
    axis: Tensor

    def __init__(self, step: Tensor, zero_point: Tensor, thresholds: Tensor, axis: Tensor) -> None:
        """`axis`, a scalar, is that of the channels: 1 or -1."""
        super().__init__()
        self.register_buffer("step", step.detach().clone().clamp(min=SMALLEST_STEP))
        self.register_buffer("zero_point", zero_point.detach().clone())
        self.register_buffer("thresholds", thresholds.detach().clone())
        self.register_buffer("axis", axis.detach().clone())
        self._axis = int(axis)

    def forward(self, x: Tensor) -> Tensor:
        """`x` on the grid, float32."""
        scaled = (x.float() / self.step + self.zero_point).movedim(self._axis, 0)
        rows = scaled.reshape(len(self.thresholds), -1).contiguous()
        integers = torch.searchsorted(self.thresholds, rows).view(scaled.shape).movedim(0, self._axis)
        return (integers - self.zero_point) * self.step

    @property
    def bounds(self) -> tuple[int, int]:
        """0 and the number of thresholds."""
        return 0, self.thresholds.shape[1]

    @classmethod
    def restored(cls, kind: Kind, bits: int, bounds: tuple[int, int], tensors: Mapping[str, Tensor]) -> Self:
        """See `Quantizer.restored`."""
        names = ("step", "zero_point", "thresholds", "axis")
        step, zero_point, thresholds, axis = (tensors[name] for name in names)
        if step.dim() or zero_point.dim() or axis.dim() or thresholds.dim() != 2 or not len(thresholds):
            raise ValueError("not one step, one zero point and thresholds per channel")
        if not bool(step > 0) or float(axis) not in (1.0, -1.0):
            raise ValueError("a step that is not positive, or no axis of channels")
        if bounds != (0, thresholds.shape[1]) or bounds[1] != 2**bits - 1:
            raise ValueError(f"{thresholds.shape[1]} thresholds of {bits} bits")
        if float(zero_point) != round(float(zero_point)) or not 0 <= float(zero_point) <= bounds[1]:
            raise ValueError("a zero point off the levels")
        if not bool((thresholds.diff(dim=1) > 0).all()):
            raise ValueError("thresholds that do not rise")
        return cls(step, zero_point, thresholds, axis)

    def extra_repr(self) -> str:
        """Shown by print(network)."""
        return f"{tuple(self.thresholds.shape)} thresholds"


class _OnBorders(torch.autograd.Function):
    """See `LearnedBorders`: `border` is that of each element, `below` the level under it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        border: Tensor,
        below: Tensor,
        zero_point: Tensor,
        temperature: Tensor,
        hi: int,
        scale: float,
    ) -> Tensor:
        scaled = x / step
        level = scaled + zero_point
        quotient = below + (level > below + border).to(x.dtype) - zero_point
        inside = (level >= 0) & (level <= hi)
        ctx.save_for_backward(scaled, quotient, inside, level - below - border, step, temperature)
        ctx.scale = scale
        return quotient * step

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled, quotient, inside, beyond, step, temperature = ctx.saved_tensors
        grad_x = grad * inside
        grad_step = (grad * quotient - grad_x * scaled).sum_to_size(step.shape) * ctx.scale
        up = torch.sigmoid(beyond / temperature)
        grad_border = -grad_x * step * up * (1 - up) / temperature
        return grad_x, grad_step, grad_border, None, None, None, None, None


class LearnedBorders(_OneStep):
    """A grid whose border between n and n + 1 is 1/2 + a + k (n - z + 1/2), with a and k per channel.

    For one product of a value and a weight w that became w', k = w' / w - 1 rounds the product best.
    Gradients: of x and of the step as LSQ; of the border, inside the range, as if rounding up were
    sigmoid((f - border) / temperature), f what x / s + z is above n.
    """

    temperature: Tensor

    def __init__(self, grid: FakeQuantizer, slope_C: Tensor, axis: int) -> None:
        """`slope_C` is the first k; a is 0."""
        super().__init__()
        self.step = nn.Parameter(grid.step.detach().clone())
        self.border = nn.Parameter(torch.stack([torch.zeros_like(slope_C), slope_C]))
        self.register_buffer("zero_point", grid.zero_point.detach().clone())
        self.register_buffer("temperature", torch.tensor(FIRST_TEMPERATURE), persistent=False)
        self.hi, self.axis = grid.hi, axis

    def forward(self, x: Tensor) -> Tensor:
        """`x` on the grid, float32."""
        x, step = x.float(), self.step.clamp(min=SMALLEST_STEP)
        below = (x.detach() / step.detach() + self.zero_point).floor().clamp(0, self.hi - 1)
        shape = [1] * x.dim()
        shape[self.axis] = -1
        shift, slope = (part.view(shape) for part in self.border)
        border = self._border(below, shift, slope)
        scale = (x.numel() / x.shape[0] * self.hi) ** -0.5
        return _OnBorders.apply(x, step, border, below, self.zero_point, self.temperature, self.hi, scale)

    def _border(self, below: Tensor, shift: Tensor, slope: Tensor) -> Tensor:
        border = 0.5 + shift + slope * (below - self.zero_point + 0.5)
        return border.clamp(LEAST_BORDER, MOST_BORDER)

    @property
    def bounds(self) -> tuple[int, int]:
        """0 and the largest level."""
        return 0, self.hi

    def roles(self) -> dict[Role, Tensor]:
        """The step, and a and k in one."""
        return {"activation step": self.step, "border": self.border}

    @torch.no_grad()
    def hardened(self) -> Thresholds:
        """The same, without gradients."""
        below = torch.arange(self.hi, dtype=torch.float32, device=self.step.device)
        shift, slope = self.border[0][:, None], self.border[1][:, None]
        thresholds = below + self._border(below[None], shift, slope)
        axis = torch.tensor(float(self.axis), device=self.step.device)
        return Thresholds(self.step, self.zero_point, thresholds, axis)
