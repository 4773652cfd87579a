"""A teacher's layers as synthesis runs them: gradients for inputs alone, BN together with its statistics.

They compute what the plain layers compute, with less work: see `benchmarks/throughput.py` for how much less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input
from torch.nn.modules.batchnorm import _BatchNorm

IMAGE_CHANNELS = 4  # a layer with at most so many input channels reads images


# A compiler cannot see into these copies. Without them it computes what made a tensor again for every element
# of each kernel that reads it, and gives the images the layout of the first convolution in all other terms.
@torch.library.custom_op("zsq::materialise", mutates_args=())
def materialise(tensors: Sequence[Tensor], channels_last: bool = False) -> list[Tensor]:
    """Copies, contiguous or channels_last."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return [tensor.clone(memory_format=layout) for tensor in tensors]


@materialise.register_fake
def _(tensors: Sequence[Tensor], channels_last: bool = False) -> list[Tensor]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return [torch.empty_like(tensor, memory_format=layout) for tensor in tensors]


class Materialised(torch.autograd.Function):
    """Identity: images as a copy, contiguous or channels_last, and their gradient as a contiguous one."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, channels_last: bool = False) -> Tensor:
        """The copy."""
        return materialise([images], channels_last)[0]

    @staticmethod
    def backward(ctx: Any, of_output: Tensor) -> tuple[Tensor, None]:
        """That of the gradient."""
        return materialise([of_output])[0], None


class MaterialisedGradients(torch.autograd.Function):
    """Identity on any number of tensors whose gradients are materialised."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors."""
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """Contiguous copies of the gradients."""
        return tuple(materialise(gradients))


class Normalised(torch.autograd.Function):
    """A scale and shift per channel together with the sums over its input, one backward pass for both.

    a (N, C, ...) -> a scale_C + shift_C in a's dtype; s1_NC = sum_p (a - mean_C) and
    s2_NC = sum_p (a - mean_C)^2 in mean_C's dtype.
    """

    @staticmethod
    def forward(
        ctx: Any, activations: Tensor, scale_C: Tensor, shift_C: Tensor, mean_C: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        ctx.save_for_backward(activations, scale_C, mean_C)
        wide = activations.to(mean_C.dtype)
        rest = [1] * (activations.dim() - 2)
        shifted = wide - mean_C.view(1, -1, *rest)
        s1_NC, s2_NC = shifted, shifted.square()
        if rest:
            s1_NC, s2_NC = s1_NC.flatten(2).sum(2), s2_NC.flatten(2).sum(2)
        scaled = wide * scale_C.view(1, -1, *rest) + shift_C.view(1, -1, *rest)
        return scaled.to(activations.dtype), s1_NC, s2_NC

    @staticmethod
    def backward(ctx: Any, of_y: Tensor, of_s1_NC: Tensor, of_s2_NC: Tensor) -> tuple[Tensor | None, ...]:
        """d/da = g_y scale + g_s1 + 2 g_s2 (a - mean)."""
        activations, scale_C, mean_C = ctx.saved_tensors
        rest = [1] * (activations.dim() - 2)
        slope = (2 * of_s2_NC).view(*of_s2_NC.shape, *rest)
        offset = (of_s1_NC - 2 * of_s2_NC * mean_C).view(*of_s1_NC.shape, *rest)
        gradient = of_y.to(mean_C.dtype) * scale_C.view(1, -1, *rest)
        gradient = gradient + (activations.to(mean_C.dtype) * slope + offset)
        return gradient.to(activations.dtype), None, None, None


Gradient = Callable[[Tensor, Tensor, nn.Conv2d, tuple[int, int]], Tensor]


def by_flipped_kernel(of_output: Tensor, weight: Tensor, conv: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """Input gradient of a depthwise convolution of stride 1: the convolution with the flipped kernel."""
    padding = conv.kernel_size[0] - 1 - int(conv.padding[0])
    return F.conv2d(of_output, weight.flip(2, 3), None, 1, padding, 1, conv.groups)


def in_float32(of_output: Tensor, weight: Tensor, conv: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """The library's input gradient in float32: in bfloat16 oneDNN has only a slow reference loop for strided
    depthwise convolutions."""
    shape = (len(of_output), conv.in_channels, *size)
    gradient = conv2d_input(
        shape,
        weight.float(),
        of_output.float(),
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
    )
    return gradient.to(of_output.dtype)


def by_subpixels(of_output: Tensor, weight: Tensor, conv: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """Input gradient of a strided convolution as one convolution at the output's resolution that gives
    stride^2 channels per input channel, interleaved afterwards (Shi et al., Is the deconvolution layer the
    same as a convolutional layer?, arXiv 1609.07009).

    y[n] = sum_k w[k] x[n stride + k - padding]: g_x[i] adds up g_y[n] w[k] where n stride + k = i + padding.
    With i + padding = q stride + r these are k = r + t stride and n = q - t:
    g_x[i] = sum_t g_y[q - t] w[r + t stride], a convolution of its own for each phase r.
    """
    stride, padding, (height, width) = conv.stride[0], int(conv.padding[0]), size
    taps = math.ceil(conv.kernel_size[0] / stride)
    missing = taps * stride - conv.kernel_size[0]
    phases = F.pad(weight, (0, missing, 0, missing)).unflatten(3, (taps, stride)).unflatten(2, (taps, stride))
    kernel = phases.flip(2, 4).permute(1, 3, 5, 0, 2, 4).flatten(0, 2)
    first = padding // stride
    before = taps - 1 - first
    below, right = (
        (edge - 1 + padding) // stride - (out - 1)
        for edge, out in zip(size, of_output.shape[2:], strict=True)
    )
    fine = F.pixel_shuffle(F.conv2d(F.pad(of_output, (before, right, before, below)), kernel), stride)
    start = padding - first * stride
    return fine[:, :, start : start + height, start : start + width]


def _own_gradient(conv: nn.Module) -> Gradient | None:
    """The gradient that beats the library's for this layer's shape on a CPU; None where there is none."""
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    if conv.dilation != (1, 1) or any(a != b for a, b in (conv.kernel_size, conv.stride, conv.padding)):
        return None
    strided = conv.stride[0] > 1
    if conv.groups == 1:
        return by_subpixels if strided and conv.in_channels <= IMAGE_CHANNELS else None
    if conv.groups != conv.in_channels or conv.groups != conv.out_channels:
        return None
    return in_float32 if strided else by_flipped_kernel


class _OwnGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, conv: FrozenConv2d) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.conv, ctx.size = conv, tuple(inputs.shape[2:])
        return F.conv2d(inputs, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)

    @staticmethod
    def backward(ctx: Any, of_output: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return ctx.conv.gradient(of_output, weight, ctx.conv, ctx.size), None, None


class FrozenConv2d(nn.Conv2d):
    """A convolution with an input gradient of our own."""

    gradient: Gradient

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        if input.device.type != "cpu":
            return super().forward(input)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            input, weight = input.to(dtype), weight.to(dtype)
        output = _OwnGradient.apply(input, weight, self)
        return output if self.bias is None else output + self.bias.to(output.dtype).view(-1, 1, 1)


class NormalisedBatchNorm(_BatchNorm):
    """A BN layer in eval mode that hands (input, s1_NC, s2_NC) to `tap`."""

    tap: Callable[[nn.Module, Tensor, Tensor, Tensor], None]

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) -> the same shape and dtype, normalised."""
        assert self.running_mean is not None
        normalised, s1_NC, s2_NC = Normalised.apply(input, self.scale_C, self.shift_C, self.running_mean)
        self.tap(self, input, s1_NC, s2_NC)
        return normalised


PLAIN_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def freeze_convolutions(network: nn.Module) -> None:
    """Turn, in place, each convolution that has a faster input gradient into a `FrozenConv2d`."""
    for module in network.modules():
        gradient = _own_gradient(module)
        if gradient is not None:
            module.__class__ = FrozenConv2d
            module.gradient = gradient  # type: ignore[assignment]


@torch.no_grad()
def tap_batch_norm(layer: nn.Module, tap: Callable[[nn.Module, Tensor, Tensor, Tensor], None]) -> None:
    """Turn, in place, a BN layer with stored statistics into one that reports the sums over its input."""
    assert isinstance(layer, _BatchNorm)
    assert layer.running_mean is not None and layer.running_var is not None
    scale_C = (layer.running_var + layer.eps).rsqrt()
    if layer.weight is not None:
        scale_C = scale_C * layer.weight
    shift_C = -layer.running_mean * scale_C
    if layer.bias is not None:
        shift_C = shift_C + layer.bias
    layer.register_buffer("scale_C", scale_C, persistent=False)
    layer.register_buffer("shift_C", shift_C, persistent=False)
    layer.tap = tap  # type: ignore[assignment]
    layer.__class__ = NormalisedBatchNorm
