"""The streamed histogram against numpy, under every split of the same values."""

import numpy as np
import pytest
import torch

from zsq.core.errors import MismatchError
from zsq.quantizers.observers import BINS_PER_SIDE, Observer
from zsq.quantizers.ranges import kl_range, lp_affine, minmax_range, percentile_range


def heavy_tailed(count=20_000, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_t(3, count).astype(np.float32))


def observed(values, *sizes):
    observer = Observer("x")
    for part in values.split(list(sizes) or [len(values)]):
        observer(part)
    return observer.histogram()


SPLITS = [(20_000,), (1, 19_999), (7_000, 7_000, 6_000), tuple([100] * 200)]


@pytest.mark.parametrize("sizes", SPLITS)
@pytest.mark.parametrize("order", ["as drawn", "small first", "large first"])
def test_counts_depend_on_the_values_alone(sizes, order):
    values = heavy_tailed()
    ordered = (
        values[values.abs().argsort(descending=order == "large first")] if order != "as drawn" else values
    )
    whole, parts = observed(values), observed(ordered, *sizes)
    assert (whole.width, whole.low, whole.high) == (parts.width, parts.low, parts.high)
    torch.testing.assert_close(whole.counts, parts.counts, rtol=0, atol=0)
    for rule in (
        minmax_range,
        lambda h: percentile_range(h, 99.9),
        lambda h: kl_range(h, 4),
        lambda h: [
            float(part) for part in lp_affine(h.occupied()[0][None], 4, h.occupied()[1], each_end=True)
        ],
    ):
        assert list(rule(whole)) == list(rule(parts))


def test_counts_equal_numpy():
    values = heavy_tailed()
    histogram = observed(values, 5_000, 15_000)
    edges = (np.arange(2 * BINS_PER_SIDE + 1) - BINS_PER_SIDE) * histogram.width
    # numpy closes the last bin on the right; no value lies there.
    expected, _ = np.histogram(values.numpy().astype(np.float64), edges)
    np.testing.assert_array_equal(histogram.counts.numpy(), expected)
    assert histogram.low == values.min() and histogram.high == values.max()
    assert histogram.counts.sum() == len(values)


def test_more_than_half_of_the_longer_side_is_used():
    histogram = observed(heavy_tailed())
    assert BINS_PER_SIDE / 2 <= max(-histogram.low, histogram.high) / histogram.width < BINS_PER_SIDE


def test_passes_the_tensor_on_and_takes_zeros_and_any_scale():
    observer = Observer("x")
    zeros = torch.zeros(2, 3)
    assert observer(zeros) is zeros
    for scale in (1e-12, 1.0, 1e12):
        observer(torch.tensor([scale, -scale]))
    histogram = observer.histogram()
    assert (histogram.low, histogram.high) == pytest.approx((-1e12, 1e12))
    assert histogram.counts.sum() == 12


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_values_that_are_not_finite(bad):
    with pytest.raises(MismatchError, match=r"layer1\.input is not finite"):
        Observer("layer1.input")(torch.tensor([1.0, bad]))
