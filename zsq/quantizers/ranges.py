"""From values to a range: min-max, percentile, Lp search and KL. Pure functions.

Suffixes: C channels (1 for per-tensor), M values. Values are weights, or a histogram's bins with counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from zsq.quantizers.grids import SMALLEST_STEP, affine_grid
from zsq.quantizers.observers import BINS_PER_SIDE, Histogram

# Exponent of the error and number of clip ratios, as in BRECQ (Li et al. 2021) and GENIE (Jeon et al. 2023).
LP_EXPONENT = 2.4
NUM_RATIOS = 100
# Shares of the values that RepQ-ViT (Li et al. 2023, public code) tries to leave below the upper end, and
# above the lower one.
PERCENTILES = (0.999, 0.9999, 0.99999)
# At least half of these hold values: 2048 or more over the tensor's own range.
KL_BINS = 4096
# Share of the values, exact zeros left out, that the range of least divergence must hold.
KL_LEAST_MASS = 0.9


def minmax_range(histogram: Histogram) -> tuple[float, float]:
    """The extremes."""
    return histogram.low, histogram.high


def percentile_range(histogram: Histogram, percentile: float) -> tuple[float, float]:
    """Quantiles (1-p)/2 and (1+p)/2, or 0 and p for one-sided values; linear inside a bin.

    Args:
        percentile: p in percent, as 99.99.
    """
    p = percentile / 100
    if histogram.low >= 0:
        return 0.0, quantile(histogram, p)
    if histogram.high <= 0:
        return quantile(histogram, 1 - p), 0.0
    return quantile(histogram, (1 - p) / 2), quantile(histogram, (1 + p) / 2)


def quantile(histogram: Histogram, q: float) -> float:
    """The value below which the share `q` of the values lies, linear inside a bin."""
    cumulative = histogram.counts.double().cumsum(0)
    rank = q * cumulative[-1]
    index = int(torch.searchsorted(cumulative, rank).clamp(max=len(cumulative) - 1))
    inside = (rank - cumulative[index] + histogram.counts[index]) / histogram.counts[index].clamp(min=1)
    value = (index - len(cumulative) // 2 + float(inside)) * histogram.width
    return min(max(value, histogram.low), histogram.high)


def percentile_affine(values_CM: Tensor, bits: int, holds_zero: bool = True) -> tuple[Tensor, Tensor]:
    """Step and zero point (C,) between the `PERCENTILES` of each row that have the least squared error.

    Args:
        holds_zero: zero lies on the grid, as `affine_grid` has it; else the zero point may be anywhere.
    """
    ordered_CM = values_CM.sort(dim=1).values
    upper = [_row_quantile(ordered_CM, p) for p in PERCENTILES]
    lower = [_row_quantile(ordered_CM, 1 - p) for p in PERCENTILES]
    return _least_error(values_CM, None, zip(lower, upper, strict=True), bits, holds_zero)


def percentile_activation(histogram: Histogram, bits: int) -> tuple[Tensor, Tensor]:
    """The same, one step and zero point, for a tensor of which there is a histogram."""
    values, counts = histogram.occupied()
    ends = ((quantile(histogram, 1 - p), quantile(histogram, p)) for p in PERCENTILES)
    pairs = ((torch.tensor([low]), torch.tensor([high])) for low, high in ends)
    step, zero = _least_error(values[None], counts, pairs, bits, holds_zero=True)
    return step.squeeze(0), zero.squeeze(0)


def _least_error(
    values_CM: Tensor,
    counts_M: Tensor | None,
    ends_C: Iterable[tuple[Tensor, Tensor]],
    bits: int,
    holds_zero: bool,
) -> tuple[Tensor, Tensor]:
    """Of the grids between these ends that of the least squared error, for each row."""
    made = affine_grid if holds_zero else _unstretched
    grids = [made(low, high, bits) for low, high in ends_C]
    room = torch.empty_like(values_CM)
    errors = [lp_error(values_CM, counts_M, step, zero, 0, 2**bits - 1, 2.0, room) for step, zero in grids]
    chosen = torch.stack(errors).argmin(dim=0, keepdim=True)
    step, zero = (torch.stack(part).gather(0, chosen)[0] for part in zip(*grids, strict=True))
    return step, zero


def _unstretched(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    step = ((high - low) / (2**bits - 1)).clamp(min=SMALLEST_STEP)
    return step, (-low / step).round()


def _row_quantile(ordered_CM: Tensor, q: float) -> Tensor:
    """As `torch.quantile`, which takes no rows of more than 16 million values."""
    place = q * (ordered_CM.shape[1] - 1)
    below = int(place)
    above = min(below + 1, ordered_CM.shape[1] - 1)
    return ordered_CM[:, below].lerp(ordered_CM[:, above], place - below)


def lp_error(
    values_CM: Tensor,
    counts_M: Tensor | None,
    step_C: Tensor,
    zero_C: Tensor,
    lo: int,
    hi: int,
    p: float,
    room_CM: Tensor | None = None,
) -> Tensor:
    """Sum over M of counts |x - xq|^p, (C,).

    Args:
        room_CM: like `values_CM`; it is written over. A search gives the same each time: fresh memory of a
            large weight takes longer than the arithmetic.
    """
    step, zero = step_C[:, None], zero_C[:, None]
    error = torch.div(values_CM, step, out=room_CM).round_()
    torch.maximum(error, lo - zero, out=error)
    torch.minimum(error, hi - zero, out=error)
    torch.sub(values_CM, error.mul_(step), out=error).abs_().pow_(p)
    return (error if counts_M is None else error.mul_(counts_M)).sum(dim=1)


def lp_affine(
    values_CM: Tensor,
    bits: int,
    counts_M: Tensor | None = None,
    p: float = LP_EXPONENT,
    each_end: bool = False,
) -> tuple[Tensor, Tensor]:
    """Step and zero point (C,) of the unsigned grid with the least Lp error over clip ratios 1.00 .. 0.01.

    Both ends are clipped by one ratio, then with `each_end` each by its own; ratio 1, min-max, is among them.
    """
    low, high = values_CM.amin(dim=1).clamp(max=0), values_CM.amax(dim=1).clamp(min=0)
    best, room = torch.full_like(low, torch.inf), torch.empty_like(values_CM)
    two_sided = bool((low < 0).any() and (high > 0).any())
    clips = ((True, True), (False, True), (True, False)) if each_end and two_sided else ((True, True),)
    for clip_low, clip_high in clips:
        start_low, start_high = low, high
        for ratio in _ratios():
            candidate_low = start_low * ratio if clip_low else start_low
            candidate_high = start_high * ratio if clip_high else start_high
            step, zero = affine_grid(candidate_low, candidate_high, bits)
            error = lp_error(values_CM, counts_M, step, zero, 0, 2**bits - 1, p, room)
            better = error < best
            best = torch.where(better, error, best)
            low, high = torch.where(better, candidate_low, low), torch.where(better, candidate_high, high)
    return affine_grid(low, high, bits)


def lp_symmetric(
    values_CM: Tensor, lo: int, hi: int, counts_M: Tensor | None = None, p: float = LP_EXPONENT
) -> Tensor:
    """Step (C,) of the grid lo..hi around 0 with the least Lp error over clip ratios 1.00 .. 0.01."""
    largest = (values_CM.abs().amax(dim=1) / hi).clamp(min=SMALLEST_STEP)
    best, best_step = torch.full_like(largest, torch.inf), largest
    zero, room = torch.zeros_like(largest), torch.empty_like(values_CM)
    for ratio in _ratios():
        step = largest * ratio
        error = lp_error(values_CM, counts_M, step, zero, lo, hi, p, room)
        better = error < best
        best, best_step = torch.where(better, error, best), torch.where(better, step, best_step)
    return best_step


def _ratios() -> Iterator[float]:
    return ((NUM_RATIOS - index) / NUM_RATIOS for index in range(NUM_RATIOS))


def kl_range(histogram: Histogram, bits: int) -> tuple[float, float]:
    """Entropy calibration: the range clipped to +-T where the quantized |x| says least wrong about |x|.

    For each i from the number of levels up: P is the first i bins of |x|, the mass beyond added to the last;
    Q is the same bins without that mass, merged to the levels and spread over the bins that P fills;
    T = (argmin KL(P || Q) + 0.5) bin widths. Levels are the grid's own: 2^b one-sided, 2^(b-1) two-sided.
    Only an i that keeps `KL_LEAST_MASS` counts: where little lies near zero, the divergence alone would
    choose a range that holds hardly a value.
    """
    one_sided = histogram.low >= 0 or histogram.high <= 0
    levels = 2**bits if one_sided else 2 ** (bits - 1)
    counts = _magnitudes(histogram)
    used = int(counts.nonzero().max()) + 1 if counts.any() else 0
    if used <= levels:
        return histogram.low, histogram.high
    candidates = torch.arange(levels, used + 1)
    candidates = candidates[counts.cumsum(0)[candidates - 1] >= KL_LEAST_MASS * counts.sum()]
    best = candidates[_kl_of(counts, candidates, levels).argmin()]
    threshold = (float(best) + 0.5) * histogram.width * (BINS_PER_SIDE // KL_BINS)
    return max(histogram.low, -threshold), min(histogram.high, threshold)


def _magnitudes(histogram: Histogram) -> Tensor:
    """Counts of |x| in KL_BINS bins, float64, without the exact zeros.

    Zero is on every grid; left in, a ReLU's zeros would draw the threshold to the smallest range. They are
    taken out by giving the first of the fine bins its neighbour's count.
    """
    negative, positive = histogram.counts.split(BINS_PER_SIDE)
    magnitudes = negative.flip(0) + positive
    magnitudes[0] = torch.minimum(magnitudes[0], magnitudes[1])
    return magnitudes.view(KL_BINS, -1).sum(dim=1).double()


def _kl_of(counts_M: Tensor, candidates_I: Tensor, levels: int) -> Tensor:
    """KL(P || Q) for each number of kept bins, float64, from cumulative sums instead of I histograms.

    With bins j of level l: sum P log P - sum_l P_l log(Q_l / n_l), n_l the number of bins that P fills.
    """
    total = counts_M.sum()
    below = torch.cat([counts_M.new_zeros(1), counts_M.cumsum(0)])
    filled = torch.cat([counts_M.new_zeros(1), (counts_M > 0).double().cumsum(0)])
    entropy = torch.cat([counts_M.new_zeros(1), torch.xlogy(counts_M, counts_M).cumsum(0)])
    kept, last = below[candidates_I], counts_M[candidates_I - 1]
    beyond = total - kept

    edges_IL = torch.arange(levels + 1) * candidates_I[:, None] // levels
    mass_IL = below[edges_IL].diff(dim=1)
    filled_IL = filled[edges_IL].diff(dim=1)
    filled_IL[:, -1] += (last == 0) & (beyond > 0)
    target_IL = mass_IL.clone()
    target_IL[:, -1] += beyond
    # An empty Q level under mass of P leaves log 0: an infinite divergence, never the least one.
    cross = torch.xlogy(target_IL, mass_IL / filled_IL.clamp(min=1)).sum(dim=1)
    own = entropy[candidates_I] - torch.xlogy(last, last) + torch.xlogy(last + beyond, last + beyond)
    divergence = (own - cross) / total - total.log() + kept.log()
    return divergence.where(kept > 0, torch.inf)
