"""Layers and PReLU with a quantized weight; parameters are named as in the float layer."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from zsq.graph.layers import TrainableConv2d, TransposedConv1d, TransposedConv2d, TransposedConv3d


class _Quantized(nn.Module):
    """`weight_quantizer` makes of the weight what the layer computes with."""

    weight_quantizer: nn.Module

    @property
    def quantized_weight(self) -> Tensor:
        """The weight as the layer uses it."""
        return self.weight_quantizer(getattr(self, "weight"))  # noqa: B009


class _QuantConv(_Quantized):
    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) -> (N, C', ...)."""
        layer: Any = self
        return layer._conv_forward(input, self.quantized_weight, layer.bias)


class _QuantTransposed(_Quantized):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, C, ...) -> (N, C', ...)."""
        layer: Any = self
        return layer.with_weight(input, self.quantized_weight)


class QuantConv1d(_QuantConv, nn.Conv1d):
    """A Conv1d."""


class QuantConv2d(_QuantConv, TrainableConv2d):
    """A Conv2d."""


class QuantConv3d(_QuantConv, nn.Conv3d):
    """A Conv3d."""


class QuantTransposedConv1d(_QuantTransposed, TransposedConv1d):
    """A transposed Conv1d, weight outputs first."""


class QuantTransposedConv2d(_QuantTransposed, TransposedConv2d):
    """A transposed Conv2d, weight outputs first."""


class QuantTransposedConv3d(_QuantTransposed, TransposedConv3d):
    """A transposed Conv3d, weight outputs first."""


class QuantLinear(_Quantized, nn.Linear):
    """A Linear."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., C) -> (..., C')."""
        return F.linear(input, self.quantized_weight, self.bias)


class QuantPReLU(_Quantized, nn.PReLU):
    """A PReLU, whose slopes are its weight."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) -> the same."""
        return F.prelu(input, self.quantized_weight)


def weight_of(network: nn.Module, name: str) -> Tensor:
    """The weight `name`, such as `conv1.weight`, as its layer computes with it: quantized or not."""
    layer = network.get_submodule(name.rpartition(".")[0])
    return layer.quantized_weight if isinstance(layer, _Quantized) else network.get_parameter(name)


# Float layer -> the same with a quantized weight.
QUANTIZED: dict[type[nn.Module], type[_Quantized]] = {
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.Conv3d: QuantConv3d,
    TransposedConv1d: QuantTransposedConv1d,
    TransposedConv2d: QuantTransposedConv2d,
    TransposedConv3d: QuantTransposedConv3d,
    nn.Linear: QuantLinear,
    nn.PReLU: QuantPReLU,
}


def quantizable(layer: nn.Module) -> nn.Module:
    """`layer`, of a captured graph, with a place for its weight's quantizer, over the same parameters."""
    kind = next(quantized for float_, quantized in QUANTIZED.items() if isinstance(layer, float_))
    twin = kind.__new__(kind)
    twin.__dict__ = dict(layer.__dict__)
    for part in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[part] = dict(layer.__dict__[part])
    twin.weight_quantizer = nn.Identity()
    return twin
