"""Gaussian moments of every activation, computed from the weights alone: no image and no BN needed.

A `MomentMode` runs a network once and keeps, beside each activation, its mean and variance, starting from
independent N(0, 1) inputs. `Rules` say what an operation does to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zsq.core.errors import MismatchError
from zsq.engine.gaussians import SMALLEST_VAR, larger, rectified, transformed

# Operations that only move, copy or repeat values.
MOVES = {
    *("view", "_unsafe_view", "t", "transpose", "permute", "clone", "split", "split_with_sizes", "slice"),
    *("select", "unsqueeze", "squeeze", "expand", "alias", "detach", "unbind", "pixel_shuffle", "_to_copy"),
    *("channel_shuffle", "upsample_nearest2d", "cat", "stack", "as_strided", "native_dropout", "flip"),
}
# Functions of one value at a time, by Gauss-Hermite quadrature; `relu` has a closed form.
ELEMENTWISE = {
    *("relu", "sigmoid", "tanh", "silu", "gelu", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "elu"),
    *("softplus", "mish", "clamp", "clamp_min", "_prelu_kernel", "abs", "pow", "exp", "neg", "sqrt"),
}
POOLS = {"mean", "avg_pool2d", "_adaptive_avg_pool2d"}
SUMS = {"add": 1.0, "sub": -1.0}
FACTORS = {"mul", "div"}


class Moments(NamedTuple):
    """Mean and variance of each element of an activation, shaped like it, for a batch of one."""

    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class Window:
    """Max pooling's window, each field (vertical, horizontal)."""

    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]

    @classmethod
    def of(cls, kernel: Any, stride: Any = (), padding: Any = (0,), dilation: Any = (1,), *_: Any) -> Window:
        """From the operation's arguments."""
        return cls(*(_pair(values) for values in (kernel, stride or kernel, padding, dilation)))

    def positions(self, values: Tensor, shape: Sequence[int], border: float) -> list[Tensor]:
        """One map of the pooled `shape` per position in the window; `border` is what lies outside."""
        sides: list[int] = []
        for axis in (1, 0):
            reach = (shape[axis] - 1) * self.stride[axis] + (self.kernel[axis] - 1) * self.dilation[axis] + 1
            before = self.padding[axis]
            sides += [before, max(0, reach - before - values.shape[axis - 2])]
        padded = F.pad(values, sides, value=border)
        rows, columns = (range(0, k * d, d) for k, d in zip(self.kernel, self.dilation, strict=True))
        down, right = self.stride
        return [padded[..., i::down, j::right][..., : shape[0], : shape[1]] for i in rows for j in columns]


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
        shape = pool(x.mean).shape[-2:]
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
        return Moments(_spread(mean_C, like), _spread(var_C, like))

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


class MomentMode(TorchDispatchMode):
    """Keeps the moments of everything that follows from `inputs` while it is active."""

    def __init__(self, inputs: Tensor, rules: Rules) -> None:
        """`inputs` stands for independent N(0, 1) values."""
        super().__init__()
        self.rules = rules
        # Tensors are held so that no other takes their id.
        self._known = {id(inputs): (inputs, Moments(torch.zeros_like(inputs), torch.ones_like(inputs)))}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation, and its rule where it takes an activation."""
        out = func(*args, **(kwargs or {}))
        if any(self._has(arg) for arg in args):
            made = _moments_of(self.rules, func, [self._swapped(arg) for arg in args], kwargs or {})
            outputs = out if isinstance(out, (tuple, list)) else [out]
            for tensor, moments in zip(outputs, made if isinstance(made, list) else [made], strict=False):
                self._known[id(tensor)] = (tensor, moments)
        return out

    def moments(self, activation: Tensor) -> Moments | None:
        """Those of an activation; None where it follows from no input."""
        held = self._known.get(id(activation))
        return None if held is None else held[1]

    def _has(self, arg: Any) -> bool:
        if isinstance(arg, (tuple, list)):
            return any(self._has(part) for part in arg)
        return id(arg) in self._known

    def _swapped(self, arg: Any) -> Any:
        if isinstance(arg, (tuple, list)) and not isinstance(arg, torch.Size):
            return [self._swapped(part) for part in arg]
        return self._known[id(arg)][1] if id(arg) in self._known else arg


def _moments_of(
    rules: Rules, func: Any, args: list[Any], kwargs: Mapping[str, Any]
) -> Moments | list[Moments]:
    """One operation's rule; activations in `args` are `Moments`."""
    name = func.overloadpacket.__name__
    name = name if name in MOVES or not name.endswith("_") else name.removesuffix("_")
    x, rest = args[0], args[1:]
    if name == "convolution":
        return rules.weighted(x, rest[0], rest[1], lambda v, w, b: func(v, w, b, *rest[2:]))
    if name in ("addmm", "mm"):
        bias, x, weight = (x, *rest) if name == "addmm" else (None, x, rest[0])
        return rules.weighted(x, weight.t(), bias, F.linear)
    if name == "native_batch_norm":
        return _affine(x, rest[0], rest[1], rest[2], rest[3], rest[6])
    if name in MOVES:
        return _moved(func, args, kwargs)
    if name == "constant_pad_nd":
        return Moments(func(x.mean, *rest), func(x.var, rest[0], 0))
    if name in ELEMENTWISE:
        function = torch.relu if name == "relu" else lambda value: _plain(func)(value, *rest, **kwargs)
        return rules.activation(x, function)
    if name in POOLS:
        pooled = func(x.mean, *rest, **kwargs)
        window = x.mean.numel() / pooled.numel() if name != "avg_pool2d" else math.prod(_pair(rest[0]))
        return rules.averaged(x, lambda value: func(value, *rest, **kwargs), window)
    if name == "max_pool2d_with_indices":
        return rules.maximum(x, lambda value: func(value, *rest)[0], Window.of(*rest))
    if name in SUMS:
        return _sum(x, rest[0], SUMS[name] * kwargs.get("alpha", 1))
    if name == "mul" and isinstance(x, Moments) and isinstance(rest[0], Moments):
        return rules.product(x, rest[0])
    if name in FACTORS and not isinstance(rest[0], Moments):
        factor = 1 / rest[0] if name == "div" else rest[0]
        return Moments(x.mean * factor, x.var * factor**2)
    if name == "mul":
        return Moments(rest[0].mean * x, rest[0].var * x**2)
    raise MismatchError(f"the network's operation {func}", "one whose moments are known")


def _plain(func: Any) -> Any:
    """The operation that leaves its argument alone, of one that overwrites it."""
    name = func.overloadpacket.__name__.removesuffix("_")
    return getattr(torch.ops.aten, name) if func.overloadpacket.__name__.endswith("_") else func


def _moved(func: Any, args: list[Any], kwargs: Mapping[str, Any]) -> Moments | list[Moments]:
    def part(arg: Any, index: int) -> Any:
        if isinstance(arg, Moments):
            return arg[index]
        if isinstance(arg, list) and any(isinstance(entry, (Moments, Tensor)) for entry in arg):
            return [_constant(entry)[index] for entry in arg]
        return arg

    mean, var = (func(*(part(arg, index) for arg in args), **kwargs) for index in (0, 1))
    if isinstance(mean, Tensor):
        return Moments(mean, var)
    return [Moments(*pair) for pair in zip(mean, var, strict=True)]


def _constant(value: Any) -> Moments:
    if isinstance(value, Moments):
        return value
    value = torch.as_tensor(value, dtype=torch.float64)
    return Moments(value, torch.zeros_like(value))


def _sum(x: Any, y: Any, sign: float) -> Moments:
    a, b = _constant(x), _constant(y)
    return Moments(a.mean + sign * b.mean, a.var + sign * sign * b.var)


def _affine(
    x: Moments, weight: Tensor | None, bias: Tensor | None, mean_C: Tensor, var_C: Tensor, eps: float
) -> Moments:
    scale = (var_C + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean_C * scale
    return Moments(
        x.mean * _spread(scale, x.mean) + _spread(shift, x.mean), x.var * _spread(scale, x.var).square()
    )


def _pair(values: Sequence[int]) -> list[int]:
    return list(values) * 2 if len(values) == 1 else list(values)


def channel_moments(x: Moments) -> Moments:
    """Mean and variance of each channel (C,) over all positions: the variance of a mixture is the mean of its
    parts' variances plus the variance of their means."""
    mean, var = (part.transpose(0, 1).flatten(1) for part in x)
    return Moments(mean.mean(1), var.mean(1) + mean.var(1, correction=0))


def _spread(values_C: Tensor, like: Tensor) -> Tensor:
    """(C,) over the positions of an activation."""
    return values_C.view(1, -1, *[1] * (like.dim() - 2)).expand_as(like)
