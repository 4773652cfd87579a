"""Weights of one bit: a sign, and a scale per output channel (IR-Net, Qin et al. 2020; XNOR-Net's scale)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from zsq.quantizers.basis import SignedBasis
from zsq.quantizers.grids import Quantizer

# scale: a learned scale, from mean|W|. ir: W centred and divided by its deviation, a power of two as scale.
Rule = Literal["scale", "ir"]


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


class BinaryWeight(Quantizer):
    """A weight as +-scale per output channel while it is trained; `settled` is the grid that it ends on."""

    kind = "weight"
    sharpness: Tensor

    def __init__(self, weight: Tensor, rule: Rule) -> None:
        super().__init__()
        self.rule = rule
        rows = weight.detach().float().flatten(1)
        self.scale = nn.Parameter(rows.abs().mean(dim=1).view(-1, *[1] * (weight.dim() - 1)))
        self.scale.requires_grad_(rule == "scale")
        self.register_buffer("sharpness", torch.tensor(1.0))

    def forward(self, weight: Tensor) -> Tensor:
        """(C, ...) -> the same; the gradient of a scale is that of the output times the sign."""
        weight = weight.float()
        if self.rule == "scale":
            # A dead channel's scale is zero, and so are its weights.
            unit = self.scale.detach().abs().clamp(min=1e-12)
            return self.scale * decayed_sign(weight / unit, self.sharpness)
        standard = _standardised(weight)
        mean = standard.detach().flatten(1).abs().mean(dim=1).clamp(min=1e-12)
        scale = torch.exp2(mean.log2().round()).view(self.scale.shape)
        return scale * decayed_sign(standard, self.sharpness)

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


def _standardised(weight: Tensor) -> Tensor:
    """Each output channel without its mean, divided by its deviation; of one element, the element itself."""
    rows = weight.flatten(1)
    if rows.shape[1] == 1:
        return weight
    centred = rows - rows.mean(dim=1, keepdim=True)
    return (centred / centred.std(dim=1, keepdim=True).clamp(min=1e-12)).view(weight.shape)
