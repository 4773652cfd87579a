"""Weights of one bit: a sign, and a scale per output channel (IR-Net, Qin et al. 2020; XNOR-Net's scale)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zsq.quantizers.basis import SignedBasis
from zsq.quantizers.grids import Quantizer

# scale: signs of W, a learned scale from mean|W|. balanced: the same of W without each filter's mean, so that
# about as many signs are plus as minus. ir: W without its mean, over its deviation, with a power of two.
Rule = Literal["scale", "balanced", "ir"]


class _Sign(torch.autograd.Function):
    """Sign, 1 at zero; backward IR-Net's error decay estimator: max(1/t, 1) t (1 - tanh^2(t x))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sharpness: Tensor) -> Tensor:
        ctx.save_for_backward(x, sharpness)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, t = ctx.saved_tensors
        return grad * t.clamp(min=1) * (1 - torch.tanh(t * x).square()), None


def decayed_sign(x: Tensor, sharpness: Tensor) -> Tensor:
    """Sign of `x`, 1 at zero, with the gradient of tanh(t x) / min(t, 1) for t = `sharpness`."""
    return _Sign.apply(x, sharpness)


def bounded_sharpness(x: Tensor, sharpness: Tensor, retained: float) -> Tensor:
    """`sharpness`, but so low that a share of at least `retained` of `x` is within 1 / sharpness of zero,
    where the gradient is: otherwise too few weights still change (DIR-Net; the form is ours)."""
    if not retained:
        return sharpness
    rank = max(1, math.ceil(retained * x.numel()))
    nearest = x.abs().flatten().kthvalue(rank).values
    return torch.minimum(sharpness, 1 / nearest.clamp(min=1e-12))


class BinaryWeight(Quantizer):
    """A weight as +-scale per output channel while it is trained; `settled` is the grid that it ends on."""

    kind = "weight"
    sharpness: Tensor

    def __init__(self, weight: Tensor, rule: Rule, retained: float = 0.0) -> None:
        """`retained`: see `bounded_sharpness`."""
        super().__init__()
        self.rule, self.retained = rule, retained
        rows = _centred(weight.detach().float().flatten(1), rule)
        self.scale = nn.Parameter(rows.abs().mean(dim=1).view(-1, *[1] * (weight.dim() - 1)))
        self.scale.requires_grad_(rule != "ir")
        self.register_buffer("sharpness", torch.tensor(1.0))

    def forward(self, weight: Tensor) -> Tensor:
        """(C, ...) -> the same; the gradient of a scale is that of the output times the sign."""
        rows = _centred(weight.float().flatten(1), self.rule)
        if self.rule == "ir":
            rows = _standardised(rows)
            mean = rows.detach().abs().mean(dim=1).clamp(min=1e-12)
            scale = torch.exp2(mean.log2().round()).view(self.scale.shape)
        else:
            # A dead channel's scale is zero, and so are its weights.
            rows = rows / self.scale.detach().abs().clamp(min=1e-12).flatten(1)
            scale = self.scale
        sharpness = bounded_sharpness(rows.detach(), self.sharpness, self.retained)
        return scale * decayed_sign(rows, sharpness).view(weight.shape)

    @torch.no_grad()
    def settled(self, weight: Tensor) -> tuple[Tensor, SignedBasis]:
        """The weight on its two values, and the grid of these."""
        binary = self(weight)
        return binary, SignedBasis(binary.flatten(1).abs().amax(dim=1)[None], "weight")

    @property
    def num_scales(self) -> int:
        """One per output channel."""
        return len(self.scale)

    @property
    def signed(self) -> bool:
        """Always."""
        return True

    @property
    def bounds(self) -> tuple[int, int]:
        """0 and 1."""
        return 0, 1

    def extra_repr(self) -> str:
        """Shown by print(network)."""
        return f"{self.rule}, {self.num_scales} scales"


def _centred(rows_CM: Tensor, rule: Rule) -> Tensor:
    """Each row without its mean where the rule says so; of one element, the element itself."""
    if rule == "scale" or rows_CM.shape[1] == 1:
        return rows_CM
    return rows_CM - rows_CM.mean(dim=1, keepdim=True)


def _standardised(rows_CM: Tensor) -> Tensor:
    """Each row divided by its deviation; of one element, the element itself."""
    if rows_CM.shape[1] == 1:
        return rows_CM
    return rows_CM / rows_CM.std(dim=1, keepdim=True).clamp(min=1e-12)
