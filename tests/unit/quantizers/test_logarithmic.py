"""The log-sqrt2 grid against its formula in float64."""

import math

import pytest
import torch

from zsq.quantizers.logarithmic import LogSqrt2Quantizer
from zsq.quantizers.observers import Observer


def histogram(values):
    observer = Observer("x")
    observer(values)
    return observer.histogram()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_values_are_the_formula(bits):
    quantizer, x = LogSqrt2Quantizer(0.8, bits), torch.rand(2000) ** 4
    for value, found in zip(x.tolist(), quantizer(x).tolist(), strict=True):
        power = max(round(-2 * math.log2(value / 0.8)), 0)
        expected = 0.8 * 2 ** (-power / 2) if power < 2**bits else 0
        assert found == pytest.approx(expected, rel=1e-6)
    assert quantizer(x).unique().numel() <= 2**bits + 1


def test_the_largest_value_is_exact_and_order_is_kept():
    quantizer = LogSqrt2Quantizer(0.3, 4)
    x = torch.linspace(0, 1, 5000)
    found = quantizer(x)
    assert quantizer(torch.tensor(0.3)) == torch.tensor(0.3) == found.max()
    assert (found.diff() >= 0).all() and found[0] == 0
    assert quantizer(torch.tensor([-1.0, -0.0])).tolist() == [0, 0]


def test_values_on_the_grid_stay_and_the_gradient_is_one():
    quantizer = LogSqrt2Quantizer(0.3, 4)
    x = torch.rand(500, requires_grad=True)
    found = quantizer(x)
    assert torch.equal(quantizer(found), found)
    found.sum().backward()
    assert torch.equal(x.grad, torch.ones(500))


def test_the_search_leaves_a_lone_outlier_out_and_keeps_what_many_have():
    spread = torch.rand(200_000) * 0.1
    outlier = torch.cat([spread, torch.ones(2)])
    assert LogSqrt2Quantizer.searched(histogram(outlier), 4).largest < 0.11
    shared = torch.cat([spread, torch.ones(2000)])
    assert LogSqrt2Quantizer.searched(histogram(shared), 4).largest > 0.9
    assert LogSqrt2Quantizer.searched(histogram(torch.zeros(10)), 4)(torch.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("largest", [torch.tensor(0.0), torch.tensor(-1.0), torch.ones(2)])
def test_what_is_no_grid_is_refused(largest):
    with pytest.raises(ValueError, match="no log-sqrt2 grid"):
        LogSqrt2Quantizer.restored("activation", 4, (0, 15), {"largest": largest})
    with pytest.raises(ValueError, match="no log-sqrt2 grid"):
        LogSqrt2Quantizer.restored("activation", 4, (0, 7), {"largest": torch.tensor(1.0)})
