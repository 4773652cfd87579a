"""Convolution, linear layer and PReLU with a quantized weight; parameters are named as in the float layer.

And the convolution of every network that a student trains, quantized or not: see `TrainableConv2d`.
"""

from __future__ import annotations

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


class QuantConv2d(TrainableConv2d):
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


def make_trainable(network: nn.Module) -> None:
    """Make every plain convolution in `network` a `TrainableConv2d`, in place; hooks and tensors stay."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and not isinstance(layer, TrainableConv2d):
            kind = type(layer)
            if (kind.forward, kind._conv_forward) == (nn.Conv2d.forward, nn.Conv2d._conv_forward):
                layer.__class__ = TrainableConv2d


def quantizable(layer: nn.Module) -> QuantConv2d | QuantLinear | QuantPReLU:
    """`layer`, a Conv2d, Linear or PReLU, with a place for its weight's quantizer."""
    if isinstance(layer, nn.PReLU):
        return QuantPReLU.from_float(layer)
    if isinstance(layer, nn.Conv2d):
        return QuantConv2d.from_float(layer)
    assert isinstance(layer, nn.Linear)
    return QuantLinear.from_float(layer)
