"""Magnitude pruning: the smallest weights become zero and stay so (Han et al. 2015; Zhu and Gupta 2017)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx

from zsq.graph.vocabulary import is_layer
from zsq.placement.sites import end_layers


def prunable(network: fx.GraphModule) -> Iterator[str]:
    """Names of the weights of all layers but the first, the last and depthwise ones, which have few."""
    ends = {str(node.target) for node in end_layers(network)}
    layers = dict.fromkeys(str(node.target) for node in network.graph.nodes if is_layer(network, node))
    for name in layers:
        layer = network.get_submodule(name)
        depthwise = getattr(layer, "groups", 1) > 1 and layer.groups == getattr(layer, "in_channels", 0)
        if name not in ends and not depthwise:
            yield f"{name}.weight"


def largest(weights: Mapping[str, Tensor], sparsity: float, together: bool) -> dict[str, Tensor]:
    """Name -> mask, True at the round(n (1 - sparsity)) weights of the largest magnitude; of equal ones the
    earlier stay. `together`: the order is over all weights, else over each tensor."""
    if not together:
        return {name: _largest_of(weight, sparsity) for name, weight in weights.items()}
    flat = torch.cat([weight.flatten() for weight in weights.values()])
    parts = _largest_of(flat, sparsity).split([weight.numel() for weight in weights.values()])
    return {
        name: part.view(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)
    }


def _largest_of(weight: Tensor, sparsity: float) -> Tensor:
    kept = round(weight.numel() * (1 - sparsity))
    order = weight.detach().abs().flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[order[:kept]] = True
    return mask.view(weight.shape)


@torch.no_grad()
def prune(network: fx.GraphModule, sparsity: float, together: bool) -> dict[str, Tensor]:
    """Set the smallest weights of `network` to zero, in place, and return the masks of what stayed; none
    where nothing can be pruned."""
    weights = {name: network.get_parameter(name) for name in prunable(network)}
    masks = largest(weights, sparsity, together) if weights else {}
    for name, mask in masks.items():
        weights[name].mul_(mask)
    return masks
