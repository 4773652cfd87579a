"""What a saved network may consist of: the modules, functions and methods that a file can name.

Nothing else is ever built or called for a file, so that it holds data and no code.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import stochastic_depth

from zsq.quantizers.layers import QuantConv2d, QuantLinear, QuantPReLU

_MODULES = """Conv2d Linear BatchNorm1d BatchNorm2d LayerNorm GroupNorm InstanceNorm2d LocalResponseNorm
ReLU ReLU6 PReLU LeakyReLU ELU CELU SELU GELU SiLU Mish Sigmoid Tanh Softplus Softmax LogSoftmax Hardswish
Hardsigmoid Hardtanh MaxPool2d AvgPool2d AdaptiveAvgPool2d AdaptiveMaxPool2d Upsample PixelShuffle
ChannelShuffle ZeroPad2d ReflectionPad2d ReplicationPad2d ConstantPad2d Identity Dropout Dropout2d
Flatten Unflatten"""
_TORCH = """abs add cat chunk clamp concat div exp flatten flip log maximum mean minimum movedim mul narrow
neg permute pow relu reshape roll rsqrt select sigmoid softmax split sqrt square squeeze stack sub sum
swapaxes tanh transpose unbind unflatten unsqueeze"""
_FUNCTIONAL = """adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d batch_norm celu channel_shuffle dropout
dropout2d elu gelu group_norm hardsigmoid hardswish hardtanh instance_norm interpolate layer_norm leaky_relu
local_response_norm log_softmax max_pool2d mish normalize pad pixel_shuffle prelu relu relu6 selu sigmoid silu
softmax softplus tanh"""
_OPERATOR = """add floordiv getitem iadd imul isub itruediv mod mul neg pow sub truediv"""
_METHODS = """abs add add_ chunk clamp clamp_ contiguous dim div div_ exp expand expand_as flatten flip float
log max mean min mul mul_ narrow neg permute pow relu relu_ repeat reshape reshape_as rsqrt select sigmoid
sigmoid_ size softmax split sqrt square squeeze sub sub_ sum t tanh transpose unbind unflatten unsqueeze view
view_as"""

MODULES: dict[str, type[nn.Module]] = {
    **{name: getattr(nn, name) for name in _MODULES.split()},
    **{layer.__name__: layer for layer in (QuantConv2d, QuantLinear, QuantPReLU)},
}

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"torch.{name}": getattr(torch, name) for name in _TORCH.split()},
    **{f"torch.nn.functional.{name}": getattr(F, name) for name in _FUNCTIONAL.split()},
    **{f"operator.{name}": getattr(operator, name) for name in _OPERATOR.split()},
    "builtins.getattr": builtins.getattr,
    "torchvision.ops.stochastic_depth": stochastic_depth,
}

METHODS = frozenset(_METHODS.split())

# Of a tensor, where the graph reads them with getattr.
ATTRIBUTES = frozenset({"shape", "ndim", "mT", "T"})
