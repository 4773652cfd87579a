"""LayerNorms whose channels may be scaled and shifted, because linear layers alone read what they give."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from zsq.graph.vocabulary import calls_module, operation
from zsq.placement.sites import Placement, Site


@dataclass(frozen=True)
class NormedLayers:
    """A LayerNorm, the linear layers that read it, and the site through which all of them do, None where
    they read it in float; `tensor` is the name of the node that enters there."""

    norm: str
    layers: tuple[str, ...]
    site: Site | None
    tensor: str


def normed_layers(placement: Placement, norm_NCHW: Tensor) -> tuple[NormedLayers, ...]:
    """All of them, in the order of execution.

    Between the two may stand what moves or averages values and keeps the channels last. What else reads the
    LayerNorm, such as an addition, would see the scale; and so would a second call of either.

    Args:
        norm_NCHW: an image, on which channels are followed.
    """
    network = placement.network
    reached = {node: _reached(placement, node) for node in network.graph.nodes if _is_norm(network, node)}
    reached = {norm: reads for norm, reads in reached.items() if reads}
    kept = _Channels(network, set(reached)).unmoved(norm_NCHW)
    calls = Counter(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    sites = {site.path: site for site in placement.sites}
    found = []
    for norm, reads in reached.items():
        names = [str(node.target) for node in (norm, *reads)]
        alone = all(calls[name] == 1 for name in names)
        tensors = {read.all_input_nodes[0] for read in reads}
        entries = {node.all_input_nodes[0] if str(node.target) in sites else node for node in tensors}
        paths = {str(node.target) for node in tensors if str(node.target) in sites}
        if alone and len(entries) == 1 and len(paths) < 2 and kept.issuperset(reads):
            site = sites[paths.pop()] if paths else None
            found.append(NormedLayers(names[0], tuple(names[1:]), site, entries.pop().name))
    return tuple(found)


def _is_norm(network: fx.GraphModule, node: fx.Node) -> bool:
    """Over the last axis alone."""
    if not calls_module(network, node, nn.LayerNorm):
        return False
    norm: Any = network.get_submodule(str(node.target))
    return len(norm.normalized_shape) == 1


def _reached(placement: Placement, norm: fx.Node) -> list[fx.Node]:
    """The linear layers that read a LayerNorm's values; none where something else does too."""
    network, layers = placement.network, []
    pending = list(norm.users)
    paths = {site.path for site in placement.of_kind("activation")}
    while pending:
        node = pending.pop(0)
        called = operation(network, node)
        if calls_module(network, node, nn.Linear):
            layers.append(node)
        elif str(node.target) in paths or called.moments in ("moves", "average", "pad"):
            pending += node.users
        elif called.kind != "size":
            return []
    return list(dict.fromkeys(layers))


class _Channels(fx.Interpreter):
    """Follows channels: in the place of what a LayerNorm gives stand the numbers of its channels, from 1."""

    def __init__(self, network: fx.GraphModule, norms: set[fx.Node]) -> None:
        super().__init__(network)
        self.network, self.norms = network, norms
        self.found: set[fx.Node] = set()

    @torch.no_grad()
    def unmoved(self, norm_NCHW: Tensor) -> set[fx.Node]:
        """The calls of linear layers whose input is a channel's number wherever it should be."""
        self.run(norm_NCHW)
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        if calls_module(self.network, n, nn.Linear):
            (given,) = self.fetch_args_kwargs_from_env(n)[0]
            numbers = torch.arange(1, given.shape[-1] + 1, device=given.device, dtype=given.dtype)
            if torch.allclose(given, numbers.expand_as(given)):
                self.found.add(n)
        value = super().run_node(n)
        if n in self.norms:
            numbers = torch.arange(1, value.shape[-1] + 1, device=value.device, dtype=value.dtype)
            return numbers.expand_as(value).contiguous()
        return value
