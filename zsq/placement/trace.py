"""From a network to its graph: a traced copy in which every weight is in a layer we can quantize."""

from __future__ import annotations

import copy
import operator
import traceback
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import fx, nn

from zsq.core.errors import UntraceableError
from zsq.quantizers.layers import make_trainable

LAYERS = (nn.Conv2d, nn.Linear)

# Operations that multiply by a tensor which may be a weight, outside of any layer.
PRODUCTS = {
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    F.linear, F.bilinear, F.embedding, F.multi_head_attention_forward, F.scaled_dot_product_attention,
    torch.conv1d, torch.conv2d, torch.conv3d, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm,
    torch.einsum, torch.tensordot, operator.matmul,
}  # fmt: skip
PRODUCT_METHODS = {"matmul", "mm", "bmm", "addmm", "baddbmm", "__matmul__"}


REMEDY = "write it as nn.Conv2d or nn.Linear"


class _Tracer(fx.Tracer):
    """Keeps whole the layers we quantize, user subclasses with the parent's own `forward` included."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        inherited = type(m).forward in (nn.Conv2d.forward, nn.Linear.forward)
        return inherited or super().is_leaf_module(m, module_qualified_name)


def calls_module(network: fx.GraphModule, node: fx.Node, kinds: type | tuple[type, ...]) -> bool:
    """Whether the node calls a module of `kinds`."""
    return node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), kinds)


def trace(network: nn.Module) -> fx.GraphModule:
    """A traced deep copy in eval mode, module names kept; `network` itself is not touched.

    Its convolutions are of a kind that may be trained, see `TrainableConv2d`.

    Raises:
        UntraceableError: control flow that depends on data, an operation with weights outside of Conv2d and
            Linear, two of these over one weight, or an output that is not one tensor.
    """
    copied = copy.deepcopy(network).eval()
    tracer = _Tracer()
    try:
        graph = tracer.trace(copied)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UntraceableError(
            f"the network cannot be traced{_place_of(error)}: {reason}",
            "a graph without control flow on data",
        ) from None
    module = fx.GraphModule(tracer.root, graph, type(network).__name__)
    for node in graph.nodes:
        _refuse_unplaceable(module, node)
    _refuse_shared(module)
    make_trainable(module)
    return module


def _place_of(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not Path(frame.filename).is_relative_to(Path(torch.__file__).parent)]
    # The first frame is this file's call of the tracer.
    if len(own) < 2:
        return ""
    return f" at {Path(own[-1].filename).name}:{own[-1].lineno} `{own[-1].line}`"


def _refuse_unplaceable(module: fx.GraphModule, node: fx.Node) -> None:
    if node.op == "output" and not isinstance(node.args[0], fx.Node):
        found = f"the network returns a {type(node.args[0]).__name__}"
        raise UntraceableError(found, "one tensor of logits or embeddings")
    if _is_product(module, node):
        name = getattr(node.target, "__name__", str(node.target))
        raise UntraceableError(f"no quantizer for {name} (node '{node.name}'{_user_of(node)})", "", REMEDY)
    if node.op == "call_module":
        _refuse_unplaceable_module(str(node.target), module.get_submodule(str(node.target)))


def _is_product(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in PRODUCT_METHODS
    if node.op != "call_function" or node.target in PRODUCTS:
        return node.op == "call_function"
    # A function kept whole by torch.fx.wrap may do anything with a weight that it is given.
    package = (getattr(node.target, "__module__", None) or "torch").split(".")[0]
    weights = (operator.attrgetter(str(n.target))(module) for n in node.all_input_nodes if n.op == "get_attr")
    return package not in ("torch", "_operator", "builtins", "math") and any(w.dim() > 1 for w in weights)


def _refuse_unplaceable_module(name: str, layer: nn.Module) -> None:
    kind = type(layer).__name__
    if isinstance(layer, LAYERS):
        if not isinstance(layer.weight, nn.Parameter):
            found = f"the weight of {kind} '{name}' is computed from others"
            raise UntraceableError(found, "", "remove its parametrization first")
    elif not isinstance(layer, nn.LayerNorm) and any(p.dim() > 1 for p in layer.parameters()):
        raise UntraceableError(f"no quantizer for {kind} ('{name}')", "", REMEDY)


def _refuse_shared(module: fx.GraphModule) -> None:
    """Two layers over one weight would each put it on a grid, the second one on what the first has left."""
    owners: dict[int, str] = {}
    for name in dict.fromkeys(str(n.target) for n in module.graph.nodes if calls_module(module, n, LAYERS)):
        owner = owners.setdefault(id(module.get_submodule(name).weight), name)
        if owner != name:
            raise UntraceableError(
                f"the layers '{owner}' and '{name}' share one weight",
                "a weight for each",
                f"give one its own: {name}.weight = nn.Parameter({name}.weight.detach().clone())",
            )


def _user_of(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    names = [str(entry[0]) for entry in stack.values() if entry[0]]
    return f" in '{names[-1]}'" if names else ""
