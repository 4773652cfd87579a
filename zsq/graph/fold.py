"""Batch normalisation folded into the layer before it, in a captured network."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from zsq.graph.layers import OutputsFirst
from zsq.graph.norms import stores_statistics


class Gaussian(NamedTuple):
    """Mean and standard deviation of each channel of a tensor; beta and |gamma| behind a batch norm."""

    mean_C: Tensor
    std_C: Tensor


def fused(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    """One new layer that computes `norm(layer(x))` in eval mode; None where the two do not fuse."""
    if not stores_statistics(norm):
        return None
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, norm)
    # The weight of a transposed convolution is kept as that of a plain one.
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | OutputsFirst):
        return fuse_conv_bn_eval(layer, norm)
    return None


def fold_batch_norms(module: fx.GraphModule) -> dict[str, Gaussian]:
    """Fold, in place, each BN with stored statistics that is the only consumer of a convolution, plain or
    transposed, or of a linear layer.

    The network computes the same in eval mode. Other BNs stay where they are, as float affine operations.

    Returns:
        Layer name -> distribution of its output, for the layers that now contain a BN.
    """
    times_called = Counter(str(node.target) for node in module.graph.nodes if node.op == "call_module")
    outputs: dict[str, Gaussian] = {}
    for node in module.graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        name, norm_name = str(source.target), str(node.target)
        norm = module.get_submodule(norm_name)
        layer = fused(module.get_submodule(name), norm)
        if layer is None or times_called[name] != 1 or times_called[norm_name] != 1:
            continue
        if isinstance(layer, nn.Linear) and len(source.meta.get("shape", ())) != 2:
            continue  # the norm's channels are the layer's rows
        module.set_submodule(name, layer)
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
        module.delete_submodule(norm_name)
        outputs[name] = distribution(norm)
    module.recompile()
    return outputs


def distribution(norm: nn.Module) -> Gaussian:
    """What a BN gives on data with the statistics that it stores."""
    stored: Any = norm
    mean, std = (torch.zeros_like(stored.running_mean), torch.ones_like(stored.running_var))
    if stored.weight is not None:
        mean, std = stored.bias.detach().clone(), stored.weight.detach().abs()
    return Gaussian(mean, std)
