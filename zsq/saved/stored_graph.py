"""A captured network as plain data and back: its graph, its modules' arguments, its tensors.

Only what `zsq.saved.operations` finds can be written or read.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor, fx, nn

from zsq.core.errors import UntraceableError
from zsq.core.records import StrictRecord, first_fault
from zsq.quantizers.grids import Quantizer
from zsq.quantizers.layers import QUANTIZED
from zsq.saved.operations import MODULES, called, name_in_file
from zsq.saved.stored_grids import is_stored

# Names are written into the source that torch.fx compiles: identifiers as they are, other parts of a
# sub-module's path between quotes.
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200)]
Dotted = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$", max_length=1000)]

_TYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)
# Values of torch's own that calls take, by their kind and name.
_CONSTANTS: dict[str, dict[str, Any]] = {
    "dtype": {str(dtype).removeprefix("torch."): dtype for dtype in _TYPES},
    "layout": {"strided": torch.strided},
    "memory_format": {
        str(value).removeprefix("torch."): value
        for value in (
            torch.contiguous_format,
            torch.preserve_format,
            torch.channels_last,
            torch.channels_last_3d,
        )
    },
    # Wherever it was made, a student is loaded to the CPU.
    "device": {"cpu": torch.device("cpu")},
}
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
# Where a tensor is, and of what type, is said by the file that holds the tensors.
_NOT_STORED = ("device", "dtype")


class ModuleRecord(StrictRecord):
    """One module: its class and what its constructor takes."""

    kind: str
    arguments: dict[Identifier, Any]


class NodeRecord(StrictRecord):
    """One node of the graph; `{"node": NAME}` in its arguments stands for an earlier one."""

    op: Literal["placeholder", "get_attr", "call_function", "call_module", "output"]
    name: Identifier
    target: Dotted
    args: list[Any]
    kwargs: dict[Identifier, Any]


class GraphRecord(StrictRecord):
    """A network without its tensors; quantizers are not among the modules."""

    modules: dict[Dotted, ModuleRecord]
    nodes: list[NodeRecord]


def record_graph(network: nn.Module) -> GraphRecord:
    """The graph and modules of a captured network.

    Raises:
        UntraceableError: not captured, or made of a module, operation or value that cannot be written.
    """
    if not isinstance(network, fx.GraphModule):
        raise UntraceableError(f"a {type(network).__name__} has no graph to save", "a captured network")
    nodes = [_record_node(node) for node in network.graph.nodes]
    paths = dict.fromkeys(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    modules = {
        path: _record_module(path, network.get_submodule(path))
        for path in paths
        if not is_stored(network.get_submodule(path))
    }
    for name, tensor in graph_tensors(network).items():
        if tensor.dtype not in _TYPES:
            raise UntraceableError(f"the tensor '{name}' of {tensor.dtype} cannot be saved", "", _REMEDY)
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
            called(node.target) if node.op == "call_function" else node.target,
            tuple(_decode(value, made) for value in node.args),
            {key: _decode(value, made) for key, value in node.kwargs.items()},
            node.name,
        )
    graph.lint()
    network = fx.GraphModule(parts, graph, "SavedStudent")
    network.load_state_dict(dict(tensors), strict=True, assign=True)
    for module in network.modules():
        # A captured network does not count the batches that its statistics were made of; torch adds zero.
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.num_batches_tracked = None
    return network.eval().requires_grad_(False)


def move_to(network: fx.GraphModule, device: torch.device | str) -> fx.GraphModule:
    """`network` itself on `device`, with the devices that its calls name."""
    place = torch.device(device)
    for node in network.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, lambda value: _moved(value, place))
        node.kwargs = fx.node.map_aggregate(node.kwargs, lambda value: _moved(value, place))
    network.recompile()
    return network.to(place)


def _moved(value: Any, device: torch.device) -> Any:
    return device if isinstance(value, torch.device) else value


def _record_node(node: fx.Node) -> dict[str, Any]:
    target = name_in_file(node.target) if node.op == "call_function" else node.target
    if target is None:
        found = f"the operation {node.target} (node '{node.name}') cannot be saved"
        raise UntraceableError(found, "", _REMEDY)
    return {
        "op": node.op,
        "name": node.name,
        "target": target,
        "args": [_encode(value) for value in node.args],
        "kwargs": {key: _encode(value) for key, value in node.kwargs.items()},
    }


_REMEDY = "a student of this network can be used and scored, but not saved"


def _record_module(path: str, module: nn.Module) -> dict[str, Any]:
    kind = next((base for base in type(module).__mro__ if MODULES.get(base.__name__) is base), nn.Module)
    quantizer = getattr(module, "weight_quantizer", None)
    # A subclass with a forward of its own computes something else.
    own = kind is nn.Module or type(module).forward is not kind.forward
    if own or not (type(quantizer) in (nn.Identity, type(None)) or is_stored(quantizer)):
        found = f"the module {type(module).__name__} ('{path}') cannot be saved"
        raise UntraceableError(found, "", _REMEDY)
    arguments = {name: _argument(getattr(module, name), name) for name in _parameters(kind, module)}
    return {"kind": kind.__name__, "arguments": arguments}


def _parameters(kind: type[nn.Module], module: nn.Module) -> Iterator[str]:
    """What the constructor of `kind` takes and `module` remembers."""
    for base in kind.__mro__:
        names = inspect.signature(base).parameters
        # A constructor that hands on whatever it is given does not name it.
        if "args" not in names:
            return (name for name in names if name not in _NOT_STORED and hasattr(module, name))
    raise AssertionError(f"{kind.__name__} has a constructor")


def _argument(value: Any, name: str) -> Any:
    """Constructors take whether there is a bias, modules hold the bias itself."""
    return _encode(value is not None if name == "bias" else value)


def _build_module(record: ModuleRecord) -> nn.Module:
    if record.kind not in MODULES:
        raise ValueError(f"module {record.kind} is not one of those a student may have")
    unwanted = next((name for name in record.arguments if name in _NOT_STORED), None)
    if unwanted is not None:
        raise ValueError(f"module {record.kind} takes no {unwanted}")
    arguments = {name: _decode(value, {}) for name, value in record.arguments.items()}
    with torch.device("meta"):
        module = MODULES[record.kind](**arguments)
    if isinstance(module, tuple(QUANTIZED.values())):
        module.weight_quantizer = nn.Identity()
    return module


def _encode(value: Any) -> Any:
    """JSON of a value in a graph or a constructor; of an output also of a dict."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    # A tuple with names would come back without them.
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return {"tuple": [_encode(part) for part in value]}
    if isinstance(value, list):
        return [_encode(part) for part in value]
    if isinstance(value, dict) and all(type(key) in (int, str) for key in value):
        return {"dict": [[key, _encode(part)] for key, part in value.items()]}
    if isinstance(value, torch.device):
        return {"device": "cpu"}
    for kind, known in _CONSTANTS.items():
        name = str(value).removeprefix("torch.")
        if known.get(name) is value:
            return {kind: name}
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
        return _FLOATS[content]
    if kind in _CONSTANTS:
        return _CONSTANTS[kind][content]
    if kind == "tuple":
        return tuple(_decode(part, nodes) for part in content)
    if kind != "dict" or any(type(key) not in (int, str) for key, _ in content):
        raise ValueError(f"no value is a '{kind}'")
    return {key: _decode(part, nodes) for key, part in content}
