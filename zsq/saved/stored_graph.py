"""A traced network as plain data and back: its graph, its modules' arguments, its tensors.

Only what `zsq.saved.operations` lists can be written or read.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor, fx, nn

from zsq.core.errors import UntraceableError
from zsq.core.records import StrictRecord, first_fault
from zsq.quantizers.grids import Quantizer
from zsq.quantizers.layers import QuantConv2d, QuantLinear, QuantPReLU
from zsq.saved.operations import ATTRIBUTES, FUNCTIONS, METHODS, MODULES
from zsq.saved.stored_grids import is_stored

# Names are written into the source that torch.fx compiles: identifiers as they are, other parts of a
# sub-module's path between quotes.
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200)]
Dotted = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$", max_length=1000)]

_NAMES = {function: name for name, function in FUNCTIONS.items()}
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32)
}


class ModuleRecord(StrictRecord):
    """One module: its class and what its constructor takes."""

    kind: str
    arguments: dict[Identifier, Any]


class NodeRecord(StrictRecord):
    """One node of the graph; `{"node": NAME}` in its arguments stands for an earlier one."""

    op: Literal["placeholder", "get_attr", "call_function", "call_method", "call_module", "output"]
    name: Identifier
    target: Dotted
    args: list[Any]
    kwargs: dict[Identifier, Any]


class GraphRecord(StrictRecord):
    """A network without its tensors; quantizers are not among the modules."""

    modules: dict[Dotted, ModuleRecord]
    nodes: list[NodeRecord]


def record_graph(network: nn.Module) -> GraphRecord:
    """The graph and modules of a traced network.

    Raises:
        UntraceableError: not traced, or made of a module, function or value that cannot be written.
    """
    if not isinstance(network, fx.GraphModule):
        raise UntraceableError(f"a {type(network).__name__} has no graph to save", "a traced network")
    nodes = [_record_node(node) for node in network.graph.nodes]
    called = dict.fromkeys(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    modules = {
        path: _record_module(path, network.get_submodule(path))
        for path in called
        if not is_stored(network.get_submodule(path))
    }
    try:
        return GraphRecord.model_validate({"modules": modules, "nodes": nodes})
    except ValidationError as error:
        found = f"the graph cannot be saved: {first_fault(error)}"
        raise UntraceableError(found, "", _REMEDY) from None


def graph_tensors(network: fx.GraphModule) -> dict[str, Tensor]:
    """Every tensor that the graph uses, by its name in the network's state dict."""
    state = network.state_dict()
    used = [str(node.target) for node in network.graph.nodes if node.op in ("call_module", "get_attr")]
    # A quantizer of an input is kept inside its layer, and is called by a path of its own.
    return {
        name: tensor
        for name, tensor in state.items()
        if any(name == path or name.startswith(f"{path}.") for path in used)
    }


def build_graph(
    record: GraphRecord, quantizers: Mapping[str, Quantizer], tensors: Mapping[str, Tensor]
) -> fx.GraphModule:
    """The network of `record` with `quantizers` at their paths, over `tensors`; in eval mode, frozen.

    Raises:
        ValueError and others: a record or tensors that make no network.
    """
    parts: dict[str, Any] = {path: _build_module(part) for path, part in record.modules.items()}
    for path, quantizer in quantizers.items():
        layer = path.removesuffix(".weight_quantizer")
        if layer == path:
            parts[path] = quantizer
        else:
            parts[layer].weight_quantizer = quantizer
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    for node in record.nodes:
        if node.op == "get_attr":
            parts[node.target] = tensors[node.target]
        made[node.name] = graph.create_node(
            node.op,
            _target(node),
            tuple(_decode(value, made) for value in node.args),
            {key: _decode(value, made) for key, value in node.kwargs.items()},
            node.name,
        )
    graph.lint()
    network = fx.GraphModule(parts, graph, "SavedStudent")
    network.load_state_dict(dict(tensors), strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _record_node(node: fx.Node) -> dict[str, Any]:
    target = _NAMES.get(node.target) if callable(node.target) else node.target
    if target is None or (node.op == "call_method" and target not in METHODS):
        found = getattr(node.target, "__name__", str(node.target))
        raise UntraceableError(f"the operation {found} (node '{node.name}') cannot be saved", "", _REMEDY)
    return {
        "op": node.op,
        "name": node.name,
        "target": target,
        "args": [_encode(value) for value in node.args],
        "kwargs": {key: _encode(value) for key, value in node.kwargs.items()},
    }


_REMEDY = "a student of this network can be used and scored, but not saved"


def _target(node: NodeRecord) -> Any:
    if node.op == "call_method" and node.target not in METHODS:
        raise ValueError(f"method {node.target} is not one of those a student may call")
    if node.op != "call_function":
        return node.target
    if node.target not in FUNCTIONS:
        raise ValueError(f"function {node.target} is not one of those a student may call")
    if node.target == "builtins.getattr" and (len(node.args) != 2 or node.args[1] not in ATTRIBUTES):
        raise ValueError(f"getattr{tuple(node.args[1:])} is not one of those a student may read")
    return FUNCTIONS[node.target]


def _record_module(path: str, module: nn.Module) -> dict[str, Any]:
    kind = next((base for base in type(module).__mro__ if MODULES.get(base.__name__) is base), nn.Module)
    quantizer = getattr(module, "weight_quantizer", None)
    # A subclass with a forward of its own computes something else.
    own = kind is nn.Module or type(module).forward is not kind.forward
    if own or not (type(quantizer) in (nn.Identity, type(None)) or is_stored(quantizer)):
        found = f"the module {type(module).__name__} ('{path}') cannot be saved"
        raise UntraceableError(found, "", _REMEDY)
    names = [name for name in inspect.signature(kind).parameters if hasattr(module, name)]
    arguments = {name: _argument(getattr(module, name), name) for name in names}
    return {"kind": kind.__name__, "arguments": arguments}


def _argument(value: Any, name: str) -> Any:
    """Constructors take whether there is a bias, modules hold the bias itself."""
    return _encode(value is not None if name == "bias" else value)


def _build_module(record: ModuleRecord) -> nn.Module:
    if record.kind not in MODULES:
        raise ValueError(f"module {record.kind} is not one of those a student may have")
    arguments = {name: _decode(value, {}) for name, value in record.arguments.items()}
    with torch.device("meta"):
        module = MODULES[record.kind](**arguments)
    if isinstance(module, QuantConv2d | QuantLinear | QuantPReLU):
        module.weight_quantizer = nn.Identity()
    return module


def _encode(value: Any) -> Any:
    """JSON of a value in a graph or a constructor."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, slice):
        return {"slice": [_encode(part) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, tuple):
        return {"tuple": [_encode(part) for part in value]}
    if isinstance(value, list):
        return [_encode(part) for part in value]
    if value is ...:
        return {"ellipsis": True}
    if isinstance(value, torch.dtype) and str(value).removeprefix("torch.") in _DTYPES:
        return {"dtype": str(value).removeprefix("torch.")}
    raise UntraceableError(f"the value {value!r} of the graph cannot be saved", "", _REMEDY)


def _decode(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    """What `_encode` took."""
    if isinstance(value, list):
        return [_decode(part, nodes) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    if kind == "float":
        return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[content]
    if kind == "ellipsis":
        return ...
    if kind == "dtype":
        return _DTYPES[content]
    parts = tuple(_decode(part, nodes) for part in content)
    if kind not in ("tuple", "slice"):
        raise ValueError(f"no value is a '{kind}'")
    return parts if kind == "tuple" else slice(*parts)
