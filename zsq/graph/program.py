"""What can be read off the nodes of an exported program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

aten = torch.ops.aten

# In eval mode they give what they take.
NOTHING = {
    *("dropout", "dropout_", "feature_dropout", "feature_dropout_", "alpha_dropout", "alpha_dropout_"),
    *("feature_alpha_dropout", "feature_alpha_dropout_", "native_dropout", "alias", "detach", "detach_"),
    *("lift_fresh_copy", "lift_fresh", "positive"),
}
_BLOCKS = {"wrap_with_autocast", "wrap_with_set_grad_enabled"}


def packet(node: fx.Node) -> str:
    """Name of the ATen operation that a node calls, without overload; "" where it calls none."""
    overload = node.target
    return overload.overloadpacket.__name__ if isinstance(overload, torch._ops.OpOverload) else ""


def arguments(node: fx.Node) -> dict[str, Any]:
    """Every argument by its name in the schema, defaults included; "input" is what the schema calls self."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    given: dict[str, Any] = {}
    for index, argument in enumerate(node.target._schema.arguments):
        name = "input" if argument.name == "self" else argument.name
        if index < len(node.args):
            given[name] = node.args[index]
        elif argument.name in node.kwargs:
            given[name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            given[name] = argument.default_value
    return given


def is_inplace(node: fx.Node) -> bool:
    """Whether it overwrites its first argument."""
    name = packet(node)
    return name.endswith("_") and not name.endswith("__") and node.target._schema.is_mutable  # type: ignore[union-attr]


def is_view(node: fx.Node) -> bool:
    """Whether what a node gives may share memory with what it takes."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__name__", "") == "getitem"
    aliases = (each.alias_info for each in node.target._schema.arguments)
    return any(alias is not None and not alias.is_write for alias in aliases)


def only_moves(node: fx.Node) -> bool:
    """Whether it gives values of its input in another shape."""
    return is_view(node) or packet(node) in ("clone", "contiguous")


def graphs(program: ExportedProgram) -> Iterator[fx.Graph]:
    """That of the program, and those of the blocks under another mode that it calls."""
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            yield module.graph


def overwrites_shared(program: ExportedProgram) -> bool:
    """Whether an operation overwrites a constant, or a tensor that others see parts of: only
    functionalization puts that right."""
    specs = program.graph_signature.input_specs
    images = {spec.arg.name for spec in specs if spec.kind == InputKind.USER_INPUT}
    return any(
        _overwrites_shared(graph, images if graph is program.graph else None) for graph in graphs(program)
    )


def _overwrites_shared(graph: fx.Graph, images: set[str] | None) -> bool:
    """`images`: the inputs that follow from the image, None for all."""
    following: set[fx.Node] = set()
    # Node -> the one that made its tensor, which operations in place give again.
    makers: dict[fx.Node, fx.Node] = {}
    viewed: set[fx.Node] = set()
    for node in graph.nodes:
        own = node.op == "placeholder" and (images is None or node.name in images)
        if own or any(source in following for source in node.all_input_nodes):
            following.add(node)
        same = is_inplace(node) or packet(node) in NOTHING
        makers[node] = makers[node.args[0]] if same and node.args[0] in makers else node
        if is_view(node):
            viewed |= {makers[source] for source in node.all_input_nodes}
    for node in graph.nodes:
        if is_inplace(node) and packet(node) not in NOTHING:
            made = makers[node.args[0]]
            alone = made in following and made.op == "call_function" and made not in viewed
            if not alone or is_view(made) or not hasattr(aten, packet(node)[:-1]):
                return True
    return False


def reads_columns(equation: str) -> bool | None:
    """Of an einsum whose second operand is a matrix: whether it is indexed (input, output), or the other way
    round; None where the product is not that of a linear layer."""
    inputs, _, output = equation.replace(" ", "").partition("->")
    first, _, second = inputs.partition(",")
    if len(second) != 2 or not first or not output or "." in second:
        return None
    for summed, made in ((second[0], second[1]), (second[1], second[0])):
        if first[-1] == summed and output == first[:-1] + made and made not in first:
            return second[0] == summed
    return None


def module_of(node: fx.Node) -> str:
    """Name of the user's module that a node is part of."""
    stack = node.meta.get("nn_module_stack") or {}
    return next((str(path) for path, _ in reversed(list(stack.values()))), "")


def is_count(node: fx.Node) -> bool:
    """Whether it gives a length that is unknown."""
    value = node.meta.get("val")
    return isinstance(value, torch.SymInt) and value.node.expr.is_symbol


def same_length(left: Any, right: Any) -> bool:
    """Whether both are the same unknown length."""
    return (
        isinstance(left, torch.SymInt)
        and isinstance(right, torch.SymInt)
        and left.node.expr == right.node.expr
    )


def block_of(node: fx.Node, constants: Mapping[fx.Node, Any]) -> tuple[fx.Graph, list[fx.Node]] | None:
    """Of a call that runs a block under another mode, such as autocast: the block, and what it takes."""
    if not isinstance(node.target, torch._ops.HigherOrderOperator) or node.target.name() not in _BLOCKS:
        return None
    args: list[Any] = list(node.args)
    index = next(i for i, each in enumerate(args) if isinstance(constants.get(each), fx.GraphModule))
    return constants[args[index]].graph, args[index + 1 :]


def with_one_unknown(lengths: Any) -> Any:
    """Lengths with -1 for the one that depends on the number of images, where there is one."""
    unknown = [index for index, each in enumerate(lengths) if isinstance(each, fx.Node)]
    if len(unknown) != 1 or -1 in lengths:
        return lengths
    return [-1 if index == unknown[0] else each for index, each in enumerate(lengths)]
