"""Which parts of a network are reconstructed together: a partition into units, as data, read from the graph.

A unit has one tensor that enters and one that leaves. It is a layer, or the branches between a tensor and the
addition (or gate) where they meet again, and in both cases what follows without changing the shape: BN,
activation. What lies between units (pooling, flattening, concatenation) belongs to none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, fx
from torch.fx.passes.shape_prop import ShapeProp

from zsq.graph.vocabulary import Kind, image_nodes, is_layer, operation
from zsq.placement.sites import Placement, Site

Granularity = Literal["layer", "block"]


@dataclass(frozen=True)
class Unit:
    """Names of graph nodes in order of execution, the nodes whose values enter and leave, the layers, and the
    quantizer sites that no earlier unit has; `input_shape` and `output_shape` without the image dimension.

    `by_image`: the first axis of both is the images'. What is not so cannot be cut into batches of images.
    """

    name: str
    nodes: tuple[str, ...]
    input: str
    output: str
    layers: tuple[str, ...]
    sites: tuple[Site, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    by_image: bool = True


def partition(placement: Placement, granularity: Granularity, norm_NCHW: Tensor) -> tuple[Unit, ...]:
    """Units of `placement.network` in order of execution; every layer that sees the image is in one.

    Args:
        norm_NCHW: an image, from which shapes are taken.
    """
    return _Partition(placement, norm_NCHW).units(granularity)


def is_addition(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node adds two tensors."""
    return _joins(network, node, "addition")


def is_image_count(node: fx.Node) -> bool:
    """Whether a node reads the number of images off a tensor."""
    if node.target is not torch.ops.aten.sym_size.int or node.args[1:] != (0,):
        return False
    return by_image(node.all_input_nodes[0])


def _joins(network: fx.GraphModule, node: fx.Node, kind: Kind) -> bool:
    return operation(network, node).kind == kind and len(node.all_input_nodes) > 1


class _Partition:
    """The graph with what the partition asks of it."""

    def __init__(self, placement: Placement, norm_NCHW: Tensor) -> None:
        network = placement.network
        with torch.no_grad():
            ShapeProp(network).propagate(norm_NCHW)
        self.network = network
        self.nodes = list(network.graph.nodes)
        self.order = {node: index for index, node in enumerate(self.nodes)}
        self.sites = {site.path: site for site in placement.sites}
        self.data = image_nodes(self.nodes, network)
        self.dominator = self._dominators()

    def units(self, granularity: Granularity) -> tuple[Unit, ...]:
        regions = self._blocks() if granularity == "block" else []
        inside = {node for region in regions for node in region}
        alone = self.data - inside
        regions += [{node} for node in self.nodes if self._is_layer(node) and node in alone]
        units: list[Unit] = []
        taken: set[str] = set()
        for region in sorted(regions, key=lambda region: max(self.order[node] for node in region)):
            unit = self._unit(region, taken)
            taken |= {site.path for site in unit.sites}
            units.append(unit)
        return tuple(units)

    def _unit(self, region: set[fx.Node], taken: set[str]) -> Unit:
        nodes = self._extended(self._with_ends(region))
        output = nodes[-1]
        reading = [node for node in nodes if operation(self.network, node).kind != "size"]
        (entry,) = {source for node in reading for source in self._sources(node)} - set(nodes)
        layers = [str(node.target) for node in nodes if self._is_layer(node)]
        paths = [str(node.target) for node in nodes if self._is_quantizer(node)]
        paths += [f"{layer}.weight_quantizer" for layer in layers]
        return Unit(
            name=layers[0] if len(layers) == 1 else f"{layers[0]}..{layers[-1]}",
            nodes=tuple(node.name for node in nodes),
            input=entry.name,
            output=output.name,
            layers=tuple(dict.fromkeys(layers)),
            sites=tuple(self.sites[p] for p in dict.fromkeys(paths) if p in self.sites and p not in taken),
            input_shape=shape_of(entry)[1:],
            output_shape=shape_of(output)[1:],
            by_image=all(by_image(end) and bool(shape_of(end)) for end in (entry, output)),
        )

    def _with_ends(self, region: set[fx.Node]) -> set[fx.Node]:
        """With the views around it that put the images first, where views do."""
        grown = set(region)
        while True:
            (entry,) = {source for node in grown for source in self._sources(node)} - grown
            if by_image(entry) or not self._is_step(entry):
                break
            grown.add(entry)
        last = max(region, key=self.order.__getitem__)
        while not by_image(last) and len(last.users) == 1:
            (last,) = last.users
            if not self._is_step(last):
                return region
            grown.add(last)
        return grown if by_image(entry) and by_image(last) else region

    def _is_step(self, node: fx.Node) -> bool:
        """Whether a node makes one tensor of one, without weights."""
        return node.op == "call_function" and len(self._sources(node)) == 1 == len(node.all_input_nodes)

    def _extended(self, region: set[fx.Node]) -> list[fx.Node]:
        """With the quantizer that feeds it, what keeps the shape after it, and the constants it uses."""
        nodes = set(region)
        for node in region:
            nodes |= {source for source in self._sources(node) if self._is_quantizer(source)}
        last = max(region, key=self.order.__getitem__)
        while (following := self._same_shape_user(last)) is not None:
            nodes.add(following)
            last = following
        pending = list(nodes)
        while pending:
            constants = {n for n in pending.pop().all_input_nodes if n not in self.data} - nodes
            nodes |= constants
            pending += constants
        return [*sorted(nodes - {last}, key=self.order.__getitem__), last]

    def _same_shape_user(self, node: fx.Node) -> fx.Node | None:
        users = list(node.users)
        if len(users) != 1 or users[0].op == "output":
            return None
        user = users[0]
        unary = self._sources(user) == [node]
        if not unary or self._is_layer(user) or self._is_quantizer(user) or self._reads_lengths(user):
            return None
        return user if shape_of(user) == shape_of(node) else None

    def _blocks(self) -> list[set[fx.Node]]:
        """Largest regions between a fork and a join, but none that strings several residual blocks."""
        joins = [node for node in self.nodes if self._is_join(node)]
        regions = {join: region for join in joins if (region := self._region(join)) is not None}
        residual = [region for join, region in regions.items() if is_addition(self.network, join)]

        def strings(region: set[fx.Node]) -> bool:
            return any(a < region and b < region and not a & b for a, b in combinations(residual, 2))

        kept = [region for region in regions.values() if not strings(region)]
        largest: list[set[fx.Node]] = []
        for region in sorted(kept, key=len, reverse=True):
            if not any(region & other for other in largest):
                largest.append(region)
        return largest

    def _region(self, join: fx.Node) -> set[fx.Node] | None:
        """What lies between the nearest node before all branches and `join`; None if a value of it is used
        elsewhere or it holds no layer."""
        entry = self._nearest_common(self._sources(join))
        pending, region = [join], set()
        while pending:
            node = pending.pop()
            if node is not entry and node not in region:
                region.add(node)
                pending += self._sources(node)
        closed = all(
            user in region or is_image_count(user)
            for node in region - {join}
            if not self._is_quantizer(node)
            for user in node.users
        )
        lengths = any(self._reads_lengths(node) for node in region)
        return region if closed and not lengths and any(self._is_layer(node) for node in region) else None

    def _reads_lengths(self, node: fx.Node) -> bool:
        """Whether it needs a length other than the number of images, read off some tensor outside."""
        lengths = (each for each in node.all_input_nodes if operation(self.network, each).kind == "size")
        return any(not is_image_count(length) for length in lengths)

    def _is_join(self, node: fx.Node) -> bool:
        known = is_addition(self.network, node) or _joins(self.network, node, "gate")
        return known and len(self._sources(node)) > 1

    def _dominators(self) -> dict[fx.Node, fx.Node]:
        """For each node the last node that all paths from the image to it pass."""
        self.dominator = {}
        for node in self.nodes:
            if node in self.data and self._sources(node):
                self.dominator[node] = self._nearest_common(self._sources(node))
        return self.dominator

    def _nearest_common(self, nodes: list[fx.Node]) -> fx.Node:
        common, *rest = nodes
        for node in rest:
            while common is not node:
                later = max(common, node, key=self.order.__getitem__)
                common, node = (self.dominator[n] if n is later else n for n in (common, node))
        return common

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        return [source for source in node.all_input_nodes if source in self.data]

    def _is_layer(self, node: fx.Node) -> bool:
        return is_layer(self.network, node)

    def _is_quantizer(self, node: fx.Node) -> bool:
        return node.op == "call_module" and str(node.target) in self.sites


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Of a node, once shapes are propagated; () of what is no tensor, such as the pieces of a split."""
    return tuple(getattr(node.meta.get("tensor_meta"), "shape", ()))


def by_image(node: fx.Node) -> bool:
    """Whether the first axis of a node's value is the images'."""
    # A partition has seen one image.
    shape = getattr(node.meta.get("tensor_meta"), "shape", (1,))
    return bool(node.meta.get("images_first", True)) and shape[:1] == (1,)


def quantizer_calls(placement: Placement) -> Iterator[fx.Node]:
    """The graph's calls of activation quantizers."""
    paths = {site.path for site in placement.of_kind("activation")}
    return (n for n in placement.network.graph.nodes if n.op == "call_module" and str(n.target) in paths)
