"""Moments of Gaussians behind a rectifier, a maximum or any function of one value."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

NUM_NODES = 41  # quadrature nodes: errors below 1e-3 of a std for kinked functions such as hardtanh
SMALLEST_VAR = 1e-30  # keeps mean / std finite where nothing varies


def rectified(mean: Tensor, std: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """First and second moment of max(x, 0) for x ~ N(mean, var), var = std^2, std > 0.

    With x = mean + std z and r = mean / std, x is above 0 where z > -r. Over that range the integrals of
    phi(z), z phi(z) and z^2 phi(z) are Phi(r), phi(r) and Phi(r) - r phi(r), so that
    E = mean Phi(r) + std phi(r) and E2 = (mean^2 + var) Phi(r) + mean std phi(r).
    """
    share, density = _normal(mean / std)
    first = mean * share + std * density
    return first, (mean.square() + var) * share + mean * std * density


def larger(mean_a: Tensor, var_a: Tensor, mean_b: Tensor, var_b: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of max(a, b) for independent Gaussians a and b.

    Clark, The greatest of a finite set of random variables, Operations Research 9, 1961, for correlation 0.
    """
    spread = (var_a + var_b).clamp_min(SMALLEST_VAR).sqrt()
    share, density = _normal((mean_a - mean_b) / spread)
    first = mean_a * share + mean_b * (1 - share) + spread * density
    second = (var_a + mean_a.square()) * share + (var_b + mean_b.square()) * (1 - share)
    second = second + (mean_a + mean_b) * spread * density
    return first, (second - first.square()).clamp_min(0)


def transformed(mean: Tensor, var: Tensor, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance of function(x) for x ~ N(mean, var), by Gauss-Hermite quadrature."""
    std, first, second = var.sqrt(), torch.zeros_like(mean), torch.zeros_like(mean)
    for node, share in _quadrature():
        value = function(mean + std * node)
        first, second = first + share * value, second + share * value.square()
    return first, (second - first.square()).clamp_min(0)


def _normal(r: Tensor) -> tuple[Tensor, Tensor]:
    """Phi(r) and phi(r), the standard normal distribution and density."""
    return torch.special.ndtr(r), torch.exp(-0.5 * r.square()) / math.sqrt(2 * math.pi)


@cache
def _quadrature() -> list[tuple[float, float]]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(NUM_NODES)
    return list(zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True))
