"""Where a network is quantized, read from its traced graph and never from class names.

Every Conv2d and Linear weight, per output channel. Every distinct tensor that feeds such a layer, per tensor,
with one quantizer for all its consumers. The slopes of each nn.PReLU where a student asks for it. Left in
float: the input image (8 bits already, with whatever fixed arithmetic precedes the first layer), the residual
stream (an addition takes the unquantized tensor), biases, normalisations that are not folded, elementwise
operations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from zsq.contract import QuantizedTensor
from zsq.placement.fold import fold_traced
from zsq.placement.trace import LAYERS, calls_module, trace
from zsq.quantizers.grids import Kind, Quantizer
from zsq.quantizers.layers import quantizable
from zsq.widths import FLOAT_BITS, Bits, check_first_last

# Operations whose output holds the input's values: both sides share one quantizer.
VIEW_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Unflatten)
VIEW_FUNCTIONS = {torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, F.dropout}
VIEW_METHODS = {"flatten", "reshape", "view", "permute", "transpose", "squeeze", "contiguous"}


@dataclass(frozen=True)
class Site:
    """A place for a quantizer: `name` as in the table, `path` of the sub-module that does it."""

    name: str
    kind: Kind
    path: str
    bits: int


@dataclass(frozen=True)
class Placement:
    """A traced copy of a network with a sub-module, at first an identity, at every site."""

    network: fx.GraphModule
    sites: tuple[Site, ...]

    def of_kind(self, kind: Kind) -> Iterator[Site]:
        """The sites of weights or of activations, in the order of execution."""
        return (site for site in self.sites if site.kind == kind)

    def weight(self, site: Site) -> Tensor:
        """The float weight that a weight site quantizes, output channels first; slopes of a PReLU are 1-D."""
        return self.network.get_parameter(site.name)

    def get(self, site: Site) -> nn.Module:
        """What stands at `site`."""
        return self.network.get_submodule(site.path)

    def put(self, site: Site, module: nn.Module) -> None:
        """Let `module` stand at `site`."""
        self.network.set_submodule(site.path, module)

    def table(self) -> tuple[QuantizedTensor, ...]:
        """One row per quantizer; signed where the grid has values below zero."""
        rows = []
        for site in self.sites:
            quantizer = self.get(site)
            if isinstance(quantizer, Quantizer):
                scales, signed = quantizer.num_scales, quantizer.signed
                rows.append(QuantizedTensor(site.name, site.kind, site.bits, scales, signed))
        return tuple(rows)


def row_name(path: str) -> str:
    """The table's name for the quantizer at `path`: `a.weight_quantizer` quantizes `a.weight`."""
    layer, _, place = path.rpartition(".")
    return f"{layer}.{place.replace('_quantizer', '')}"


def place(
    network: nn.Module, bits: Bits, *, first_last: int | None = None, fold: bool, slopes: bool = False
) -> Placement:
    """Sites for `bits` in a copy of `network`, BN folded into the layers before it if `fold`.

    First are the layers that no other layer precedes, last those that none follows. `first_last` replaces the
    width of their weights and of the last layers' inputs, where `bits` quantizes these at all. `slopes`:
    those of each nn.PReLU are weights too, whatever `first_last`.

    Raises:
        UntraceableError: as `trace`.
        OptionError: as `check_first_last`.
    """
    check_first_last(first_last)
    module = trace(network)
    if fold:
        fold_traced(module)
    layers = [node for node in module.graph.nodes if calls_module(module, node, LAYERS)]
    after, before = _reached(layers, forward=True), _reached(layers, forward=False)
    ends = {node for node in layers if node not in after or node not in before}
    sites = [
        *_weight_sites(module, layers, ends, bits.weights, first_last),
        *_activation_sites(
            module,
            [node for node in layers if node in after],
            {node for node in layers if node not in before},
            bits.activations,
            first_last,
        ),
    ]
    if slopes:
        prelus = [node for node in module.graph.nodes if calls_module(module, node, nn.PReLU)]
        sites += _weight_sites(module, prelus, set(), bits.weights, None)
    module.graph.lint()
    module.recompile()
    return Placement(module, tuple(sites))


def last_layers(network: fx.GraphModule) -> list[fx.Node]:
    """The calls of layers that no other layer follows."""
    layers = [node for node in network.graph.nodes if calls_module(network, node, LAYERS)]
    before = _reached(layers, forward=False)
    return [node for node in layers if node not in before]


def _reached(starts: list[fx.Node], *, forward: bool) -> set[fx.Node]:
    """Nodes downstream (or upstream) of any of `starts`, which count only when reached from another one."""
    pending = list(starts)
    reached: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        for neighbour in node.users if forward else node.all_input_nodes:
            if neighbour not in reached:
                reached.add(neighbour)
                pending.append(neighbour)
    return reached


def _width(bits: int, first_last: int | None, at_end: bool) -> int:
    return first_last if at_end and first_last is not None and bits != FLOAT_BITS else bits


def _weight_sites(
    module: fx.GraphModule, layers: list[fx.Node], ends: set[fx.Node], bits: int, first_last: int | None
) -> Iterator[Site]:
    end_names = {str(node.target) for node in ends}
    for name in dict.fromkeys(str(node.target) for node in layers):
        width = _width(bits, first_last, name in end_names)
        if width == FLOAT_BITS:
            continue
        layer = module.get_submodule(name)
        module.set_submodule(name, quantizable(layer))
        yield Site(f"{name}.weight", "weight", f"{name}.weight_quantizer", width)


def _activation_sites(
    module: fx.GraphModule, layers: list[fx.Node], last: set[fx.Node], bits: int, first_last: int | None
) -> Iterator[Site]:
    consumers: dict[fx.Node, list[fx.Node]] = {}
    for node in layers:
        consumers.setdefault(_source(module, node), []).append(node)
    taken: Counter[str] = Counter()
    for nodes in consumers.values():
        width = _width(bits, first_last, any(node in last for node in nodes))
        if width == FLOAT_BITS:
            continue
        layer = str(nodes[0].target)
        # A layer called again on another tensor gets a second quantizer.
        number = taken[layer]
        taken[layer] += 1
        suffix = str(number) if number else ""
        path = f"{layer}.input_quantizer{suffix}"
        module.add_submodule(path, nn.Identity())
        _insert(module, path, nodes)
        yield Site(f"{layer}.input{suffix}", "activation", path, width)


def _insert(module: fx.GraphModule, path: str, nodes: list[fx.Node]) -> None:
    """Call `path` once per distinct argument of `nodes`, all of them views of one tensor."""
    calls: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        argument = node.all_input_nodes[0]
        if argument not in calls:
            with module.graph.inserting_after(argument):
                calls[argument] = module.graph.call_module(path, (argument,))
        node.replace_input_with(argument, calls[argument])


def _source(module: fx.GraphModule, layer: fx.Node) -> fx.Node:
    node = layer.all_input_nodes[0]
    while _is_view(module, node):
        node = node.all_input_nodes[0]
    return node


def _is_view(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), VIEW_MODULES)
    return (node.op == "call_function" and node.target in VIEW_FUNCTIONS) or (
        node.op == "call_method" and node.target in VIEW_METHODS
    )
