"""Learned rounding of weights between their two neighbours on the grid; activations quantized at random."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zsq.quantizers.grids import SMALLEST_STEP, FakeQuantizer, Quantizer, Role, clip

# The rectified sigmoid's ends (Louizos et al. 2018, as in AdaRound section 3.1).
ZETA, GAMMA = 1.1, -0.1

# Random bytes decide what is dropped: probabilities are multiples of 1/256.
NOISE_LEVELS = 256


def soft_bits(variables: Tensor) -> Tensor:
    """h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1): 0 rounds down, 1 up; same shape."""
    return clip(torch.sigmoid(variables) * (ZETA - GAMMA) + GAMMA, 0, 1)


def variables_of(bits: Tensor) -> Tensor:
    """V with h(V) = `bits` for values in 0..1."""
    return -torch.log((ZETA - GAMMA) / (bits - GAMMA) - 1)


def rounding_penalty(variables: Tensor, beta: Tensor) -> Tensor:
    """Sum over weights of 1 - |2 h(V) - 1|^beta (AdaRound, Nagel et al. 2020, equation 24): 0 once all are
    decided."""
    return (1 - (2 * soft_bits(variables) - 1).abs().pow(beta)).sum()


class SoftRounding(Quantizer):
    """A weight with learned rounding: s (clip(B + h(V) + z, lo, hi) - z), with B = floor(W / s).

    B is computed once, with the first step, and stays when the step is learned (GENIE, Jeon et al. 2023): the
    gradient of s is B + h(V) inside the grid and -z or hi - z outside, that of h is s inside and 0 outside.
    """

    kind = "weight"
    base: Tensor
    zero_point: Tensor
    mask: Tensor | None

    def __init__(
        self, weight: Tensor, step: Tensor, zero_point: Tensor, lo: int, hi: int, mask: Tensor | None = None
    ) -> None:
        """Start at the weight itself; `step` and `zero_point` broadcast against it. Where `mask` is false the
        weight is zero and stays so."""
        super().__init__()
        step = step.detach().clone().clamp(min=SMALLEST_STEP)
        scaled = weight.detach() / step
        base = scaled.floor()
        self.variables = nn.Parameter(variables_of(scaled - base))
        self.step = nn.Parameter(step)
        self.register_buffer("base", base)
        self.register_buffer("zero_point", zero_point.detach().clone())
        self.register_buffer("mask", mask)
        self.lo, self.hi = lo, hi

    def forward(self, weight: Tensor) -> Tensor:
        """The softly rounded weight, float32; the float `weight` is in B and V."""
        return self._on_grid(self.base + soft_bits(self.variables))

    def roles(self) -> dict[Role, Tensor]:
        """V and the step."""
        return {"rounding": self.variables, "weight step": self.step}

    def _on_grid(self, integers: Tensor) -> Tensor:
        if self.mask is not None:
            integers = integers * self.mask
        return self.step * clip(integers, self.lo - self.zero_point, self.hi - self.zero_point)

    @torch.no_grad()
    def hardened(self) -> tuple[Tensor, FakeQuantizer]:
        """The weight rounded up where V >= 0, and the grid on which it lies."""
        weight = self._on_grid(self.base + (self.variables >= 0))
        return weight, FakeQuantizer(self.step, self.zero_point, self.lo, self.hi, "weight")

    def extra_repr(self) -> str:
        """Shown by print(network)."""
        return f"{self.lo}..{self.hi}, {self.step.numel()} steps"


class Dropped(nn.Module):
    """Quantizes each element with probability `keep` and passes it on in float else (QDrop, Wei et al. 2022).

    `noise` is one random byte per element of the tensor to come, set anew for each step.
    """

    noise: Tensor

    def __init__(self, quantizer: nn.Module, keep: float, shape: tuple[int, ...]) -> None:
        """`keep` is what the public code calls drop_prob; `shape` is one image's tensor."""
        super().__init__()
        self.quantizer, self.keep, self.shape = quantizer, keep, shape
        self.register_buffer("noise", torch.zeros((), dtype=torch.uint8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x`, partly on the grid."""
        return mixed(self.quantizer(x), x, self.noise, self.keep)

    def extra_repr(self) -> str:
        """Shown by print(network)."""
        return f"keep {self.keep} of {self.shape}"


def mixed(quantized: Tensor, full: Tensor, noise: Tensor, keep: float) -> Tensor:
    """Elements of `quantized` with probability `keep`, of `full` else; `noise` as from `random_bytes`."""
    # 0 or 1, between which `lerp` is exact; on a CPU, `where` takes 20 times as long.
    share = noise.to(quantized.dtype).lt_(round(keep * NOISE_LEVELS))
    return torch.lerp(full.to(quantized.dtype), quantized, share)


def random_bytes(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """uint8, uniform over 0..255, drawn on the CPU; 4-D ones are channels_last."""
    numel = 1
    for extent in shape:
        numel *= extent
    words = torch.empty((numel + 7) // 8, dtype=torch.int64)
    # From the least int64 to the end of its range: all 64 bits are random.
    flat = words.random_(torch.iinfo(torch.int64).min, None, generator=generator).view(torch.uint8)[:numel]
    if len(shape) != 4:
        return flat.view(shape)
    num, channels, height, width = shape
    return flat.view(num, height, width, channels).permute(0, 3, 1, 2)
