"""A scale and a shift per channel moved from what a LayerNorm gives into the linear layers that read it
(RepQ-ViT, Li et al., ICCV 2023, section 3.2). The network computes the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from zsq.placement.layer_norms import NormedLayers


@torch.no_grad()
def reparametrize(network: fx.GraphModule, normed: NormedLayers, factor_C: Tensor, shift_C: Tensor) -> None:
    """Let the LayerNorm give x / factor - shift in the place of x, and its layers undo it; in place.

    gamma / factor, beta / factor - shift; W diag(factor), b + W_new shift.
    """
    factor, shift = factor_C.double(), shift_C.double()
    norm: Any = network.get_submodule(normed.norm)
    beta = 0 if norm.bias is None else norm.bias.double()
    norm.bias = _parameter(beta / factor - shift, norm.weight)
    norm.weight = _parameter(norm.weight.double() / factor, norm.weight)
    for name in normed.layers:
        layer: Any = network.get_submodule(name)
        weight = layer.weight.double() * factor
        bias = weight @ shift
        layer.bias = _parameter(bias if layer.bias is None else layer.bias.double() + bias, layer.weight)
        layer.weight = _parameter(weight, layer.weight)


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(like), requires_grad=False)
