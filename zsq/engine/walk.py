"""A captured graph run on Gaussian moments, node by node, from those of the input.

Which rule an operation has stands in `zsq.graph.vocabulary`; what the rules compute, in `zsq.engine.moments`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call

from zsq.core.errors import MismatchError
from zsq.engine.moments import Moments, Rules, Window, channel_moments, per_axis, spread
from zsq.graph.layers import channel_axis
from zsq.graph.vocabulary import MomentRule, is_layer, name_of, operation


@dataclass(frozen=True)
class Call:
    """One call: activations in `args` are `Moments`; `function` is a module or an ATen overload."""

    rules: Rules
    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def of(self, part: Callable[[Moments], Any]) -> Any:
        """What the function gives for `part` of each `Moments`, and of constants beside them in a list."""

        def given(value: Any) -> Any:
            if isinstance(value, Moments):
                return part(value)
            if isinstance(value, (list, tuple)):
                joined = any(isinstance(entry, Moments) for entry in value)
                return [part(_constant(entry)) if joined else entry for entry in value]
            return value

        kwargs = {key: given(value) for key, value in self.kwargs.items()}
        return self.function(*(given(value) for value in self.args), **kwargs)

    def axes(self) -> int:
        """How many the operation works over, by its name: "avg_pool2d"."""
        return int(self.name[-2])

    def activations(self) -> list[Moments]:
        """Those among the arguments."""
        return [value for value in self.args if isinstance(value, Moments)]


# None: the moments are lost.
Passed = Moments | list[Moments] | None


def _weighted(call: Call) -> Passed:
    if not isinstance(call.function, nn.Module):
        return None  # its weight follows from the image
    layer: Any = call.function
    x = call.args[0]
    weight, bias = layer.weight, layer.bias
    tokens = isinstance(layer, nn.Linear) and x.mean.dim() > 2

    def linear(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        tensors = {"weight": weight}
        if layer.bias is not None:
            tensors["bias"] = torch.zeros_like(layer.bias) if bias is None else bias
        if tokens:
            return functional_call(layer, tensors, (values.movedim(1, -1),)).movedim(-1, 1)
        return functional_call(layer, tensors, (values,))

    if not tokens:
        return call.rules.weighted(x, weight, bias, linear)
    # The rules have channels second.
    made = call.rules.weighted(Moments(*(part.movedim(-1, 1) for part in x)), weight, bias, linear)
    return Moments(*(part.movedim(1, -1) for part in made))


def _affine(call: Call) -> Passed:
    if not isinstance(call.function, nn.Module):
        return None
    norm: Any = call.function
    x = call.args[0]
    scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    shift = (0 if norm.bias is None else norm.bias) - norm.running_mean * scale
    scale, shift = spread(scale, x.mean), spread(shift, x.mean)
    return Moments(x.mean * scale + shift, x.var * scale.square())


def _moved(call: Call) -> Passed:
    mean, var = call.of(lambda x: x.mean), call.of(lambda x: x.var)
    if isinstance(mean, Tensor):
        return Moments(mean, var)
    return [Moments(*pair) for pair in zip(mean, var, strict=True)]


def _cast(call: Call) -> Passed:
    """Moments stay in their own precision."""
    return call.args[0] if call.of(lambda x: x.mean).is_floating_point() else None


def _padded(call: Call) -> Passed:
    x, sides, *rest = call.args
    if any(isinstance(value, str) and value != "constant" for value in (*rest, *call.kwargs.values())):
        return _moved(call)
    return Moments(call.function(x.mean, sides, *rest, **call.kwargs), F.pad(x.var, list(sides)))


def _elementwise(call: Call) -> Passed:
    if len(call.activations()) != 1:
        return None
    if call.name == "relu":
        return call.rules.activation(call.activations()[0], torch.relu)
    return call.rules.activation(call.activations()[0], lambda value: call.of(lambda _: value))


def _averaged(call: Call) -> Passed:
    x = call.args[0]

    def pool(value: Tensor) -> Tensor:
        return call.of(lambda _: value)

    if call.name.startswith("avg_pool"):
        return call.rules.averaged(x, pool, math.prod(per_axis(call.args[1], call.axes())))
    return call.rules.averaged(x, pool, x.mean.numel() / pool(x.mean).numel())


def _maximum(call: Call) -> Passed:
    window = Window.of(call.axes(), *call.args[1:], **call.kwargs)
    return call.rules.maximum(call.args[0], lambda value: call.of(lambda _: value), window)


def _sum(call: Call) -> Passed:
    """Of independent values, subtracted ones included."""
    a, b = (_constant(value) for value in call.args)
    factor = call.kwargs.get("alpha", 1) ** 2
    mean = call.of(lambda x: x.mean)
    return Moments(mean, factor * a.var + b.var if call.name == "rsub" else a.var + factor * b.var)


def _product(call: Call) -> Passed:
    a, b = call.args
    if a is b:
        return call.rules.activation(a, torch.square)
    if isinstance(a, Moments) and isinstance(b, Moments):
        return call.rules.product(a, b)
    return _scaled(a, b) if isinstance(a, Moments) else _scaled(b, a)


def _quotient(call: Call) -> Passed:
    a, b = call.args
    if call.kwargs:
        return None
    return _elementwise(call) if isinstance(b, Moments) else _scaled(a, 1 / b)


def _scaled(x: Moments, factor: Any) -> Moments:
    return Moments(x.mean * factor, x.var * factor**2)


PASSING: dict[MomentRule, Callable[[Call], Passed]] = {
    "weighted": _weighted,
    "affine": _affine,
    "moves": _moved,
    "cast": _cast,
    "pad": _padded,
    "elementwise": _elementwise,
    "average": _averaged,
    "maximum": _maximum,
    "sum": _sum,
    "product": _product,
    "quotient": _quotient,
}


class MomentWalk(fx.Interpreter):
    """Runs a captured graph on the moments of one image. `layers`: each layer's output, by its first call, as
    mean and variance per channel over positions."""

    def __init__(self, network: fx.GraphModule, rules: Rules) -> None:
        """`network` is in float64 on the CPU."""
        super().__init__(network)
        self.extra_traceback = False
        self.network, self.rules = network, rules
        self.layers: dict[str, Moments] = {}

    def run_node(self, n: fx.Node) -> Any:
        """A node's moments; its value where it follows from no activation.

        Raises:
            MismatchError: an operation that takes activations and whose moments are not known.
        """
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if not n.op.startswith("call") or not (_has_moments(args) or _has_moments(kwargs.values())):
            return super().run_node(n)
        known = operation(self.network, n)
        called: Any = self.fetch_attr(str(n.target)) if n.op == "call_module" else n.target
        call = Call(self.rules, name_of(self.network, n) or "", called, tuple(args), kwargs)
        if known.kind == "size":
            return call.of(lambda x: x.mean)
        if called is operator.getitem:
            made = None if isinstance(args[0], Moments) else args[0][args[1]]
        else:
            made = None if known.moments is None else PASSING[known.moments](call)
        if made is None:
            found = f"the network's operation {n.target}{_behind(self.network, n)}"
            raise MismatchError(found, "one whose moments are known")
        if is_layer(self.network, n):
            parts = (channels_second(called, part) for part in made)
            self.layers.setdefault(str(n.target), channel_moments(Moments(*parts)))
        return made


def channels_second(layer: nn.Module, values: Tensor) -> Tensor:
    """What a layer puts out with its channels on the second axis."""
    return values.movedim(channel_axis(layer), 1)


def _has_moments(values: Any) -> bool:
    return any(
        isinstance(value, Moments) or (isinstance(value, (list, tuple)) and _has_moments(value))
        for value in values
    )


def _behind(network: fx.GraphModule, node: fx.Node) -> str:
    """The nearest layer that a node follows from."""
    followed = {node}
    for each in reversed(network.graph.nodes):
        if each in followed and each is not node and is_layer(network, each):
            return f" behind layer '{each.target}'"
        followed |= set(each.all_input_nodes) if each in followed else set()
    return ""


def _constant(value: Any) -> Moments:
    if isinstance(value, Moments):
        return value
    value = torch.as_tensor(value, dtype=torch.float64)
    return Moments(value, torch.zeros_like(value))
