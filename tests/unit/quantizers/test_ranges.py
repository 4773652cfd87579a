"""Range rules against brute force in numpy."""

import itertools

import numpy as np
import pytest
import torch

from zsq.quantizers.grids import affine_grid
from zsq.quantizers.observers import BINS_PER_SIDE, Histogram, Observer
from zsq.quantizers.ranges import (
    KL_BINS,
    KL_LEAST_MASS,
    kl_range,
    lp_affine,
    lp_error,
    lp_symmetric,
    minmax_range,
    percentile_range,
)


def histogram_of(values):
    observer = Observer("x")
    observer(torch.as_tensor(values, dtype=torch.float32))
    return observer.histogram()


def numpy_lp_error(x, step, zero, lo, hi, p):
    x = np.asarray(x, dtype=np.float64)
    quantized = step * (np.clip(np.rint(x / step) + zero, lo, hi) - zero)
    return (np.abs(x - quantized) ** p).sum(axis=-1)


def heavy_tailed(shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_t(3, shape).astype(np.float32))


def test_lp_error_equals_float64():
    values = heavy_tailed((3, 500))
    step, zero = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.0, 4.0, 9.0])
    for p in (1.0, 2.0, 2.4):
        expected = numpy_lp_error(values, step.numpy()[:, None], zero.numpy()[:, None], 0, 15, p)
        np.testing.assert_allclose(lp_error(values, None, step, zero, 0, 15, p), expected, rtol=1e-4)
        doubled = lp_error(values, torch.full((500,), 2.0), step, zero, 0, 15, p)
        np.testing.assert_allclose(doubled, 2 * expected, rtol=1e-4)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("one_sided", [True, False])
def test_lp_search_is_never_worse_than_minmax(bits, one_sided):
    values = heavy_tailed((5, 2_000))
    values = values.relu() if one_sided else values
    levels = 2**bits - 1

    def error(step, zero):
        return numpy_lp_error(values, step.numpy()[:, None], zero.numpy()[:, None], 0, levels, 2.4)

    minmax = error(*affine_grid(values.amin(1), values.amax(1), bits))
    for each_end in (False, True):
        searched = error(*lp_affine(values, bits, each_end=each_end))
        assert (searched <= minmax * (1 + 1e-5)).all()
        if bits <= 4:
            assert (searched < minmax).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_lp_search_over_a_histogram_is_as_good_as_over_its_values(bits):
    values = heavy_tailed(20_000).relu()
    histogram = histogram_of(values)
    centres, counts = histogram.occupied()
    of_histogram = lp_affine(centres[None], bits, counts, each_end=True)
    of_values = lp_affine(values[None], bits, each_end=True)
    errors = [
        numpy_lp_error(values, float(step), float(zero), 0, 2**bits - 1, 2.4)
        for step, zero in (of_histogram, of_values)
    ]
    assert errors[0] <= errors[1] * 1.01
    assert of_histogram[1] == 0


@pytest.mark.parametrize(("lo", "hi"), [(-2, 1), (-8, 7), (0, 15)])
def test_symmetric_search_finds_the_brute_force_step(lo, hi):
    values = heavy_tailed((4, 1_000))
    values = values.abs() if lo == 0 else values
    for row, step in zip(values.numpy(), lp_symmetric(values, lo, hi, p=2), strict=True):
        candidates = np.abs(row).max() / hi * np.arange(1, 101) / 100
        errors = [numpy_lp_error(row, candidate, 0, lo, hi, 2) for candidate in candidates]
        assert numpy_lp_error(row, float(step), 0, lo, hi, 2) == pytest.approx(min(errors), rel=1e-4)


def test_minmax_is_exact():
    assert minmax_range(histogram_of([-1.25, 0.1, 7.7])) == (-1.25, pytest.approx(7.7))


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentile_equals_numpy_quantiles(percentile):
    values = heavy_tailed(50_000)
    low, high = percentile_range(histogram_of(values), percentile)
    p = percentile / 100
    tolerance = 2 * histogram_of(values).width + 0.02
    expected = np.quantile(values.numpy(), [(1 - p) / 2, (1 + p) / 2])
    np.testing.assert_allclose([low, high], expected, rtol=0.02, atol=tolerance)
    one_sided = values.abs() + 0.1
    assert percentile_range(histogram_of(one_sided), percentile)[0] == 0
    assert percentile_range(histogram_of(one_sided), percentile)[1] == pytest.approx(
        np.quantile(one_sided.numpy(), p), rel=0.02
    )
    assert percentile_range(histogram_of(-one_sided), percentile)[1] == 0


def test_the_hundredth_percentile_is_the_maximum():
    values = heavy_tailed(1_000)
    assert percentile_range(histogram_of(values), 100.0) == pytest.approx(
        (float(values.min()), float(values.max()))
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_one_outlier_hardly_moves_the_kl_threshold(bits):
    bulk = torch.from_numpy(np.abs(np.random.default_rng(0).normal(size=200_000)).astype(np.float32))
    with_outlier = torch.cat([bulk, 4 * bulk.max()[None]])
    _, before = kl_range(histogram_of(bulk), bits)
    _, after = kl_range(histogram_of(with_outlier), bits)
    assert after == pytest.approx(before, rel=0.1)
    assert minmax_range(histogram_of(with_outlier))[1] == pytest.approx(4 * float(bulk.max()))


def naive_kl(counts, kept, levels):
    """The recipe as written, one histogram at a time."""
    p = counts[:kept].copy()
    p[-1] += counts[kept:].sum()
    q = np.zeros(kept)
    edges = np.arange(levels + 1) * kept // levels
    for start, end in itertools.pairwise(edges):
        filled = p[start:end] > 0
        if filled.any():
            q[start:end][filled] = counts[start:end].sum() / filled.sum()
    p, q = p / p.sum(), q / q.sum()
    held = p > 0
    with np.errstate(divide="ignore"):
        return float(np.sum(p[held] * np.log(p[held] / q[held])))


@pytest.mark.parametrize("seed", range(8))
def test_kl_equals_the_recipe_bin_by_bin(seed):
    generator = np.random.default_rng(seed)
    counts = generator.poisson(300 * np.exp(-np.arange(300) / 40))
    counts[generator.integers(0, 300, 40)] = 0
    counts[299] = 5
    fine = torch.zeros(2 * BINS_PER_SIDE, dtype=torch.int64)
    merged = BINS_PER_SIDE // KL_BINS
    fine[BINS_PER_SIDE + 1 :][: 300 * merged : merged] = torch.from_numpy(counts)
    _, found = kl_range(Histogram(fine, 1 / merged, 0.0, 300.0), 4)
    held = counts.cumsum() >= KL_LEAST_MASS * counts.sum()
    candidates = [kept for kept in range(16, 301) if held[kept - 1]]
    best = min(candidates, key=lambda kept: naive_kl(counts.astype(np.float64), kept, 16))
    assert found == best + 0.5


def test_kl_levels_are_those_of_the_grid_and_few_bins_are_left_alone():
    assert BINS_PER_SIDE % KL_BINS == 0
    two_sided = torch.cat([heavy_tailed(50_000), torch.tensor([60.0])])
    low, high = kl_range(histogram_of(two_sided), 8)
    assert low >= two_sided.min() and high < 60
    assert kl_range(histogram_of(torch.zeros(10)), 8) == (0.0, 0.0)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("low, high", [(5.0, 6.0), (-6.0, -5.0), (0.9, 1.0), (20.0, 21.0)])
def test_kl_keeps_nine_tenths_of_a_tensor_away_from_zero(bits, low, high):
    values = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) * (high - low) + low
    found = kl_range(histogram_of(values), bits)
    assert ((values >= found[0]) & (values <= found[1])).float().mean() >= 0.9
