"""Layers with several widths, of which a controller picks one for each image.

Such a layer stands in the graph once per width, with quantizers of its own over the same weight; what comes
out is the sum, each times a mask that is 1 for the images that picked it and else 0. In the float network the
sum is what the layer gave.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from zsq.core.seeding import global_rng_of
from zsq.graph.vocabulary import is_layer
from zsq.placement.sites import Placement, Site, last_layers
from zsq.quantizers.layers import quantizable
from zsq.widths import Bits

# Bits more than asked -> what the name of the layer that has them ends in.
SUFFIXES = {-1: "_narrow", 0: "", 1: "_wide"}
# Nodes: the masks (N, layers, widths), the same while a module makes them, and the scores they follow from.
MASKS, TRAINED_MASKS, SCORES = "width_masks", "trained_width_masks", "width_scores"
CONTROLLER = ("controller_first", "controller_second")
CONTROLLER_BITS = 8
POOLED = 8
HIDDEN = 64

_aten = torch.ops.aten


@dataclass(frozen=True)
class Dynamic:
    """A placement whose `layers` stand once for each of `shifts`, with so many bits more than asked for."""

    placement: Placement
    layers: tuple[str, ...]
    shifts: tuple[int, ...]

    def names(self) -> list[str]:
        """The layers of each width, in the order of the masks' last two axes."""
        return [layer + SUFFIXES[shift] for layer in self.layers for shift in self.shifts]


def tap_of(network: fx.GraphModule, axes: int) -> fx.Node | None:
    """What the controller sees, of as many `axes` as a batch of images: what the first layer reads that makes
    its maps smaller, the first layers of all aside; where none does, what is read a quarter of the way."""
    layers = [node for node in network.graph.nodes if is_layer(network, node)]
    inner = [node for node in layers if not _upstream(node).isdisjoint(layers)]
    known = [node for node in inner if len(_shape(_source(network, node))) == axes]
    for node in known:
        source = _source(network, node)
        if math.prod(_shape(node)[2:]) < math.prod(_shape(source)[2:]):
            return source
    return _source(network, known[len(known) // 4]) if known else None


def dynamic_layers(placement: Placement, tap: fx.Node, bits: Bits) -> list[fx.Node]:
    """The calls of layers behind `tap` that can have several widths: weight and input of the asked `bits`,
    called once, not the last layer."""
    network = placement.network
    widths = {site.path: site.bits for site in placement.sites}
    calls = Counter(node.target for node in network.graph.nodes if node.op == "call_module")
    nodes = list(network.graph.nodes)
    behind = nodes[nodes.index(tap) :]
    last = set(last_layers(network))
    found = []
    for node in behind:
        if is_layer(network, node) and node not in last and calls[node.target] == 1:
            pair = (f"{node.target}.weight_quantizer", str(node.all_input_nodes[0].target))
            if [widths.get(path) for path in pair] == [bits.weights, bits.activations]:
                found.append(node)
    return found


def branched(
    placement: Placement,
    tap: fx.Node,
    layers: Sequence[fx.Node],
    shifts: Sequence[int],
    masks: nn.Module,
    generator: torch.Generator,
) -> Dynamic:
    """`placement` with its `layers` once per width and a fresh controller behind `tap`, in place.

    Args:
        masks: makes (N, layers, widths) of the controller's scores of that shape.
    """
    network = placement.network
    choice = _controller(network, tap, len(layers), len(shifts), masks, generator)
    sites = [
        Site(f"{name}.weight", "weight", f"{name}.weight_quantizer", CONTROLLER_BITS) for name in CONTROLLER
    ]
    sites += [
        Site(f"{name}.input", "activation", f"{name}.input_quantizer", CONTROLLER_BITS) for name in CONTROLLER
    ]
    widths = {site.path: site.bits for site in placement.sites}
    for row, node in enumerate(layers):
        of_branches = [_branch(network, node, shift) for shift in shifts]
        for shift, branch in zip(shifts, of_branches, strict=True):
            if shift:
                weight = widths[f"{node.target}.weight_quantizer"]
                given = widths[str(node.all_input_nodes[0].target)]
                sites += _sites(str(branch.target), weight + shift, given + shift)
        _sum(network, node, of_branches, choice, row)
    network.graph.lint()
    network.recompile()
    kinds = ("weight", "activation")
    ordered = (site for kind in kinds for site in (*placement.sites, *sites) if site.kind == kind)
    named = tuple(str(node.target) for node in layers)
    return Dynamic(Placement(network, tuple(ordered)), named, tuple(shifts))


def decided(network: fx.GraphModule) -> None:
    """Let the masks follow from the scores alone, by operations of the graph: the largest wins, of equal ones
    the first."""
    node = named(network, TRAINED_MASKS)
    scores = node.all_input_nodes[0]
    network.delete_submodule(str(node.target))
    count = _shape(node)[2]
    device = next(network.parameters()).device
    network.register_buffer("width_numbers", torch.arange(count, device=device))
    graph = network.graph
    with graph.inserting_before(node):
        numbers = graph.get_attr("width_numbers")
        largest = graph.call_function(_aten.argmax.default, (scores, -1, True))
        same = graph.call_function(_aten.eq.Tensor, (largest, numbers))
        copied: dict[str, Any] = {"dtype": torch.float32}
        made = graph.create_node("call_function", _aten._to_copy.default, (same,), copied, name=MASKS)
    node.replace_all_uses_with(made)
    graph.erase_node(node)
    graph.lint()
    network.recompile()


@torch.no_grad()
def separate(dynamic: Dynamic) -> None:
    """Give the layers of each width a weight of their own, which so far was one for all."""
    for name in dynamic.names():
        layer = dynamic.placement.network.get_submodule(name)
        for key, parameter in layer.named_parameters(recurse=False):
            setattr(layer, key, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))


def widths_of(shares: Mapping[str, float]) -> dict[str, list[str]]:
    """Layer -> the names of it at each of its widths, of shares by such names in the order of the masks."""
    found: dict[str, list[str]] = {}
    for name in shares:
        # The narrowest comes first.
        layer = name.removesuffix(SUFFIXES[-1])
        if layer != name and layer in shares:
            known = [layer + suffix for suffix in SUFFIXES.values()]
            found[layer] = [each for each in known if each in shares]
    return found


def named(network: fx.GraphModule, name: str) -> fx.Node:
    """The node of that name."""
    return next(node for node in network.graph.nodes if node.name == name)


def _sites(layer: str, weight: int, given: int) -> list[Site]:
    return [
        Site(f"{layer}.weight", "weight", f"{layer}.weight_quantizer", weight),
        Site(f"{layer}.input", "activation", f"{layer}.input_quantizer", given),
    ]


def _controller(
    network: fx.GraphModule,
    tap: fx.Node,
    layers: int,
    widths: int,
    masks: nn.Module,
    generator: torch.Generator,
) -> fx.Node:
    channels, *sides = _shape(tap)[1:]
    pooled = [min(POOLED, side) for side in sides]
    sizes = (channels * math.prod(pooled), HIDDEN), (HIDDEN, layers * widths)
    with global_rng_of(generator):
        linears = [nn.Linear(*size) for size in sizes]
    for name, linear in zip(CONTROLLER, linears, strict=True):
        network.add_module(name, quantizable(linear))
        network.add_submodule(f"{name}.input_quantizer", nn.Identity())
    network.add_module("width_masks_of", masks)
    graph = network.graph
    pooling = _aten.adaptive_avg_pool2d if len(sides) == 2 else _aten.adaptive_avg_pool1d
    with graph.inserting_before(tap.next):
        node = graph.call_function(pooling.default, (tap, pooled))
        node = graph.call_function(_aten.flatten.using_ints, (node, 1))
        node = _linear(graph, CONTROLLER[0], node)
        node = graph.call_function(_aten.relu.default, (node,))
        node = _linear(graph, CONTROLLER[1], node)
        shape = [-1, layers, widths]
        scores = graph.create_node("call_function", _aten.view.default, (node, shape), name=SCORES)
        choice = graph.create_node("call_module", "width_masks_of", (scores,), name=TRAINED_MASKS)
    choice.meta["shape"] = (None, layers, widths)
    return choice


def _linear(graph: fx.Graph, name: str, node: fx.Node) -> fx.Node:
    return graph.call_module(name, (graph.call_module(f"{name}.input_quantizer", (node,)),))


def _branch(network: fx.GraphModule, node: fx.Node, shift: int) -> fx.Node:
    """The call of the layer with `shift` bits more; the layer's own call for none."""
    if shift == 0:
        return node
    name = f"{node.target}{SUFFIXES[shift]}"
    twin = quantizable(network.get_submodule(str(node.target)))
    twin.__dict__["_modules"] = {"weight_quantizer": nn.Identity(), "input_quantizer": nn.Identity()}
    network.set_submodule(name, twin)
    quantized = node.all_input_nodes[0]
    graph = network.graph
    with graph.inserting_before(node):
        given = graph.call_module(f"{name}.input_quantizer", quantized.args)
        branch = graph.call_module(name, (given,))
    for made, like in ((given, quantized), (branch, node)):
        made.meta.update(like.meta)
    return branch


def _sum(
    network: fx.GraphModule, node: fx.Node, branches: Sequence[fx.Node], choice: fx.Node, row: int
) -> None:
    graph = network.graph
    shape = [-1, *[1] * (len(_shape(node)) - 1)]
    masked: list[fx.Node] = []
    total: fx.Node | None = None
    with graph.inserting_before(node.next):
        of_layer = graph.call_function(_aten.select.int, (choice, 1, row))
        for column, branch in enumerate(branches):
            mask = graph.call_function(_aten.select.int, (of_layer, 1, column))
            mask = graph.call_function(_aten.view.default, (mask, shape))
            masked.append(graph.call_function(_aten.mul.Tensor, (branch, mask)))
            made = masked[-1] if total is None else graph.call_function(_aten.add.Tensor, (total, masked[-1]))
            made.meta.update(node.meta)
            total = made
    assert total is not None
    node.replace_all_uses_with(total, delete_user_cb=lambda user: user not in masked)


def _source(network: fx.GraphModule, node: fx.Node) -> fx.Node:
    """What a layer reads, before its quantizer."""
    source = node.all_input_nodes[0]
    placed = source.op == "call_module" and str(source.target).rpartition(".")[2].startswith(
        "input_quantizer"
    )
    return source.all_input_nodes[0] if placed else source


def _upstream(node: fx.Node) -> set[fx.Node]:
    pending, found = [node], set[fx.Node]()
    while pending:
        for source in pending.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                pending.append(source)
    return found


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta.get("shape", ()))
