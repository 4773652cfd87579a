"""Parts of a captured network as networks of their own, over the same modules and tensors."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence

import torch
from torch import fx, nn

from zsq.graph.vocabulary import LAYER_CLASSES
from zsq.placement.units import Unit, is_image_count


def up_to(network: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """From the network's input to the values of the nodes `names`, a tuple; nothing else is computed."""
    return from_known(network, names, ())[0]


def from_known(
    network: fx.GraphModule, names: Sequence[str], known: Collection[str]
) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """From the network's input and values of nodes that are `known` to the values of the nodes `names`.

    Returns:
        The part, which takes (the network's input, a value of each of some known nodes) and gives a tuple;
        and the names of these nodes, which are the nearest ones.
    """
    needed = _needed(network, names, known)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    starts = tuple(node.name for node in network.graph.nodes if node in needed and node.name in known)
    # The input stays even where a constant is asked for: every part is called alike.
    for node in network.graph.nodes:
        if node.op == "placeholder":
            copies[node] = entry = graph.node_copy(node)
            values = {name: graph.placeholder(f"known_{name}") for name in starts}
        elif node in needed:
            copies[node] = values.get(node.name) or _copied(node, graph, copies, entry)
    by_name = {node.name: copies[node] for node in network.graph.nodes if node.name in names}
    graph.output(tuple(by_name[name] for name in names))
    return fx.GraphModule(network, graph), starts


def nearest_known(network: fx.GraphModule, names: Sequence[str], known: Collection[str]) -> set[str]:
    """Those of the nodes `known` from which `names` are computed."""
    return {node.name for node in _needed(network, names, known)} & set(known)


def _needed(network: fx.GraphModule, names: Sequence[str], known: Collection[str]) -> set[fx.Node]:
    """The nodes `names` and all that they follow from, up to known ones."""
    pending = [node for node in network.graph.nodes if node.name in names]
    needed = set(pending)
    while pending:
        node = pending.pop()
        if node.name not in known and not is_image_count(node):
            sources = set(node.all_input_nodes) - needed
            needed |= sources
            pending += sources
    return needed


def _copied(node: fx.Node, graph: fx.Graph, copies: Mapping[fx.Node, fx.Node], images: fx.Node) -> fx.Node:
    """In `graph`; the number of images is read off `images`."""
    if is_image_count(node):
        return graph.call_function(torch.ops.aten.sym_size.int, (images, 0))
    return graph.node_copy(node, copies.__getitem__)


def with_values(network: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """The same network, over the same modules, that returns (its output, the values of the nodes `names` in
    a tuple)."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(network.graph, copies)
    by_name = {node.name: copy for node, copy in copies.items()}
    graph.output((output, tuple(by_name[name] for name in names)))
    return fx.GraphModule(network, graph)


def beyond(network: fx.GraphModule, name: str) -> fx.GraphModule:
    """From (the network's input, a value of the node `name`) to the network's output.

    What the output needs and does not follow from that value is computed from the input.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in network.graph.nodes:
        if node.op == "placeholder":
            copies[node] = graph.placeholder("images")
            value = graph.placeholder("value")
        elif node.name == name:
            copies[node] = value
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return fx.GraphModule(network, graph).train(False)


def between(network: fx.GraphModule, start: str, ends: Sequence[str]) -> fx.GraphModule:
    """From a value of the node `start`, which alone of what follows from the image they need, to the values
    of the nodes `ends`, a tuple."""
    nodes = {node.name: node for node in network.graph.nodes}
    graph = fx.Graph()
    value = graph.placeholder("x")
    copies = {nodes[start]: value}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            if is_image_count(node):
                copies[node] = graph.call_function(torch.ops.aten.sym_size.int, (value, 0))
            else:
                for source in node.all_input_nodes:
                    copied(source)
                copies[node] = graph.node_copy(node, copies.__getitem__)
        return copies[node]

    graph.output(tuple(copied(nodes[name]) for name in ends))
    return fx.GraphModule(network, graph).train(False)


def unit_network(
    network: fx.GraphModule, unit: Unit, wrapped: Callable[[fx.Node, nn.Module], nn.Module]
) -> fx.GraphModule:
    """From the unit's input to its output; modules are named by their order, so that units of one structure
    are alike.

    Args:
        wrapped: (node that calls it, module) -> what stands there in the result.
    """
    nodes = {node.name: node for node in network.graph.nodes}
    graph, root = fx.Graph(), nn.Module()
    copies = {nodes[unit.input]: graph.placeholder("x")}
    targets: dict[str, str] = {}
    for node in (nodes[name] for name in unit.nodes):
        target = node.target
        if is_image_count(node):
            copies[node] = graph.call_function(torch.ops.aten.sym_size.int, (copies[nodes[unit.input]], 0))
            continue
        if node.op in ("call_module", "get_attr"):
            path = str(target)
            if path not in targets:
                targets[path] = f"part{len(targets)}"
                _attach(root, targets[path], network, node, wrapped)
            target = targets[path]
        arguments = (fx.map_arg(part, copies.__getitem__) for part in (node.args, node.kwargs))
        copies[node] = graph.create_node(node.op, target, *arguments)
    graph.output(copies[nodes[unit.output]])
    return fx.GraphModule(root, graph).train(False)


def _attach(
    root: nn.Module,
    name: str,
    network: fx.GraphModule,
    node: fx.Node,
    wrapped: Callable[[fx.Node, nn.Module], nn.Module],
) -> None:
    path = str(node.target)
    if node.op == "call_module":
        root.add_module(name, wrapped(node, _alone(network.get_submodule(path))))
        return
    value = operator.attrgetter(path)(network)
    if isinstance(value, nn.Parameter):
        root.register_parameter(name, value)
    else:
        root.register_buffer(name, value)


def _alone(module: nn.Module) -> nn.Module:
    """A layer without the quantizers of its inputs, which are modules below it but steps of their own."""
    if not isinstance(module, LAYER_CLASSES):
        return module
    layer = copy.copy(module)
    kept = {key: part for key, part in module._modules.items() if not key.startswith("input_quantizer")}
    layer._modules = kept
    return layer


def structure(network: fx.GraphModule) -> Hashable:
    """Equal for networks that compute the same with other tensors."""
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    shapes = tuple((name, tuple(t.shape), t.dtype, t.requires_grad) for name, t in tensors.items())
    return network.code, repr(dict(network.named_children())), shapes
