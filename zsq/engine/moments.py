"""Gaussian moments of activations and the rules by which operations pass them on.

The moments follow from the weights alone: no image and no BN is needed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zsq.engine.gaussians import SMALLEST_VAR, larger, rectified, transformed


class Moments(NamedTuple):
    """Mean and variance of each element of an activation, shaped like it, for a batch of one."""

    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class Window:
    """Max pooling's window, each field with one entry per axis."""

    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]

    @classmethod
    def of(
        cls, axes: int, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, *_: Any, **__: Any
    ) -> Window:
        """From the operation's arguments."""
        return cls(*(per_axis(values, axes) for values in (kernel, stride or kernel, padding, dilation)))

    def positions(self, values: Tensor, shape: Sequence[int], border: float) -> list[Tensor]:
        """One map of the pooled `shape` per position in the window; `border` is what lies outside."""
        axes = len(shape)
        sides: list[int] = []
        for axis in reversed(range(axes)):
            reach = (shape[axis] - 1) * self.stride[axis] + (self.kernel[axis] - 1) * self.dilation[axis] + 1
            before = self.padding[axis]
            sides += [before, max(0, reach - before - values.shape[axis - axes])]
        padded = F.pad(values, sides, value=border)
        starts = (range(0, k * d, d) for k, d in zip(self.kernel, self.dilation, strict=True))
        return [self._from(padded, start, shape) for start in itertools.product(*starts)]

    def _from(self, padded: Tensor, start: Sequence[int], shape: Sequence[int]) -> Tensor:
        sides = zip(start, shape, self.stride, strict=True)
        read: Any = (slice(first, first + (n - 1) * step + 1, step) for first, n, step in sides)
        return padded[(..., *read)]


class Rules:
    """Exact moments where inputs are independent: fan-in, biases, ReLU and pooling all count."""

    def weighted(
        self, x: Moments, weight: Tensor, bias: Tensor | None, linear: Callable[..., Tensor]
    ) -> Moments:
        """A convolution or linear layer: mean = w mu + b, var = w^2 var, summed over the fan-in."""
        return Moments(linear(x.mean, weight, bias), linear(x.var, weight.square(), None))

    def activation(self, x: Moments, function: Callable[[Tensor], Tensor]) -> Moments:
        """A function of one value at a time."""
        if function is torch.relu:
            first, second = rectified(x.mean, x.var.clamp_min(SMALLEST_VAR).sqrt(), x.var)
            return Moments(first, (second - first.square()).clamp_min(0))
        return Moments(*transformed(x.mean, x.var, function))

    def averaged(self, x: Moments, pool: Callable[[Tensor], Tensor], window: float) -> Moments:
        """An average of `window` independent values."""
        return Moments(pool(x.mean), pool(x.var) / window)

    def product(self, x: Moments, y: Moments) -> Moments:
        """Two independent activations multiplied: E[x^2 y^2] - E[x]^2 E[y]^2, multiplied out."""
        var = x.var * y.mean.square() + y.var * x.mean.square() + x.var * y.var
        return Moments(x.mean * y.mean, var)

    def maximum(self, x: Moments, pool: Callable[[Tensor], Tensor], window: Window) -> Moments:
        """Max pooling, one position of the window after the other."""
        shape = pool(x.mean).shape[-len(window.kernel) :]
        means, variances = window.positions(x.mean, shape, -1e4), window.positions(x.var, shape, 0.0)
        result = Moments(means[0], variances[0])
        for mean, var in zip(means[1:], variances[1:], strict=True):
            result = Moments(*larger(*result, mean, var))
        return result


class SummedGaussians(Rules):
    """The published recursion (Sharma et al., arXiv 2112.02834): ma' = mw + ma, sa'^2 = sw^2 + sa^2 for each
    channel, b added to the mean; activations and pooling leave both as they are."""

    def weighted(
        self, x: Moments, weight: Tensor, bias: Tensor | None, linear: Callable[..., Tensor]
    ) -> Moments:
        """Per-channel sums; channels that are missing are filled from summary values of the input's."""
        like = linear(x.mean, weight, None)
        filters = weight.flatten(1)
        given = channel_moments(x)
        mean_C, std_C = matched_channels(given.mean, given.var.sqrt(), len(filters))
        mean_C = mean_C + filters.mean(1) + (0 if bias is None else bias)
        var_C = std_C.square() + filters.var(1, correction=0)
        return Moments(spread(mean_C, like), spread(var_C, like))

    def activation(self, x: Moments, function: Callable[[Tensor], Tensor]) -> Moments:
        """Unchanged."""
        return x

    def averaged(self, x: Moments, pool: Callable[[Tensor], Tensor], window: float) -> Moments:
        """Unchanged but for the shape."""
        return Moments(pool(x.mean), pool(x.var))

    def product(self, x: Moments, y: Moments) -> Moments:
        """A gate leaves what it gates unchanged."""
        return x if x.mean.numel() >= y.mean.numel() else y

    def maximum(self, x: Moments, pool: Callable[[Tensor], Tensor], window: Window) -> Moments:
        """Unchanged but for the shape."""
        return Moments(pool(x.mean), pool(x.var))


def matched_channels(mean_C: Tensor, std_C: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """The recursion's statistics for another number of channels.

    Missing ones take the summary values min, mean -+ min, mean, max -+ mean, max of the given ones in turn;
    too many become their mean, the std mean + min (which case takes which value is not published).
    """
    missing = channels - len(mean_C)
    if missing < 0:
        return mean_C.mean().expand(channels), (std_C.mean() + std_C.min()).expand(channels)

    def filled(values: Tensor) -> Tensor:
        low, mid, high = values.min(), values.mean(), values.max()
        summary = torch.stack([low, mid - low, mid + low, mid, high - mid, high + mid, high])
        return torch.cat([values, summary.repeat(math.ceil(missing / 7))[:missing]])

    return filled(mean_C), filled(std_C).clamp_min(0)


def per_axis(values: int | Sequence[int], axes: int) -> list[int]:
    """An argument of a pooling with one entry per axis."""
    values = [values] if isinstance(values, int) else list(values)
    return values * axes if len(values) == 1 else values


def channel_moments(x: Moments) -> Moments:
    """Mean and variance of each channel (C,) over all positions: the variance of a mixture is the mean of its
    parts' variances plus the variance of their means."""
    mean, var = (part.transpose(0, 1).flatten(1) for part in x)
    return Moments(mean.mean(1), var.mean(1) + mean.var(1, correction=0))


def spread(values_C: Tensor, like: Tensor) -> Tensor:
    """(C,) over the positions of an activation."""
    return values_C.view(1, -1, *[1] * (like.dim() - 2)).expand_as(like)
