"""Basis grids (LQ-Nets, Zhang et al. 2018): the levels are the sums of a basis of b values, each with a code.

Codes are -1 and 1, or 0 and 1 for a tensor without values below zero. Thresholds are the middles between the
sorted levels; a value on a threshold takes the lower level. L = 2^b levels, C output channels or 1, M values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from zsq.quantizers.grids import SMALLEST_STEP, Quantizer, stored
from zsq.quantizers.ranges import NUM_RATIOS
from zsq.widths import Kind

# Of the normal equations, in parts of the mean count of a level: a code that never fires has none.
RIDGE = 1e-4
ALTERNATIONS = 10


def codes(bits: int, lowest: int) -> Tensor:
    """(L, b) float32: every combination of `lowest` (-1 or 0) and 1, the first bit the fastest."""
    places = torch.arange(2**bits)[:, None] >> torch.arange(bits)
    return torch.where((places & 1).bool(), 1.0, float(lowest))


def sorted_levels(basis_bC: Tensor, lowest: int) -> tuple[Tensor, Tensor]:
    """Levels (C, L) in ascending order, and the codes (C, L, b) that make them."""
    code = codes(len(basis_bC), lowest).to(basis_bC.device)
    levels, order = (code @ basis_bC.float()).T.sort(dim=1)
    return levels, code[order]


def level_index(x_CM: Tensor, levels_CL: Tensor) -> Tensor:
    """int64 (C, M): the number of the level that each value takes."""
    thresholds = (levels_CL[:, 1:] + levels_CL[:, :-1]) / 2
    return torch.searchsorted(thresholds.contiguous(), x_CM.contiguous())


@torch.library.custom_op("zsq::level_sums", mutates_args=())
def level_sums(index_K: Tensor, values_K: Tensor | None, length: int) -> Tensor:
    """float64 (length,): the sum of the values, or their number, at each index. Its own operator, since
    torch.compile would leave the whole network uncompiled because of bincount."""
    if index_K.is_cuda:
        return added(index_K, values_K, length)
    return torch.bincount(index_K, values_K, length).double()


def added(index_K: Tensor, values_K: Tensor | None, length: int) -> Tensor:
    """As `level_sums`, for a GPU: bincount waits there for its largest index, which no CUDA graph may, and
    adds in no fixed order."""
    values = torch.ones_like(index_K) if values_K is None else values_K
    return values.new_zeros(length, dtype=torch.float64).index_add_(0, index_K, values.double())


@level_sums.register_fake
def _(index_K: Tensor, values_K: Tensor | None, length: int) -> Tensor:
    return index_K.new_empty(length, dtype=torch.float64)


def fitted_basis(
    x_CM: Tensor, index_CM: Tensor, code_CLb: Tensor, basis_bC: Tensor, counts_M: Tensor | None, ridge: float
) -> Tensor:
    """The basis (b, C) of the least squared error for these codes, held by `ridge` where they do not say it.

    (B^T B + eps I) v = B^T x + eps v_before, from the count and the sum of the values on each level:
    B^T B = C^T diag(m) C and B^T x = C^T S; eps is `ridge` times the mean count.
    """
    num_channels, num_levels, _ = code_CLb.shape
    index = (index_CM + num_levels * torch.arange(num_channels, device=x_CM.device)[:, None]).flatten()
    weights = None if counts_M is None else counts_M.expand_as(x_CM).flatten().double()
    values = (x_CM if counts_M is None else x_CM * counts_M).flatten().double()
    m, s = (
        level_sums(index, each, num_channels * num_levels).view(num_channels, num_levels)
        for each in (weights, values)
    )
    code, before = code_CLb.double(), basis_bC.T.double()
    eps = ridge * m.mean(dim=1)
    matrix = code.transpose(1, 2) @ (m[:, :, None] * code) + torch.diag_embed(eps[:, None].expand_as(before))
    right = (code.transpose(1, 2) @ s[:, :, None]).squeeze(2) + eps[:, None] * before
    return torch.linalg.solve(matrix, right).T.float()


def squared_error(x_CM: Tensor, basis_bC: Tensor, lowest: int, counts_M: Tensor | None = None) -> Tensor:
    """(C,): of the values on their levels."""
    levels, _ = sorted_levels(basis_bC, lowest)
    error = (levels.gather(1, level_index(x_CM, levels)) - x_CM).square()
    return (error if counts_M is None else error * counts_M).sum(dim=1)


def searched_basis(x_CM: Tensor, bits: int, lowest: int, counts_M: Tensor | None = None) -> Tensor:
    """Basis (b, C): the evenly spaced levels of the least squared error over `NUM_RATIOS` widths, then codes
    and basis in turn until nothing changes, `ALTERNATIONS` times at most."""
    # Levels of -1 and 1 are half steps apart from zero; those of 0 and 1 whole steps.
    unit = 2.0 ** (torch.arange(bits, device=x_CM.device) + (lowest < 0) * -1)
    top = unit.sum()
    widest = (x_CM.abs().amax(dim=1) / top).clamp(min=SMALLEST_STEP)
    best, step = torch.full_like(widest, torch.inf), widest
    for ratio in torch.arange(1, NUM_RATIOS + 1) / NUM_RATIOS:
        error = squared_error(x_CM, unit[:, None] * (widest * ratio), lowest, counts_M)
        better = error < best
        best, step = torch.where(better, error, best), torch.where(better, widest * ratio, step)
    basis = unit[:, None] * step
    for _ in range(ALTERNATIONS):
        levels, code = sorted_levels(basis, lowest)
        found = fitted_basis(x_CM, level_index(x_CM, levels), code, basis, counts_M, RIDGE)
        worse = squared_error(x_CM, found, lowest, counts_M) > squared_error(x_CM, basis, lowest, counts_M)
        found = torch.where(worse, basis, found)
        if torch.equal(found, basis):
            break
        basis = found
    return basis


class BasisQuantizer(Quantizer):
    """A tensor on the levels of its basis: (b, C) per output channel of a weight, (b, 1) for all values."""

    no_onnx_form = "levels at uneven distances"
    lowest: int
    basis: Tensor

    def __init__(self, basis_bC: Tensor, kind: Kind) -> None:
        super().__init__()
        self.kind, self.bits = kind, len(basis_bC)
        self.register_buffer("basis", basis_bC.detach().clone().float())

    @classmethod
    def restored(cls, kind: Kind, bits: int, bounds: tuple[int, int], tensors: Mapping[str, Tensor]) -> Self:
        """See `Quantizer.restored`."""
        basis = tensors["basis"]
        if bounds != (0, 2**bits - 1) or basis.dim() != 2 or len(basis) != bits or not basis.numel():
            raise ValueError(f"no basis of {bits} values")
        return cls(basis, kind)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same; gradient 1, of an activation 0 beyond the outermost levels."""
        levels, _ = sorted_levels(self.basis, self.lowest)
        return self._passed_through(x, levels)

    def _passed_through(self, x: Tensor, levels_CL: Tensor) -> Tensor:
        rows = self._rows(x.detach().float())
        values = levels_CL.gather(1, level_index(rows, levels_CL)).view(x.shape)
        x = x.float()
        if self.kind == "activation":
            inside = x.detach() <= levels_CL[0, -1]
            if self.lowest < 0:
                inside &= x.detach() >= levels_CL[0, 0]
            return torch.where(inside, x + (values - x).detach(), values)
        return x + (values - x).detach()

    def _rows(self, x: Tensor) -> Tensor:
        return x.reshape(self.basis.shape[1], -1)

    def integers(self, weight: Tensor) -> Tensor:
        """Numbers of the levels in ascending order."""
        levels, _ = sorted_levels(self.basis, self.lowest)
        return level_index(self._rows(weight.detach().float()), levels).view(weight.shape).float()

    def values(self, integers: Tensor) -> Tensor:
        """The levels of these numbers."""
        levels, _ = sorted_levels(self.basis, self.lowest)
        return levels.gather(1, self._rows(integers).long()).view(integers.shape)

    @property
    def num_scales(self) -> int:
        """One per channel."""
        return self.basis.shape[1]

    @property
    def signed(self) -> bool:
        """Whether a level is below zero."""
        return bool((sorted_levels(self.basis, self.lowest)[0] < 0).any())

    @property
    def bounds(self) -> tuple[int, int]:
        """0 and 2^b - 1."""
        return 0, 2**self.bits - 1

    def extra_repr(self) -> str:
        """Shown by print(network)."""
        return f"{self.kind}, {self.bits} bits, {self.num_scales} bases"


@stored("weight", "activation")
class SignedBasis(BasisQuantizer):
    """Codes -1 and 1: levels around zero, none of them zero."""

    form, lowest = "basis", -1
    holds_zero = False


@stored("activation")
class UnsignedBasis(BasisQuantizer):
    """Codes 0 and 1: for what a ReLU gives."""

    form, lowest = "basis-unsigned", 0


class LearnedBasis(BasisQuantizer):
    """A basis that follows its tensor: an exponential mean of the best one for the codes of each batch."""

    def __init__(self, basis_bC: Tensor, kind: Kind, lowest: int, decay: float) -> None:
        """`decay`: of the mean, per batch."""
        super().__init__(basis_bC, kind)
        self.lowest, self.decay = lowest, decay

    def forward(self, x: Tensor) -> Tensor:
        """As with the basis before this batch, which then moves."""
        levels, code = sorted_levels(self.basis, self.lowest)
        rows = self._rows(x.detach().float())
        found = fitted_basis(rows, level_index(rows, levels), code, self.basis, None, RIDGE)
        output = self._passed_through(x, levels)
        self.basis.lerp_(found, 1 - self.decay)
        return output

    def settled(self) -> BasisQuantizer:
        """The grid that it has now."""
        return basis_class(self.lowest)(self.basis, self.kind)


def basis_class(lowest: int) -> type[BasisQuantizer]:
    """The grid of these codes."""
    return SignedBasis if lowest < 0 else UnsignedBasis
