"""Pairs of layers in a traced network with nothing between them but operations that commute with a positive
factor per channel, each read by the next one alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from zsq.placement.trace import LAYERS, calls_module

RELU_MODULES: tuple[type[nn.Module], ...] = (nn.ReLU,)
RELU6_MODULES: tuple[type[nn.Module], ...] = (nn.ReLU6,)
RELU_CALLS: set[Any] = {F.relu, torch.relu, "relu", "relu_"}
RELU6_CALLS: set[Any] = {F.relu6}
# What keeps channels apart and takes a positive factor through.
SCALED_MODULES = (
    nn.LeakyReLU,
    nn.PReLU,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)
PASSING_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d)
SCALED_CALLS: set[Any] = {
    F.leaky_relu,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d,
}
PASSING_CALLS: set[Any] = {F.dropout, F.dropout2d, "contiguous"}
FLATTENING_CALLS: set[Any] = {torch.flatten, "flatten"}


class CappedReLU(nn.Module):
    """min(max(x, 0), cap) with a cap per channel: what ReLU6 becomes where its channels are scaled."""

    cap: Tensor

    def __init__(self, cap_C: Tensor) -> None:
        super().__init__()
        self.register_buffer("cap", cap_C.view(-1, 1, 1))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        return torch.minimum(F.relu(x_NCHW), self.cap)


@dataclass(frozen=True)
class Pair:
    """Two layers and the nodes between them, in order."""

    first: str
    second: str
    between: tuple[fx.Node, ...]


def pairs_of(network: fx.GraphModule) -> list[Pair]:
    """All pairs, in the order of execution; layers that are called twice belong to none."""
    calls = Counter(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    pairs = []
    for node in network.graph.nodes:
        if not calls_module(network, node, LAYERS):
            continue
        between: list[fx.Node] = []
        current = node
        while len(current.users) == 1:
            (current,) = current.users
            if calls_module(network, current, LAYERS):
                names = str(node.target), str(current.target)
                if calls[names[0]] == calls[names[1]] == 1 and not _mixes(network, node, between):
                    pairs.append(Pair(*names, tuple(between)))
                break
            if not _commutes(network, current):
                break
            between.append(current)
    return pairs


def _mixes(network: fx.GraphModule, first: fx.Node, between: list[fx.Node]) -> bool:
    """Whether flattening puts the positions before the channels: they are last behind a linear layer."""
    linear = isinstance(network.get_submodule(str(first.target)), nn.Linear)
    return linear and any(flattens(network, node) for node in between)


def _commutes(network: fx.GraphModule, node: fx.Node) -> bool:
    kinds = (*RELU_MODULES, *RELU6_MODULES, *SCALED_MODULES, *PASSING_MODULES, CappedReLU)
    calls = RELU_CALLS | RELU6_CALLS | SCALED_CALLS | PASSING_CALLS
    return calls_one_of(network, node, kinds, calls) or flattens(network, node)


def calls_one_of(network: fx.GraphModule, node: fx.Node, kinds: tuple[type, ...], calls: set[Any]) -> bool:
    """Whether the node calls a module of `kinds`, or a function or method of `calls`."""
    if node.op == "call_module":
        return calls_module(network, node, kinds)
    return node.op in ("call_function", "call_method") and node.target in calls


def flattens(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node makes (N, C, ...) into (N, C ...)."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return isinstance(module, nn.Flatten) and module.start_dim == 1
    starts = (*node.args[1:2], node.kwargs.get("start_dim"))
    return node.target in FLATTENING_CALLS and 1 in starts
