"""An exported program as a graph of named modules and functional ATen operations."""

from __future__ import annotations

import operator
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from zsq.core.errors import UntraceableError
from zsq.graph.attention import attention
from zsq.graph.layers import make
from zsq.graph.program import (
    NOTHING,
    arguments,
    block_of,
    is_count,
    is_inplace,
    module_of,
    only_moves,
    packet,
    reads_columns,
    same_length,
    with_one_unknown,
)
from zsq.graph.vocabulary import OPERATIONS

aten = torch.ops.aten

# Checks of lengths and devices that export leaves.
_CHECKS = {
    *("_assert_scalar", "_assert_tensor_metadata", "_assert_async", "sym_constrain_range"),
    *("sym_constrain_range_for_size", "_functional_assert_async"),
}
# They take lengths of which one may be unknown.
_SHAPING = {"view", "reshape", "_unsafe_view"}
# Ending of a parameter's name -> nothing is left of it in its layer's name.
_ROLE = re.compile(r"(\.parametrizations\.(?P<p>\w+)\.original\d*|(?P<o>weight)_(g|v|orig))$")


class Lifting:
    """One exported program on its way; `computed` names the weights that follow from other tensors."""

    def __init__(self, program: ExportedProgram, network: nn.Module) -> None:
        self.program = program
        self._submodules = dict(network.named_modules())
        self.graph = fx.Graph()
        self.parts: dict[str, Any] = {}
        self.computed: list[str] = []
        # Nodes of the program -> nodes of the graph; -> tensors that depend on no image, with their names.
        self.nodes: dict[fx.Node, fx.Node] = {}
        self.tensors: dict[fx.Node, Tensor] = {}
        self.names: dict[fx.Node, str] = {}
        # Those that are parts or other shapes of a named tensor, and those that are computed from some.
        self._folded: set[fx.Node] = set()
        self._computed: set[fx.Node] = set()
        self._by_call: dict[str, fx.Node] = {}
        self._made: dict[tuple[Any, ...], str] = {}
        self._owners: dict[int, str] = {}
        self._given_by_blocks: dict[fx.Node, Any] = {}
        # The number of images, unknown.
        self._count: Any = None
        # The last tensor so far whose first axis is the images.
        self._images: fx.Node | None = None
        # The user's module that the node at hand is part of.
        self._where = ""

    def run(self) -> tuple[fx.Graph, dict[str, Any]]:
        """The graph, and the modules and tensors that it names."""
        inputs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._take_input(node, inputs[node.name])
            elif node.op == "output":
                self._give(node)
            else:
                self._lift(node)
        # Nothing has side effects: what nobody reads is not needed.
        for node in reversed(self.graph.nodes):
            if node.op not in ("placeholder", "output") and not node.users:
                self.graph.erase_node(node)
        self.graph.lint()
        return self.graph, self._used()

    def _take_input(self, node: fx.Node, spec: Any) -> None:
        if spec.kind == InputKind.USER_INPUT:
            self.nodes[node] = self.graph.placeholder(node.name)
            self._count = node.meta["val"].shape[0]
            self._describe(node)
            return
        name = str(spec.target)
        state: Mapping[str, Any] = self.program.state_dict
        self.tensors[node] = state[name] if name in state else self.program.constants[name]
        self.names[node] = name

    def _give(self, node: fx.Node) -> None:
        specs = self.program.graph_signature.output_specs
        values: Any = node.args[0]
        flat = [each for each, spec in zip(values, specs, strict=True) if spec.kind == OutputKind.USER_OUTPUT]
        spec = self.program.call_spec.out_spec
        nested: Any = pytree.tree_unflatten([self._argument(each) for each in flat], spec)
        self.graph.output(nested)

    def _used(self) -> dict[str, Any]:
        targets = {str(node.target) for node in self.graph.nodes if node.op in ("call_module", "get_attr")}
        return {name: part for name, part in self.parts.items() if name in targets}

    def _lift(self, node: fx.Node) -> None:
        name = packet(node)
        if name in _CHECKS or getattr(node.target, "__name__", "") in _CHECKS:
            return
        if node.op == "get_attr":
            self.tensors[node] = operator.attrgetter(str(node.target))(node.graph.owning_module)
            self.names[node] = str(node.target)
            return
        block = block_of(node, self.tensors)
        if block is not None:
            self._inline(node, *block)
            return
        source = self._source(node)
        if source is not None:
            self._same(node, source)
            return
        if self._is_constant(node):
            self._fold(node)
            return
        self._where = module_of(node)
        made = self._module(node) or self._attention(node)
        self.nodes[node] = made if made is not None else self._call(node)
        self._describe(node)
        if is_inplace(node):
            before = self.nodes[node.args[0]]  # type: ignore[index]
            self.nodes |= {each: self.nodes[node] for each, made in self.nodes.items() if made is before}

    def _source(self, node: fx.Node) -> fx.Node | None:
        """What the program has already that a node only hands on."""
        given: Any = node.args[0] if node.args else None
        if packet(node) in NOTHING:
            return given
        if node.target is not operator.getitem:
            return None
        if given in self._given_by_blocks:
            return self._given_by_blocks[given][node.args[1]]
        alone = given in self.nodes and packet(given) in _SINGLE and node.args[1] == 0
        return given if alone else None

    def _inline(self, node: fx.Node, block: fx.Graph, given: list[fx.Node]) -> None:
        """The operations of a block as they are: its mode has no part in the graph."""
        if "autocast" in node.target.name() and node.args[2]:  # type: ignore[union-attr]
            warnings.warn("the network computes a part under autocast: here it is in float32", stacklevel=2)
        inputs = iter(given)
        for each in block.nodes:
            if each.op == "placeholder":
                self._same(each, next(inputs))
            elif each.op == "output":
                self._given_by_blocks[node] = each.args[0]
            else:
                self._lift(each)

    def _same(self, node: fx.Node, source: Any) -> None:
        if source in self.tensors:
            self.tensors[node], self.names[node] = self.tensors[source], self.names[source]
            self._folded |= {node} if source in self._folded else set()
            self._computed |= {node} if source in self._computed else set()
        else:
            self.nodes[node] = self.nodes[source]

    def _is_constant(self, node: fx.Node) -> bool:
        return node.op == "call_function" and all(source in self.tensors for source in node.all_input_nodes)

    def _fold(self, node: fx.Node) -> None:
        args: Any = fx.map_arg(node.args, self.tensors.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, self.tensors.__getitem__)
        call = str((node.target, fx.map_arg((node.args, node.kwargs), lambda n: id(self.tensors[n]))))
        if call in self._by_call:
            self._same(node, self._by_call[call])
            return
        self._by_call[call] = node
        sources = [source for source in node.all_input_nodes if source in self.names]
        self.tensors[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        self.names[node] = self.names[sources[0]] if sources else "constant"
        self._folded.add(node)
        if not only_moves(node) or any(source in self._computed for source in sources):
            self._computed.add(node)

    def _tensor_node(self, node: fx.Node) -> fx.Node:
        """A constant in the graph, under its own name where it has one."""
        value = self.tensors[node]
        ending = "_folded" if node in self._folded else ""
        name = self._free_name(self.names[node] + ending, value)
        self.parts[name] = value
        made = self.graph.get_attr(name)
        made.meta["shape"] = tuple(value.shape)
        return made

    def _free_name(self, name: str, value: Any) -> str:
        wanted, number = name, 1
        while wanted in self.parts and self.parts[wanted] is not value:
            wanted, number = f"{name}_{number}", number + 1
        return wanted

    def _module(self, node: fx.Node) -> fx.Node | None:
        name = _ALIASES.get(packet(node), packet(node))
        given = arguments(node)
        if OPERATIONS.get(name, OPERATIONS["add"]).kind == "product":
            name, given = "linear", self._as_linear(name, given)
        source = given.get("input")
        if not isinstance(source, fx.Node) or source in self.tensors:
            return None
        values = {
            key: self.tensors.get(value) if isinstance(value, fx.Node) else value
            for key, value in given.items()
        }
        made = make(name, values, source.meta["val"].dim())
        if made is None:
            return None
        return self.graph.call_module(self._placed(*made, given), (self.nodes[source],))

    def _as_linear(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """The linear layer's arguments that a product with a constant matrix has; none where it is none."""
        operands = [given.get("input"), given.get("mat2", given.get("other"))]
        bias: Any = None
        transposed: bool | None = True
        if name == "addmm" and given["beta"] == given["alpha"] == 1:
            bias, *operands = given["input"], given["mat1"], given["mat2"]
        elif name == "einsum":
            operands, transposed = list(given["tensors"]), reads_columns(given["equation"])
        elif name not in ("matmul", "mm"):
            return {}
        if len(operands) != 2 or operands[1] not in self.tensors or transposed is None:
            return {}
        if bias is not None and (bias not in self.tensors or self.tensors[bias].dim() != 1):
            return {}
        matrix = operands[1]
        if self.tensors[matrix].dim() != 2:
            return {}
        return {
            "input": operands[0],
            "weight": self._transposed(matrix) if transposed else matrix,
            "bias": bias,
        }

    def _transposed(self, matrix: fx.Node) -> fx.Node:
        """A node of the program's kind for the transposed tensor, which the program does not have."""
        call = f"transposed {id(self.tensors[matrix])}"
        if call not in self._by_call:
            node = fx.Graph().placeholder("transposed")
            self.tensors[node], self.names[node] = self.tensors[matrix].t(), self.names[matrix]
            self._folded.add(node)
            self._computed |= {node} if matrix in self._computed else set()
            self._by_call[call] = node
        return self._by_call[call]

    def _placed(self, module: nn.Module, tensors: dict[str, Tensor | None], given: dict[str, Any]) -> str:
        """The module's name, with its tensors in it; one module for calls that are alike, of one weight."""
        held = {key: value for key, value in tensors.items() if value is not None}
        key = (repr(module), *(id(value) for value in held.values()))
        if key in self._made:
            return self._made[key]
        sources = {key: node for key in held if isinstance(node := given.get(key), fx.Node)}
        name = self._free_name(self._owner_name(held) or self._name_after(sources), module)
        for part, value in held.items():
            parameter = part not in ("running_mean", "running_var")
            if parameter:
                module.register_parameter(part, _parameter(value))
            else:
                module.register_buffer(part, value)
        if hasattr(module, "num_batches_tracked"):
            # It has no effect in eval mode.
            counter = getattr(self._submodules.get(name), "num_batches_tracked", None)
            module.num_batches_tracked = torch.tensor(0) if counter is None else counter
        weight_node = sources.get("weight")
        if weight_node is not None:
            self._check_shared(name, held["weight"])
            if weight_node in self._computed and held["weight"].dim() > 1:
                self.computed.append(name)
        self._made[key] = name
        self.parts[name] = module
        return name

    def _owner_name(self, held: dict[str, Tensor]) -> str | None:
        """The user's module that is being called, where the tensors are its own."""
        module: Any = self._submodules.get(self._where)
        own = module is not None and all(getattr(module, key, None) is value for key, value in held.items())
        return self._where if own else None

    def _name_after(self, sources: dict[str, fx.Node]) -> str:
        first = next(sources[key] for key in ("weight", "running_mean", "bias") if key in sources)
        name = self.names[first]
        found = _ROLE.search(name)
        if found:
            name = f"{name[: found.start()].rstrip('.')}.{found['p'] or found['o']}".lstrip(".")
        for ending in (".weight", ".running_mean", ".bias", "_weight"):
            name = name.removesuffix(ending)
        return name or "layer"

    def _check_shared(self, name: str, weight: Tensor) -> None:
        """Two layers over one weight would each put it on a grid, the second one on what the first left."""
        owner = self._owners.setdefault(id(weight), name)
        if owner != name and weight.dim() > 1:
            raise UntraceableError(
                f"the layers '{owner}' and '{name}' share one weight",
                "a weight for each",
                f"give one its own: {name}.weight = nn.Parameter({name}.weight.detach().clone())",
            )

    def _call(self, node: fx.Node) -> fx.Node:
        target: Any = node.target
        if isinstance(target, torch._ops.HigherOrderOperator):
            raise UntraceableError(f"the network uses {target.name()}", "a graph of plain operations")
        if is_inplace(node):
            target = getattr(getattr(aten, packet(node)[:-1]), target._overloadname)
        args, kwargs = node.args, node.kwargs
        if packet(node) in ("hardtanh", "hardtanh_", "clamp", "clamp_") and args[1:] == (0, 6):
            target, args = aten.relu6.default, args[:1]
        if packet(node) in _SHAPING and isinstance(args[1], (list, tuple)):
            # What it reads may have another layout here than in the program.
            target = aten.reshape.default
            args = (args[0], with_one_unknown(args[1]), *args[2:])
        return self._emit(target, self._arguments(args), self._arguments(kwargs))

    def _arguments(self, value: Any) -> Any:
        return fx.map_arg(value, self._argument)

    def _argument(self, value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return value
        if value in self.tensors:
            return (
                self._tensor_node(value) if isinstance(self.tensors[value], Tensor) else self.tensors[value]
            )
        if packet(value) == "sym_size" and self._images is not None and is_count(value):
            # Read where it is needed: a part of the network is then a network.
            return self._emit(aten.sym_size.int, (self._images, 0))
        return self.nodes[value]

    def _describe(self, node: fx.Node) -> None:
        """Note the shape of what a node gives, None for lengths that depend on the number of images, and
        whether the first one is that number."""
        value, made = node.meta.get("val"), self.nodes[node]
        if not isinstance(value, Tensor):
            return
        made.meta["shape"] = tuple(length if isinstance(length, int) else None for length in value.shape)
        made.meta["images_first"] = bool(value.dim()) and same_length(value.shape[0], self._count)
        if made.meta["images_first"]:
            self._images = made

    def _emit(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> fx.Node:
        """A call, named after what is called; it notes which of the user's modules it is part of."""
        name = target.overloadpacket.__name__ if isinstance(target, torch._ops.OpOverload) else None
        node = self.graph.create_node("call_function", target, args, kwargs or {}, name)
        node.meta["module"] = self._where
        return node

    def _attention(self, node: fx.Node) -> fx.Node | None:
        if packet(node) != "scaled_dot_product_attention":
            return None
        return attention(arguments(node), self._argument, self._constant, self._emit)

    def _constant(self, name: str, value: Tensor) -> fx.Node:
        """A constant of ours; a name has one value."""
        made = self.graph.get_attr(name)
        self.parts.setdefault(name, value)
        made.meta["shape"] = tuple(value.shape)
        return made


_ALIASES = {
    "_native_batch_norm_legit_no_training": "batch_norm",
    "native_layer_norm": "layer_norm",
    "_prelu_kernel": "prelu",
}
# They give a tuple whose first part is what their module gives.
_SINGLE = {"_native_batch_norm_legit_no_training", "native_layer_norm", "native_dropout"}


def _parameter(value: Tensor) -> nn.Parameter:
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
