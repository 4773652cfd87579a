"""Uniform grids and the differentiable fake-quantization onto them.

A grid is the integers lo..hi, a step s > 0 and an integer zero point z: q = clip(round(x / s) + z, lo, hi),
and the value that comes out is s (q - z). Rounding is to nearest, ties to even. Suffix C: output channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from zsq.contract import Form
from zsq.widths import Kind

# Only to divide by: far below real scales, for activations of an untrained MobileNet are already at 1e-9.
SMALLEST_STEP = 1e-30

# What a parameter of a quantizer is for, such as "rounding" or "weight step".
Role = str


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """(lo, hi): -2^(b-1)..2^(b-1)-1 when signed, else 0..2^b-1."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.ends = low, high
        return torch.clamp(x, low, high)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return grad * x.clamp(*ctx.ends).eq_(x), None, None


def clip(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """`x` cut to [low, high], both numbers or both tensors.

    The gradient of `x` is 1 inside and at both ends, 0 outside; the ends get none. It is written out because
    `torch.clamp` passes none at its ends since torch 2.15, and did before: half of a tensor behind a ReLU is
    at one.
    """
    return _Clip.apply(x, low, high)


def affine_grid(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Step and zero point of the unsigned `bits`-bit grid over [low, high], stretched to hold 0.

    Zero lies on the grid, so zero padding and ReLU's zeros stay exact; where low >= 0 the zero point is 0.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    levels = 2**bits - 1
    step = ((high - low) / levels).clamp(min=SMALLEST_STEP)
    return step, (-low / step).round().clamp(0, levels)


class _FakeQuantize(torch.autograd.Function):
    """Forward on the grid; backward STE-clip for x and the closed form of LSQ (Esser et al. 2020) for s."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, zero_point: Tensor, lo: int, hi: int, scale: float
    ) -> Tensor:
        scaled = x / step
        quotient = scaled.round().clamp_(lo - zero_point, hi - zero_point)
        ctx.save_for_backward(scaled, quotient, step, zero_point)
        ctx.bounds, ctx.scale = (lo, hi), scale
        return quotient * step

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled, quotient, step, zero_point = ctx.saved_tensors
        lo, hi = ctx.bounds
        # As floats in place: on a CPU, booleans take 20 times as long.
        grad_x = grad * scaled.clamp(lo - zero_point, hi - zero_point).eq_(scaled)
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None, None, None, None
        # round(v) - v inside and the clipped integer outside, as grad . quotient - grad_x . v
        grad_step = (grad * quotient).sub_(grad_x * scaled).sum_to_size(step.shape)
        return grad_x, grad_step * ctx.scale, None, None, None, None


def fake_quantize(
    x: Tensor, step: Tensor, zero_point: Tensor, lo: int, hi: int, gradient_scale: float = 1.0
) -> Tensor:
    """`x` on the grid, float32, same shape; `step` and `zero_point` broadcast against it.

    Gradients: of x, 1 inside the range and 0 outside; of the step, round(v) - v inside and lo - z or hi - z
    outside with v = x / s, summed to the step's shape and times `gradient_scale`.
    """
    return _FakeQuantize.apply(x.float(), step, zero_point, lo, hi, gradient_scale)


@torch.no_grad()
def keep_positive(steps: Iterable[Tensor]) -> None:
    """Turn steps around that fell below zero: they would stay there, for the gradient ends at the guard."""
    for step in steps:
        step.abs_()


class Quantizer(nn.Module):
    """What stands at a site of a student and counts as a row of its table.

    A class that a file can hold states its `form`, has `integers`, `values` and `restored`, and is decorated
    with `stored`. It needs no line outside its own file in `zsq/quantizers`. What a file keeps of it, beside
    its bits and bounds, is its state dict, all float32.
    """

    kind: Kind
    form: ClassVar[Form]
    # What QuantizeLinear of ONNX has no form for; None where it has one.
    no_onnx_form: ClassVar[str | None] = "a range that moves"
    # Whether a weight can be exactly zero, as a pruned one is.
    holds_zero: ClassVar[bool] = True

    @property
    def num_scales(self) -> int:
        """Scales of the tensor: 1 for per-tensor."""
        raise NotImplementedError

    @property
    def signed(self) -> bool:
        """Whether it gives values below zero."""
        raise NotImplementedError

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the largest integer of the grid."""
        raise NotImplementedError

    def roles(self) -> dict[Role, Tensor]:
        """The parameters that a reconstruction may train."""
        return {}

    def as_affine(self) -> FakeQuantizer:
        """The same grid as s (q - z), of a class without a `no_onnx_form`."""
        raise NotImplementedError

    def integers(self, weight: Tensor) -> Tensor:
        """Integers of the grid on which the quantizer puts `weight`, float32, same shape."""
        raise NotImplementedError

    def values(self, integers: Tensor) -> Tensor:
        """float32 weights that the quantizer puts on these integers, which are float32 too."""
        raise NotImplementedError

    @classmethod
    def restored(cls, kind: Kind, bits: int, bounds: tuple[int, int], tensors: Mapping[str, Tensor]) -> Self:
        """The quantizer of these numbers and of the tensors of its state, by name.

        Raises:
            ValueError: they make none. KeyError: a tensor is missing.
        """
        raise NotImplementedError


Kept = TypeVar("Kept", bound=type[Quantizer])
# Form and kind -> the class that files hold so; all of them once `zsq.saved.stored_grids` is imported.
STORED: dict[tuple[Form, Kind], type[Quantizer]] = {}


def stored(*kinds: Kind) -> Callable[[Kept], Kept]:
    """Let files hold a class as its `form`, for weights or activations or both."""

    def kept(cls: Kept) -> Kept:
        for kind in kinds:
            taken = STORED.setdefault((cls.form, kind), cls)
            assert taken is cls, f"{taken.__name__} is the {cls.form} grid of a {kind} already"
        return cls

    return kept


def holds_zero(form: Form) -> bool:
    """Whether weights on grids of this form can be zero."""
    cls = STORED.get((form, "weight"))
    return cls is None or cls.holds_zero


@stored("weight", "activation")
class FakeQuantizer(Quantizer):
    """One tensor's grid as a module: a buffer per step and zero point, or a parameter per learned step."""

    form = "affine"
    no_onnx_form = None
    step: Tensor
    zero_point: Tensor

    def __init__(
        self, step: Tensor, zero_point: Tensor, lo: int, hi: int, kind: Kind, learned: bool = False
    ) -> None:
        """Keep the grid; `step` broadcasts against the tensors to come (a scalar for per-tensor)."""
        super().__init__()
        step = step.detach().clone().clamp(min=SMALLEST_STEP)
        if learned:
            self.step = nn.Parameter(step)
        else:
            self.register_buffer("step", step)
        self.register_buffer("zero_point", zero_point.detach().clone())
        self.lo, self.hi, self.kind = lo, hi, kind

    def forward(self, x: Tensor) -> Tensor:
        """`x` on the grid, float32 whatever autocast says."""
        return fake_quantize(
            x, self._positive_step, self.zero_point, self.lo, self.hi, self.gradient_scale(x)
        )

    @property
    def _positive_step(self) -> Tensor:
        return self.step.clamp(min=SMALLEST_STEP)

    @property
    def num_scales(self) -> int:
        """One per step."""
        return self.step.numel()

    @property
    def signed(self) -> bool:
        """Whether the grid has values below zero."""
        return self.lo < 0 or bool((self.zero_point > 0).any())

    @property
    def bounds(self) -> tuple[int, int]:
        """lo and hi."""
        return self.lo, self.hi

    def roles(self) -> dict[Role, Tensor]:
        """The step, learned or not."""
        return {"weight step" if self.kind == "weight" else "activation step": self.step}

    def as_affine(self) -> FakeQuantizer:
        """Itself."""
        return self

    def integers(self, weight: Tensor) -> Tensor:
        """q of s (q - z)."""
        return (self(weight) / self._positive_step).round() + self.zero_point

    def values(self, integers: Tensor) -> Tensor:
        """s (q - z)."""
        return (integers - self.zero_point) * self._positive_step

    @classmethod
    def restored(cls, kind: Kind, bits: int, bounds: tuple[int, int], tensors: Mapping[str, Tensor]) -> Self:
        """See `Quantizer.restored`."""
        step, zero_point, (lo, hi) = tensors["step"], tensors["zero_point"], bounds
        if zero_point.shape != step.shape:
            raise ValueError(f"{step.numel()} steps and {zero_point.numel()} zero points")
        if not bool((step > 0).all()):
            raise ValueError("a step that is not positive")
        whole = torch.equal(zero_point, zero_point.round())
        if not whole or int(zero_point.min()) < lo or int(zero_point.max()) > hi:
            raise ValueError(f"a zero point off the levels {lo}..{hi}")
        return cls(step, zero_point, lo, hi, kind)

    def as_learned(self, learned: bool) -> FakeQuantizer:
        """A copy whose step is a parameter, or is none."""
        return FakeQuantizer(self.step, self.zero_point, self.lo, self.hi, self.kind, learned)

    def gradient_scale(self, x: Tensor) -> float:
        """LSQ's 1 / sqrt(N Qp): N weights of the layer, or N features of one image."""
        images = x.shape[0] if self.kind == "activation" else 1
        return (x.numel() / images * self.hi) ** -0.5

    def extra_repr(self) -> str:
        """Shown by print(network)."""
        return f"{self.kind}, {self.lo}..{self.hi}, {self.step.numel()} steps"
