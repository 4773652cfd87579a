"""Pairs of layers in a captured graph with nothing between them but operations that commute with a positive
factor per channel, each read by the next one alone."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from torch import fx, nn

from zsq.graph.vocabulary import calls_module, is_layer, name_of, operation


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
        if not is_layer(network, node):
            continue
        between: list[fx.Node] = []
        current = node
        while len(current.users) == 1:
            (current,) = current.users
            if is_layer(network, current):
                names = str(node.target), str(current.target)
                if calls[names[0]] == calls[names[1]] == 1 and not _mixes(network, node, current, between):
                    pairs.append(Pair(*names, tuple(between)))
                break
            if not _commutes(network, current):
                break
            between.append(current)
    return pairs


def _mixes(network: fx.GraphModule, first: fx.Node, second: fx.Node, between: list[fx.Node]) -> bool:
    """Whether the second layer has the first one's channels on another axis: behind a linear layer they are
    last, so that flattening puts the positions before them, and before a linear layer they must be last."""
    after_linear, before_linear = (calls_module(network, node, nn.Linear) for node in (first, second))
    flat = any(flattens(network, node) for node in between)
    if after_linear:
        return flat or not before_linear or any(operation(network, n).kind == "pooling" for n in between)
    return before_linear and not flat


def _commutes(network: fx.GraphModule, node: fx.Node) -> bool:
    return operation(network, node).scaling is not None or flattens(network, node)


def flattens(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node makes (N, C, ...) into (N, C ...)."""
    if name_of(network, node) not in ("flatten", "view", "reshape", "_unsafe_view"):
        return False
    (before, after) = (each.meta.get("shape", ()) for each in (node.all_input_nodes[0], node))
    known = len(after) == 2 and len(before) > 1 and before[0] is None and None not in before[1:]
    return known and after == (None, math.prod(before[1:]))
