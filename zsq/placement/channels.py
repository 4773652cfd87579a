"""Which channels of a captured graph can have a factor without a change of what the network computes.

Every channel that a layer gives has a number, and numbers go through the graph in place of values: through
what commutes with a positive factor, as ReLU and pooling do, and through what only moves values, such as
concatenations, slices and upsampling. Channels that are added to each other have one factor. Whatever else
reads a channel fixes its factor to 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from zsq.graph.layers import channel_axis
from zsq.graph.vocabulary import image_nodes, is_layer, name_of, operation

# The group whose factor is 1.
FIXED = 0
# They move values, and add them up.
_SUMS = ("sum", "cumsum")


@dataclass(frozen=True)
class Channels:
    """Layer -> int64 (C,), the group of each channel that it reads, and of each that it gives.

    All channels of a group have one factor. Layers that are called twice are in neither.
    """

    read: Mapping[str, Tensor]
    given: Mapping[str, Tensor]
    num_groups: int


def channels_of(network: fx.GraphModule, norm_1CHW: Tensor) -> Channels:
    """The groups of all channels, whatever the image that is passed."""
    numbering = _Numbering(network)
    with torch.no_grad():
        numbering.run(norm_1CHW)
    roots = torch.tensor([numbering.root(number) for number in range(len(numbering.parents))])
    read, given = (
        {name: roots[numbers] for name, numbers in part.items()} for part in (numbering.read, numbering.given)
    )
    return Channels(read, given, len(roots))


def by_channel(layer: nn.Module, input: Tensor) -> Tensor:
    """A layer's input with a row for each channel, (C, M)."""
    return input.transpose(0, channel_axis(layer)).flatten(1)


class _Numbering(fx.Interpreter):
    """Runs the network with the numbers of channels as values, float32: they are exact up to 2^24."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.parents = [FIXED]
        self.read: dict[str, Tensor] = {}
        self.given: dict[str, Tensor] = {}
        nodes = list(network.graph.nodes)
        self.of_image = image_nodes(nodes, network)
        self.calls = Counter(str(node.target) for node in nodes if node.op == "call_module")

    def root(self, number: int) -> int:
        """The number that stands for all that have one factor with `number`."""
        while self.parents[number] != number:
            self.parents[number] = self.parents[self.parents[number]]
            number = self.parents[number]
        return number

    def run_node(self, n: fx.Node) -> Any:
        """Numbers where a value follows from the image, the value elsewhere."""
        if n not in self.of_image:
            return super().run_node(n)
        if n.op == "placeholder":
            return torch.zeros_like(super().run_node(n))
        sources = [self.env[source] for source in n.all_input_nodes if source in self.of_image]
        if is_layer(self.module, n):  # type: ignore[arg-type]
            return self._layer(n, sources[0])
        known = operation(self.module, n)  # type: ignore[arg-type]
        name = name_of(self.module, n)  # type: ignore[arg-type]
        if known.moments == "moves" and name not in _SUMS:
            return super().run_node(n)
        if known.scaling in ("passes", "rectify"):
            passed = _spread_over(sources[0], super().run_node(n))
            if passed is not None:
                return passed
        alike = len(sources) == 2 == len(n.all_input_nodes) and sources[0].shape == sources[1].shape
        if known.kind == "addition" and alike:
            self._join(zip(*(source.flatten().tolist() for source in _pairs(*sources)), strict=True))
            return sources[0]
        self._fix(sources)
        return tree_map(lambda x: torch.zeros_like(x) if isinstance(x, Tensor) else x, super().run_node(n))

    def _layer(self, n: fx.Node, source: Tensor) -> Tensor:
        name, layer = str(n.target), self.module.get_submodule(str(n.target))
        output = super().run_node(n)
        if self.calls[name] != 1:
            self._fix([source])
            return torch.zeros_like(output)
        rows = by_channel(layer, source)
        for row in rows[(rows != rows[:, :1]).any(dim=1)]:
            self._fix([row])
        self.read[name] = rows[:, 0].long()
        first, axis = len(self.parents), channel_axis(layer)
        numbers = torch.arange(first, first + output.shape[axis])
        self.parents += numbers.tolist()
        self.given[name] = numbers
        shape = [1] * output.dim()
        shape[axis] = -1
        return numbers.to(output).view(shape).expand_as(output).contiguous()

    def _fix(self, sources: Iterable[Any]) -> None:
        for source in sources:
            tree_map(lambda x: self._join((FIXED, each) for each in x.unique().tolist()), source)

    def _join(self, pairs: Iterable[tuple[float, float]]) -> None:
        for pair in pairs:
            low, high = sorted(self.root(int(number)) for number in pair)
            self.parents[high] = low


def _pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct pairs of numbers that meet."""
    base = int(torch.maximum(a.max(), b.max())) + 1
    met = (a.long() * base + b.long()).unique()
    return met // base, met % base


def _spread_over(source: Tensor, output: Tensor) -> Tensor | None:
    """The numbers of the source's channels in the shape of `output`; None where a channel has several."""
    if source.shape == output.shape:
        return source
    first = source.flatten(2)[..., :1] if source.dim() > 2 else source
    if source.dim() != output.dim() or bool((source.flatten(2) != first).any()):
        return None
    return first.view(*first.shape[:2], *[1] * (output.dim() - 2)).expand_as(output).contiguous()
