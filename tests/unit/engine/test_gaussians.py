"""Closed forms against numerical integration of the same Gaussians."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from zsq.engine.gaussians import larger, rectified, transformed

CASES = [(0.0, 1.0), (-1.3, 0.7), (2.0, 0.5), (0.4, 3.0)]


def expected(function, mean, std):
    return integrate.quad(
        lambda x: function(x) * stats.norm.pdf(x, mean, std), mean - 12 * std, mean + 12 * std
    )[0]


def scalars(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


@pytest.mark.parametrize(("mean", "std"), CASES)
def test_moments_behind_a_rectifier(mean, std):
    first, second = rectified(*scalars(mean, std, std**2))
    assert first.item() == pytest.approx(expected(lambda x: max(x, 0), mean, std), rel=1e-6, abs=1e-9)
    assert second.item() == pytest.approx(expected(lambda x: max(x, 0) ** 2, mean, std), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("a", "b"), [(CASES[0], CASES[1]), (CASES[2], CASES[3])])
def test_the_larger_of_two_gaussians(a, b):
    def of_maximum(power):
        low, high = min(a[0], b[0]) - 12 * max(a[1], b[1]), max(a[0], b[0]) + 12 * max(a[1], b[1])
        density = lambda x: (  # noqa: E731
            stats.norm.pdf(x, *a) * stats.norm.cdf(x, *b) + stats.norm.pdf(x, *b) * stats.norm.cdf(x, *a)
        )
        return integrate.quad(lambda x: x**power * density(x), low, high, limit=200)[0]

    mean, var = larger(*scalars(a[0], a[1] ** 2, b[0], b[1] ** 2))
    assert mean.item() == pytest.approx(of_maximum(1), rel=1e-6)
    assert var.item() == pytest.approx(of_maximum(2) - of_maximum(1) ** 2, rel=1e-5)


@pytest.mark.parametrize(("mean", "std"), CASES)
def test_any_function_by_quadrature(mean, std):
    found, var = transformed(*scalars(mean, std**2), torch.tanh)
    wanted = expected(np.tanh, mean, std)
    assert found.item() == pytest.approx(wanted, abs=1e-3 * std)
    assert var.item() == pytest.approx(
        expected(lambda x: np.tanh(x) ** 2, mean, std) - wanted**2, abs=2e-3 * std
    )
