"""The one table of operations: what each is, and how what the toolkit computes passes through it.

An operation is known by its ATen name without overload, such as "relu"; a layer or normalisation that is a
module of the graph by the name of the function it calls, such as "conv2d". A new operation is one line here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn

from zsq.graph.layers import CappedReLU

Kind = Literal[
    "layer",  # weights on an activation: its weight and its input are quantized
    "product",  # two activations multiplied and summed: both are quantized
    "addition",
    "gate",  # two tensors multiplied element by element
    "view",  # the input's values in another shape or order: both sides share one quantizer
    "activation",
    "pooling",
    "normalisation",
    "joining",  # tensors side by side
    "size",  # lengths, not values
    "other",
]
# How Gaussian moments pass: see `zsq.engine.walk`. "moves" also holds for plain sums.
MomentRule = Literal[
    "weighted", "affine", "moves", "cast", "pad", "elementwise", "average", "maximum", "sum", "product",
    "quotient",
]  # fmt: skip
# What comes out where each channel of the input is multiplied by a positive factor: the same with the factor;
# for "clip" only where its bound is moved too. "rectify" also says that it is a ReLU.
Scaling = Literal["passes", "rectify", "clip"]


@dataclass(frozen=True)
class Operation:
    """What is known of one operation.

    Attributes:
        saved: whether a student's file may name it.
        moments: the rule by which mean and variance pass; None: they are lost.
        scaling: how a positive factor per channel passes; None: it does not.
        shifts: whether a constant added per channel to values above zero comes out unchanged.
    """

    kind: Kind
    moments: MomentRule | None = None
    scaling: Scaling | None = None
    shifts: bool = False
    saved: bool = True


def _each(names: str, operation: Operation) -> dict[str, Operation]:
    return dict.fromkeys(names.split(), operation)


OPERATIONS: dict[str, Operation] = {
    **_each(
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear",
        Operation("layer", "weighted"),
    ),
    **_each("matmul bmm mm mv addmm baddbmm einsum bilinear", Operation("product")),
    **_each("add rsub", Operation("addition", "sum")),
    "sub": Operation("addition", "sum"),
    "mul": Operation("gate", "product"),
    "div": Operation("gate", "quotient"),
    # Views.
    **_each("contiguous clone alias detach", Operation("view", "moves", "passes", shifts=True)),
    **_each(
        "flatten view reshape _unsafe_view unflatten transpose permute t squeeze unsqueeze movedim swapaxes "
        "swapdims numpy_T adjoint view_as reshape_as",
        Operation("view", "moves"),
    ),
    # They take a part, move, repeat or join values.
    **_each(
        "slice select narrow split split_with_sizes chunk unbind flip roll expand expand_as repeat tile "
        "repeat_interleave pixel_shuffle pixel_unshuffle channel_shuffle upsample_nearest1d "
        "upsample_nearest2d upsample_nearest3d gather index index_select tril triu im2col "
        "col2im unfold diagonal narrow_copy broadcast_tensors meshgrid rot90 sum cumsum",
        Operation("other", "moves"),
    ),
    **_each("_to_copy to type_as", Operation("other", "cast")),
    **_each("cat concat stack hstack vstack", Operation("joining", "moves")),
    **_each("constant_pad_nd", Operation("other", "pad")),
    "pad": Operation("other", "pad"),
    **_each(
        "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
        "replication_pad3d",
        Operation("other", "moves"),
    ),
    **_each(
        "upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler affine_grid_generator",
        Operation("other"),
    ),
    # Functions of one value at a time.
    "relu": Operation("activation", "elementwise", "rectify", shifts=True),
    **_each("relu6 capped_relu", Operation("activation", "elementwise", "clip")),
    **_each("leaky_relu prelu", Operation("activation", "elementwise", "passes")),
    **_each(
        "sigmoid tanh silu gelu hardswish hardsigmoid hardtanh elu celu selu softplus mish log_sigmoid "
        "hardshrink softshrink threshold rrelu",
        Operation("activation", "elementwise"),
    ),
    "glu": Operation("activation"),
    **_each(
        "clamp clamp_min clamp_max abs pow exp exp2 neg sqrt rsqrt log log2 log1p expm1 square reciprocal "
        "erf sin cos atan atan2 sign round floor ceil trunc",
        Operation("activation", "elementwise"),
    ),
    **_each(
        "avg_pool1d avg_pool2d avg_pool3d",
        Operation("pooling", "average", "passes"),
    ),
    **_each(
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
        Operation("pooling", "average", "passes", shifts=True),
    ),
    "mean": Operation("pooling", "average"),
    **_each("max_pool1d max_pool2d max_pool3d", Operation("pooling", "maximum", "passes")),
    **_each(
        "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
        Operation("pooling", None, "passes", shifts=True),
    ),
    **_each("max_pool2d_with_indices max_pool3d_with_indices", Operation("pooling")),
    **_each("batch_norm", Operation("normalisation", "affine")),
    **_each(
        "layer_norm group_norm instance_norm rms_norm softmax log_softmax",
        Operation("normalisation"),
    ),
    **_each("sym_size sym_numel sym_stride", Operation("size")),
    # Sums over axes, comparisons and made tensors.
    **_each(
        "prod amax amin max min maximum minimum argmax argmin var var_mean std std_mean norm "
        "linalg_vector_norm cumprod topk sort any all logsumexp where eq ne lt le gt ge logical_not "
        "logical_and logical_or bitwise_not bitwise_and bitwise_or zeros ones full fill arange linspace eye "
        "zeros_like ones_like full_like new_zeros new_ones new_full scalar_tensor fmod remainder "
        "floor_divide lerp addcmul addcdiv scatter index_put copy slice_scatter select_scatter embedding "
        "one_hot outer cross masked_fill isnan nan_to_num",
        Operation("other"),
    ),
    # What it holds is what the memory held before.
    "empty": Operation("other", saved=False),
}

# Arithmetic on lengths, and parts of what gives several tensors.
_LENGTHS = (
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod, operator.neg,
    operator.pow,
)  # fmt: skip
PYTHON_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "operator.getitem": operator.getitem,
    **{f"operator.{function.__name__}": function for function in _LENGTHS},
}
_GETITEM = Operation("other", "moves")
_LENGTH = Operation("size")
_UNKNOWN = Operation("other", saved=False)

LAYERS: dict[type[nn.Module], str] = {
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
    nn.Linear: "linear",
}
_OTHER_MODULES: dict[type[nn.Module], str] = {
    nn.BatchNorm1d: "batch_norm",
    nn.BatchNorm2d: "batch_norm",
    nn.BatchNorm3d: "batch_norm",
    nn.InstanceNorm1d: "instance_norm",
    nn.InstanceNorm2d: "instance_norm",
    nn.InstanceNorm3d: "instance_norm",
    nn.LayerNorm: "layer_norm",
    nn.GroupNorm: "group_norm",
    nn.RMSNorm: "rms_norm",
    nn.PReLU: "prelu",
    CappedReLU: "capped_relu",
}
# Every class of module that a captured graph has, and the operation that it calls.
MODULES: Mapping[type[nn.Module], str] = {**LAYERS, **_OTHER_MODULES}
LAYER_CLASSES: tuple[type[nn.Module], ...] = tuple(LAYERS)


def name_of(network: fx.GraphModule, node: fx.Node) -> str | None:
    """The operation that a node calls, as in `OPERATIONS`; None for what no name stands for: the input,
    constants, the output, quantizers."""
    if node.op == "call_module":
        kinds = type(network.get_submodule(str(node.target))).__mro__
        return next((MODULES[kind] for kind in kinds if kind in MODULES), None)
    if node.op != "call_function":
        return None
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target.overloadpacket.__name__
    return getattr(node.target, "__name__", None)


def operation(network: fx.GraphModule, node: fx.Node) -> Operation:
    """What is known of what a node calls."""
    if node.op == "call_function" and not isinstance(node.target, torch._ops.OpOverload):
        if node.target is operator.getitem:
            return _GETITEM
        return _LENGTH if node.target in _LENGTHS else _UNKNOWN
    name = name_of(network, node)
    return _UNKNOWN if name is None else OPERATIONS.get(name, _UNKNOWN)


def is_layer(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node calls a layer: a module with a weight that is quantized."""
    return node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), LAYER_CLASSES)


def operands(network: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """The tensors that a node multiplies and sums over: both of a product, none where it is no product.

    A layer's function whose weight follows from the image is a product too.
    """
    if node.op != "call_function" or operation(network, node).kind not in ("product", "layer"):
        return []
    name = name_of(network, node)
    given: Any = node.args[:2]
    if name in ("addmm", "baddbmm"):
        given = node.args[1:3]
    elif name == "einsum":
        given = node.args[1]
    return [each for each in given if isinstance(each, fx.Node)]


def multiplied(network: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """The tensors that a layer or a product reads: one, or its operands; none of other nodes."""
    return node.all_input_nodes[:1] if is_layer(network, node) else operands(network, node)


def calls_module(network: fx.GraphModule, node: fx.Node, kinds: type | tuple[type, ...]) -> bool:
    """Whether a node calls a module of `kinds`."""
    return node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), kinds)


def image_nodes(nodes: Iterable[fx.Node], network: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose values follow from the image; lengths do not."""
    found: set[fx.Node] = set()
    for node in nodes:
        depends = node.op == "placeholder" or any(source in found for source in node.all_input_nodes)
        if depends and operation(network, node).kind != "size":
            found.add(node)
    return found
