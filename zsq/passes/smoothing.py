"""Activation ranges moved into weights, channel by channel (SmoothQuant, Xiao et al. 2023), in a folded,
captured network. It is changed in place and computes the same.

Suffix C: channels that a layer reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from zsq.graph.fold import Gaussian
from zsq.passes.equalization import divide_outputs, is_depthwise, spread
from zsq.placement.channels import FIXED, Channels, by_channel, channels_of

# The share of a channel's range that goes into the weights. Published is 0.5.
STRENGTH = 0.5


@torch.no_grad()
def smooth(
    network: fx.GraphModule, outputs: dict[str, Gaussian], norm_batches: Sequence[Tensor]
) -> dict[str, Gaussian] | None:
    """Divide each channel x_c by s_c = max|x_c|^a / max|W_c|^(1 - a), and multiply what reads it.

    Both ranges count relative to the largest of their tensor, max|W_c| to that of each output channel. A
    depthwise layer has a step for each channel: before it s_c = max|x_c|. Where several layers must have one
    factor, for instance behind concatenations, it is the geometric mean of theirs.

    Returns:
        `outputs`, the distributions of the layers' outputs, with the same factors; None where no channel may
        have a factor.
    """
    channels = channels_of(network, norm_batches[0][:1])
    factors = _factors(network, channels, _largest_inputs(network, channels, norm_batches))
    if bool((factors == 1).all()):
        return None
    outputs, factors = dict(outputs), factors.to(norm_batches[0])
    for name, groups_C in channels.given.items():
        divide_outputs(network, name, factors[groups_C], outputs)
    for name, groups_C in channels.read.items():
        layer: Any = network.get_submodule(name)
        layer.weight.mul_(spread(layer, factors[groups_C]))
    return outputs


def _factors(network: fx.GraphModule, channels: Channels, largest: dict[str, Tensor]) -> Tensor:
    """s of each group, float64."""
    logs, counts = torch.zeros(2, channels.num_groups, dtype=torch.float64)
    for name, groups_C in channels.read.items():
        wanted_C = _wanted(network.get_submodule(name), largest[name].double()).cpu()
        alive_C = wanted_C.isfinite()
        logs.index_add_(0, groups_C[alive_C], wanted_C[alive_C])
        counts.index_add_(0, groups_C[alive_C], torch.ones_like(wanted_C[alive_C]))
    factors = (logs / counts.clamp(min=1)).exp()
    factors[FIXED] = 1
    return factors


def _wanted(layer: Any, largest_C: Tensor) -> Tensor:
    """The logarithm of the factor that suits one layer; not finite for a dead channel."""
    ranges_C = (largest_C / largest_C.max()).log()
    if is_depthwise(layer):
        return ranges_C
    weight = layer.weight.double().abs()[..., None].flatten(2).amax(dim=2)
    relative = weight / weight.amax(dim=1, keepdim=True)
    per_group = relative.nan_to_num(0).view(getattr(layer, "groups", 1), -1, weight.shape[1])
    return STRENGTH * ranges_C - (1 - STRENGTH) * per_group.amax(dim=1).flatten().log()


def _largest_inputs(
    network: fx.GraphModule, channels: Channels, norm_batches: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Layer -> (C,), the largest magnitude of each channel that it reads, over all images."""
    largest: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found = by_channel(layer, inputs[0].abs()).amax(dim=1)
            largest[name] = torch.maximum(largest[name], found) if name in largest else found

        return hook

    handles = [network.get_submodule(name).register_forward_pre_hook(note(name)) for name in channels.read]
    for norm in norm_batches:
        network(norm)
    for handle in handles:
        handle.remove()
    return largest
