"""Settings of published students that go beyond the width of the first and last layer."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from torch import fx

from zsq.graph.vocabulary import is_layer, name_of, operands, operation
from zsq.placement.sites import Placement, Site
from zsq.placement.units import is_addition, quantizer_calls


def with_second_input(placement: Placement, bits: int, own: Container[str] = ()) -> Placement:
    """With `bits` for the inputs of the layers that come right after the first ones (the setting A2-8), but
    not for the rows of `own`."""
    second = {str(node.target) for node in quantizer_calls(placement) if _follows_first(placement, node)}
    sites = (
        replace(site, bits=bits) if site.path in second and site.name not in own else site
        for site in placement.sites
    )
    return Placement(placement.network, tuple(sites))


def quantize_residuals(placement: Placement) -> None:
    """Let every addition that takes a layer's input, or a view of it, take it quantized, in place."""
    for call in list(quantizer_calls(placement)):
        source = call.all_input_nodes[0]
        for user in list(source.users):
            if user is not call and _reaches_addition(placement, user):
                user.replace_input_with(source, call)
                # The quantizer comes right after its input, so before any user.
                source.append(call)
    placement.network.graph.lint()
    placement.network.recompile()


def softmax_sites(placement: Placement) -> set[Site]:
    """The sites of activations that are what a softmax gives, or views of it."""
    network, by_path = placement.network, {site.path: site for site in placement.sites}
    found = set()
    for call in quantizer_calls(placement):
        node = call.all_input_nodes[0]
        while operation(network, node).kind == "view" or operation(network, node).moments == "cast":
            node = node.all_input_nodes[0]
        if name_of(network, node) == "softmax":
            found.add(by_path[str(call.target)])
    return found


def rectified_sites(placement: Placement) -> set[Site]:
    """The sites of activations that a ReLU gives, capped or not, also pooled, moved or beside each other."""
    network, by_path = placement.network, {site.path: site for site in placement.sites}
    rectified: set[fx.Node] = set()
    for node in network.graph.nodes:
        known = operation(network, node)
        sources = {each for each in node.all_input_nodes if operation(network, each).kind != "size"}
        passes = known.kind == "pooling" or known.moments in ("moves", "cast")
        if known.scaling in ("rectify", "clip") or (passes and sources and sources <= rectified):
            rectified.add(node)
    calls = quantizer_calls(placement)
    return {by_path[str(call.target)] for call in calls if call.all_input_nodes[0] in rectified}


def channels_last_sites(placement: Placement) -> set[Site]:
    """The sites of activations that linear layers or products read, whose last axis is that of channels."""
    network, by_path = placement.network, {site.path: site for site in placement.sites}
    return {
        by_path[str(call.target)]
        for call in quantizer_calls(placement)
        if all(name_of(network, user) == "linear" or operands(network, user) for user in call.users)
    }


def _follows_first(placement: Placement, node: fx.Node) -> bool:
    before = _nearest_layers(placement, node)
    return bool(before) and not any(_nearest_layers(placement, layer) for layer in before)


def _nearest_layers(placement: Placement, node: fx.Node) -> set[fx.Node]:
    layers: set[fx.Node] = set()
    pending, seen = list(node.all_input_nodes), set()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if is_layer(placement.network, current):
            layers.add(current)
        else:
            pending += current.all_input_nodes
    return layers


def _reaches_addition(placement: Placement, node: fx.Node) -> bool:
    """Whether nothing but slices and paddings lies between `node` and an addition."""
    while not is_addition(placement.network, node):
        if node.op != "call_function" or len(node.users) != 1 or len(node.all_input_nodes) != 1:
            return False
        (node,) = node.users
    return True
