"""The modules of a captured graph, and how they are made from the functions that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TrainableConv2d(nn.Conv2d):
    """A Conv2d that trains a 1x1 kernel with a stride as stride 1 on the positions that it reads: the same
    sums, by another kernel of oneDNN.

    The weight gradient of such a convolution corrupts memory in torch 2.15.0 on processors without AVX-512
    (2 to 7 input channels, channels_last; docs/upstream.md).
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        trains = weight.requires_grad and torch.is_grad_enabled()
        if not trains or self.kernel_size != (1, 1) or self.stride == (1, 1):
            return super()._conv_forward(input, weight, bias)
        # "valid" and "same" pad a 1x1 kernel by nothing, and "same" takes no stride.
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        elif not isinstance(self.padding, str) and any(self.padding):
            height, width = self.padding
            input = F.pad(input, [width, width, height, height])
        read = input[..., :: self.stride[0], :: self.stride[1]]
        return F.conv2d(read, weight, bias, groups=self.groups)


class OutputsFirst(nn.modules.conv._ConvTransposeNd):
    """A transposed convolution whose weight is kept as that of a convolution is, (C', C / groups, ...): one
    rule for all layers says which channel a weight belongs to."""

    function: Callable[..., Tensor]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As torch's own layer."""
        super().__init__(*args, **kwargs)
        self.weight = nn.Parameter(ends_swapped(self.weight, self.groups).detach(), requires_grad=False)

    def with_weight(self, input: Tensor, weight: Tensor) -> Tensor:
        """(N, C, ...) -> (N, C', ...) with another weight."""
        sides = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return type(self).function(input, ends_swapped(weight, self.groups), self.bias, *sides)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, C, ...) -> (N, C', ...); the output's size follows from the layer alone."""
        assert output_size is None
        return self.with_weight(input, self.weight)


class TransposedConv1d(OutputsFirst, nn.ConvTranspose1d):
    """One axis."""

    function = staticmethod(F.conv_transpose1d)


class TransposedConv2d(OutputsFirst, nn.ConvTranspose2d):
    """Two axes."""

    function = staticmethod(F.conv_transpose2d)


class TransposedConv3d(OutputsFirst, nn.ConvTranspose3d):
    """Three axes."""

    function = staticmethod(F.conv_transpose3d)


def ends_swapped(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's weight (C, C' / groups, ...) as (C', C / groups, ...), and that one as torch
    has it."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def channel_axis(layer: nn.Module) -> int:
    """Where the channels of a layer's output are: 1, or -1 behind a linear layer, which may see tokens."""
    return -1 if isinstance(layer, nn.Linear) else 1


class CappedReLU(nn.Module):
    """min(max(x, 0), cap) with a cap per channel: what ReLU6 becomes where its channels are scaled.

    `axis` is that of the channels, see `channel_axis`.
    """

    cap: Tensor

    def __init__(self, channels: int, axis: int = 1) -> None:
        """Every cap is 6 at first."""
        super().__init__()
        self.channels, self.axis = channels, axis
        self.register_buffer("cap", torch.full((channels,), 6.0))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) or (..., C) -> the same."""
        rest = 0 if self.axis == -1 else x.dim() - 2
        return torch.minimum(F.relu(x), self.cap.view(-1, *[1] * rest))


Made = tuple[nn.Module, dict[str, Tensor | None]]

_CONVOLUTIONS: dict[str, type[nn.Module]] = {
    "conv1d": nn.Conv1d,
    "conv2d": TrainableConv2d,
    "conv3d": nn.Conv3d,
    "conv_transpose1d": TransposedConv1d,
    "conv_transpose2d": TransposedConv2d,
    "conv_transpose3d": TransposedConv3d,
}
_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_INSTANCE_NORMS = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def make(name: str, given: dict[str, Any], rank: int) -> Made | None:
    """The module, without tensors, that computes what the operation `name` does; and its tensors by name.

    Args:
        given: every argument of the call by its name in the schema: tensors that are constant as tensors,
            those that follow from the image as None.
        rank: of the input.

    Returns:
        None where no module computes it: its weight follows from the image, for one.
    """
    maker = _MAKERS.get(name)
    with torch.device("meta"):
        made = None if maker is None else maker(name, given, rank)
    return None if made is None else (made[0].eval(), made[1])


def _ints(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


def _convolution(name: str, given: dict[str, Any], rank: int) -> Made | None:
    weight, groups = given["weight"], given.get("groups", 1)
    if weight is None or rank != weight.dim():
        return None
    sides = weight.dim() - 2
    transposed = name.startswith("conv_transpose")
    ends = (
        (weight.shape[0], weight.shape[1] * groups) if transposed else (weight.shape[1] * groups, len(weight))
    )
    padding = given.get("padding", 0)
    arguments = {
        "kernel_size": tuple(weight.shape[2:]),
        "stride": _ints(given.get("stride", 1), sides),
        "padding": padding if isinstance(padding, str) else _ints(padding, sides),
        "dilation": _ints(given.get("dilation", 1), sides),
        "groups": groups,
        "bias": given.get("bias") is not None,
    }
    if transposed:
        arguments["output_padding"] = _ints(given.get("output_padding", 0), sides)
    layer = _CONVOLUTIONS[name](*ends, **arguments)
    if transposed:
        weight = ends_swapped(weight, groups)
    return layer, {"weight": weight, "bias": given.get("bias")}


def _linear(name: str, given: dict[str, Any], rank: int) -> Made | None:
    weight, bias = given["weight"], given.get("bias")
    if weight is None or weight.dim() != 2:
        return None
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    return layer, {"weight": weight, "bias": bias}


def _batch_norm(name: str, given: dict[str, Any], rank: int) -> Made | None:
    mean, var, weight = given.get("running_mean"), given.get("running_var"), given.get("weight")
    by_batch = given.get("training", False) or given.get("use_input_stats", False)
    if mean is None or by_batch or rank not in _BATCH_NORMS:
        return None
    norm = _BATCH_NORMS[rank](len(mean), eps=given["eps"], affine=weight is not None)
    bias = given.get("bias")
    if weight is not None and bias is None:
        bias = torch.zeros_like(weight, device=weight.device)
    return norm, {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}


def _instance_norm(name: str, given: dict[str, Any], rank: int) -> Made | None:
    """With stored statistics it is a batch norm."""
    if not given.get("use_input_stats", True):
        return _batch_norm(name, given, rank)
    weight = given.get("weight")
    if weight is None or rank not in _INSTANCE_NORMS:
        return None
    norm = _INSTANCE_NORMS[rank](len(weight), eps=given["eps"], affine=True)
    return norm, {"weight": weight, "bias": given["bias"]}


def _layer_norm(name: str, given: dict[str, Any], rank: int) -> Made | None:
    weight, bias = given.get("weight"), given.get("bias")
    if weight is None:
        return None
    if name == "rms_norm":
        return nn.RMSNorm(tuple(weight.shape), eps=given.get("eps")), {"weight": weight}
    norm = nn.LayerNorm(tuple(weight.shape), eps=given.get("eps", 1e-5), bias=bias is not None)
    return norm, {"weight": weight, "bias": bias}


def _group_norm(name: str, given: dict[str, Any], rank: int) -> Made | None:
    weight, bias = given.get("weight"), given.get("bias")
    if weight is None or bias is None:
        return None
    return nn.GroupNorm(given["num_groups"], len(weight), eps=given.get("eps", 1e-5)), {
        "weight": weight,
        "bias": bias,
    }


def _prelu(name: str, given: dict[str, Any], rank: int) -> Made | None:
    weight = given["weight"]
    return None if weight is None else (nn.PReLU(weight.numel()), {"weight": weight})


_MAKERS: dict[str, Callable[[str, dict[str, Any], int], Made | None]] = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    "linear": _linear,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "group_norm": _group_norm,
    "prelu": _prelu,
}
