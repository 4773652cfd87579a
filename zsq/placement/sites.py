"""Where a network is quantized, read from its captured graph and never from class names.

The weight of every layer (convolution, transposed convolution, linear), per output channel. Every distinct
tensor that feeds such a layer, and both operands of every product of two activations (attention), per tensor,
with one quantizer for all that read it. The slopes of each PReLU where a student asks for it. Left in float:
the input image (8 bits already, with whatever fixed arithmetic precedes the first layer), the residual
stream (an addition takes the unquantized tensor), biases, normalisations that are not folded, elementwise
operations.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, fx, nn

from zsq.contract import FittedStudent, QuantizedTensor
from zsq.core.errors import OptionError, UntraceableError
from zsq.graph import capture
from zsq.graph.fold import fold_batch_norms
from zsq.graph.vocabulary import calls_module, is_layer, multiplied, name_of, operands, operation
from zsq.quantizers.grids import Quantizer
from zsq.quantizers.layers import quantizable
from zsq.widths import FLOAT_BITS, Bits, Kind, Widths

# Of the operands of a product.
SIDES = ("left", "right")
# A tensor and what reads it: the reader, and its argument, which is the tensor or a view of it.
Read = tuple[fx.Node, fx.Node]


@dataclass(frozen=True)
class Site:
    """A place for a quantizer: `name` as in the table, `path` of the sub-module that does it."""

    name: str
    kind: Kind
    path: str
    bits: int


@dataclass(frozen=True)
class Placement:
    """A captured copy of a network with a sub-module, at first an identity, at every site."""

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
    network: nn.Module,
    example: Tensor | None,
    bits: Bits,
    *,
    first_last: int | None = None,
    fold: bool,
    slopes: bool = False,
) -> Placement:
    """Sites for `bits` in a copy of `network`, BN folded into the layers before it if `fold`.

    First are the layers that no other layer precedes, last those that none follows. `first_last` replaces the
    width of their weights and of the last layers' inputs, where `bits` quantizes these at all. A row that has
    a width of its own in `bits` has that one. `slopes`: those of each PReLU are weights too, whatever
    `first_last`.

    Args:
        example: as `zsq.graph.capture` takes it.

    Raises:
        UntraceableError: as `zsq.graph.capture`; or an operation with weights that is not known.
        OptionError: as `check_first_last`; or a width for a row that the network does not have.
    """
    widths = Widths(bits, first_last)
    module = capture(network, example)
    _refuse_unknown(module)
    if fold:
        fold_batch_norms(module)
    layers = [node for node in module.graph.nodes if is_layer(module, node)]
    ends, last, behind = end_layers(module), set(last_layers(module)), _reached(layers, forward=True)
    sites = [
        *_weight_sites(module, layers, ends, widths),
        *_activation_sites(module, behind, last, widths),
    ]
    if slopes:
        prelus = [node for node in module.graph.nodes if calls_module(module, node, nn.PReLU)]
        sites += _weight_sites(module, prelus, set(), widths)
    widths.check_rows()
    module.graph.lint()
    module.recompile()
    return Placement(module, tuple(sites))


def placement_of(fitted: FittedStudent) -> Placement:
    """The sites of a fitted student, in a copy of its network with the quantizers in place."""
    network = copy.deepcopy(fitted.network)
    assert isinstance(network, fx.GraphModule)
    paths = {row_name(path): path for path, part in network.named_modules() if isinstance(part, Quantizer)}
    sites = (Site(row.name, row.kind, paths[row.name], row.bits) for row in fitted.tensors)
    return Placement(network, tuple(sites))


def check_placeable(network: nn.Module, example: Tensor, bits: Bits) -> None:
    """Refuse a network that no quantizers of `bits` can be placed in, before images are made for it.

    Raises:
        UntraceableError: as `zsq.graph.capture`; or an operation with weights that is not known.
        OptionError: a width for a row that the network has neither with its batch norms nor without.
    """
    if not bits.own:
        _refuse_unknown(capture(network, example))
        return
    try:
        place(network, example, bits, fold=True, slopes=True)
    except OptionError:
        place(network, example, bits, fold=False, slopes=True)


def _refuse_unknown(module: fx.GraphModule) -> None:
    """An operation that nothing is known of may do anything with a weight that it is given."""
    for node in module.graph.nodes:
        known = node.op != "call_function" or operation(module, node).saved
        weights = (n for n in node.all_input_nodes if n.op == "get_attr" and len(n.meta.get("shape", ())) > 1)
        weight = None if known else next(weights, None)
        if weight is not None:
            where = node.meta.get("module") or weight.target
            raise UntraceableError(
                f"no quantizer for {name_of(module, node)} ('{where}')",
                "convolutions, linear layers and products",
                "write it with these",
            )


def end_layers(network: fx.GraphModule) -> set[fx.Node]:
    """The calls of layers that no other layer precedes, or that none follows."""
    layers = [node for node in network.graph.nodes if is_layer(network, node)]
    after, before = _reached(layers, forward=True), _reached(layers, forward=False)
    return {node for node in layers if node not in after or node not in before}


def last_layers(network: fx.GraphModule) -> list[fx.Node]:
    """The calls of layers that no other layer follows."""
    layers = [node for node in network.graph.nodes if is_layer(network, node)]
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


def _weight_sites(
    module: fx.GraphModule, layers: list[fx.Node], ends: set[fx.Node], widths: Widths
) -> Iterator[Site]:
    end_names = {str(node.target) for node in ends}
    for name in dict.fromkeys(str(node.target) for node in layers):
        width = widths.of(f"{name}.weight", "weight", name in end_names)
        if width == FLOAT_BITS:
            continue
        layer = module.get_submodule(name)
        module.set_submodule(name, quantizable(layer))
        yield Site(f"{name}.weight", "weight", f"{name}.weight_quantizer", width)


def _activation_sites(
    module: fx.GraphModule, behind: set[fx.Node], last: set[fx.Node], widths: Widths
) -> Iterator[Site]:
    """Sites of what layers and products read behind a first layer: `behind` are the nodes that follow one."""
    readers: dict[fx.Node, list[Read]] = {}
    for node in module.graph.nodes:
        if node in behind:
            for argument in multiplied(module, node):
                readers.setdefault(source_of(module, argument), []).append((node, argument))
    taken: Counter[str] = Counter()
    names = _product_names(module)
    for reads in readers.values():
        name = _input_name(module, names, *reads[0])
        # A layer called again on another tensor gets a second quantizer.
        number = taken[name]
        taken[name] += 1
        name += str(number) if number else ""
        width = widths.of(name, "activation", any(node in last for node, _ in reads))
        if width == FLOAT_BITS:
            continue
        path = _path_of(name)
        module.add_submodule(path, nn.Identity())
        _insert(module, path, reads)
        yield Site(name, "activation", path, width)


def _product_names(module: fx.GraphModule) -> dict[fx.Node, str]:
    """Every product by the user's module that it is part of, numbered where that has several."""
    names: dict[fx.Node, str] = {}
    counts: Counter[str] = Counter()
    for node in module.graph.nodes:
        if operands(module, node):
            name = ".".join(filter(None, (node.meta.get("module", ""), name_of(module, node))))
            names[node] = f"{name}{counts[name] or ''}"
            counts[name] += 1
    return names


def _input_name(
    module: fx.GraphModule, products: dict[fx.Node, str], node: fx.Node, argument: fx.Node
) -> str:
    if node not in products:
        return f"{node.target}.input"
    return f"{products[node]}.{SIDES[min(operands(module, node).index(argument), 1)]}"


def _path_of(name: str) -> str:
    """`a.input1` -> `a.input_quantizer1`."""
    stem = name.rstrip("0123456789")
    return f"{stem}_quantizer{name[len(stem) :]}"


def _insert(module: fx.GraphModule, path: str, reads: list[Read]) -> None:
    """Call `path` once per distinct argument, all of them views of one tensor."""
    calls: dict[fx.Node, fx.Node] = {}
    for node, argument in reads:
        if argument not in calls:
            with module.graph.inserting_after(argument):
                calls[argument] = module.graph.call_module(path, (argument,))
            calls[argument].meta.update(argument.meta)
        node.replace_input_with(argument, calls[argument])


def source_of(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The tensor that a node's value is a view of; the node itself where it is none."""
    while operation(module, node).kind == "view":
        node = node.all_input_nodes[0]
    return node
