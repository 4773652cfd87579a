"""Convolution, linear layer and PReLU with a quantized weight; parameters are named as in the float layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class QuantConv2d(nn.Conv2d):
    """A Conv2d whose weight passes `weight_quantizer` first."""

    weight_quantizer: nn.Module

    @classmethod
    def from_float(cls, conv: nn.Conv2d) -> QuantConv2d:
        """Same layer over the same parameters, weight still float."""
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device="meta",
        )
        layer.weight, layer.bias = conv.weight, conv.bias
        layer.weight_quantizer = nn.Identity()
        return layer.train(conv.training)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        return self._conv_forward(input, self.weight_quantizer(self.weight), self.bias)


class QuantLinear(nn.Linear):
    """A Linear whose weight passes `weight_quantizer` first."""

    weight_quantizer: nn.Module

    @classmethod
    def from_float(cls, linear: nn.Linear) -> QuantLinear:
        """Same layer over the same parameters, weight still float."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.weight_quantizer = nn.Identity()
        return layer.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """(..., C) -> (..., C')."""
        return F.linear(input, self.weight_quantizer(self.weight), self.bias)


class QuantPReLU(nn.PReLU):
    """A PReLU whose slopes pass `weight_quantizer` first."""

    weight_quantizer: nn.Module

    @classmethod
    def from_float(cls, prelu: nn.PReLU) -> QuantPReLU:
        """Same layer over the same slopes, still float."""
        layer = cls(prelu.num_parameters, device="meta")
        layer.weight = prelu.weight
        layer.weight_quantizer = nn.Identity()
        return layer.train(prelu.training)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) -> the same."""
        return F.prelu(input, self.weight_quantizer(self.weight))


def quantizable(layer: nn.Module) -> QuantConv2d | QuantLinear | QuantPReLU:
    """`layer`, a Conv2d, Linear or PReLU, with a place for its weight's quantizer."""
    if isinstance(layer, nn.PReLU):
        return QuantPReLU.from_float(layer)
    if isinstance(layer, nn.Conv2d):
        return QuantConv2d.from_float(layer)
    assert isinstance(layer, nn.Linear)
    return QuantLinear.from_float(layer)
