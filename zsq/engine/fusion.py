"""A batch norm with stored statistics and the layer before it as one layer: the arithmetic alone."""

from __future__ import annotations

from typing import TypeGuard

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval


def stores_statistics(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether it is a BN with running statistics."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def fused(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    """One new layer that computes `norm(layer(x))` in eval mode; None where the two do not fuse."""
    if not stores_statistics(norm):
        return None
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, norm)
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return fuse_conv_bn_eval(layer, norm)
    return None
