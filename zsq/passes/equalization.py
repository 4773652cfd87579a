"""Cross-layer equalization and bias absorption (Nagel et al. 2019, DFQ) in a folded, captured network.

Networks are changed in place.
Suffix C: the channels between the two layers of a pair.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from zsq.graph.fold import Gaussian
from zsq.graph.layers import CappedReLU, channel_axis
from zsq.graph.vocabulary import calls_module, name_of, operation
from zsq.placement.pairs import Pair, flattens, pairs_of

# Sweeps over all pairs end at a factor this near to 1, or at their number; published is "until convergence".
TOLERANCE = 1e-3
MOST_SWEEPS = 20
# Absorbed is what lies this many standard deviations below a pre-activation's mean, as published.
ABSORBED_STDS = 3.0


@torch.no_grad()
def relu6_to_relu(network: fx.GraphModule) -> None:
    """Replace every ReLU6 by a ReLU, as DFQ does before equalizing. The network then computes something else
    wherever a value exceeds 6."""
    for node in network.graph.nodes:
        if name_of(network, node) == "relu6":
            node.target = torch.ops.aten.relu.default
    network.recompile()


@torch.no_grad()
def equalize(network: fx.GraphModule, outputs: dict[str, Gaussian]) -> dict[str, Gaussian]:
    """Give both layers of each pair equal ranges, channel by channel; the network computes the same.

    S = sqrt(r1 / r2) from the largest magnitude of output channel r1 and input channel r2: W1 and b1 are
    divided by S, W2 is multiplied. Two layers around a depthwise one are equalized together. A ReLU6 between
    them gets a cap per channel.

    Returns:
        `outputs`, the distributions of the layers' outputs, with the same factors.
    """
    outputs = dict(outputs)
    pairs = pairs_of(network)
    caps = {pair.first: _capped(network, pair) for pair in pairs}
    for _ in range(MOST_SWEEPS):
        largest = 0.0
        for step in _steps(network, pairs):
            for pair, factor_C in zip(step, _factors(network, step), strict=True):
                largest = max(largest, (factor_C - 1).abs().max().item())
                divide_outputs(network, pair.first, factor_C, outputs)
                second: Any = network.get_submodule(pair.second)
                second.weight.mul_(spread(second, factor_C))
                for cap in caps[pair.first]:
                    cap.cap.div_(factor_C)
        if largest < TOLERANCE:
            break
    network.recompile()
    return outputs


def _steps(network: fx.GraphModule, pairs: list[Pair]) -> list[tuple[Pair, ...]]:
    """Pairs to be equalized together: two around a depthwise layer, else each alone."""
    by_first = {pair.first: pair for pair in pairs}
    steps: list[tuple[Pair, ...]] = []
    within: set[str] = set()
    for pair in pairs:
        if pair.first in within:
            continue
        follower = by_first.get(pair.second)
        if follower is not None and is_depthwise(network.get_submodule(pair.second)):
            steps.append((pair, follower))
            within.add(pair.second)
        else:
            steps.append((pair,))
    return steps


def is_depthwise(layer: Any) -> bool:
    """Whether each output channel reads one input channel of its own."""
    return not isinstance(layer, nn.Linear) and layer.groups == layer.in_channels == layer.out_channels


def _factors(network: fx.GraphModule, step: tuple[Pair, ...]) -> list[Tensor]:
    """S of each pair; 1 for channels without a weight on one side."""
    layers: list[Any] = [network.get_submodule(name) for name in (step[0].first, step[0].second)]
    first, second = layers
    ranges = [_output_ranges(first), _input_ranges(second, len(first.weight))]
    if len(step) == 2:
        ranges.append(_input_ranges(network.get_submodule(step[1].second), len(second.weight)))
    stacked = torch.stack(ranges)
    common_C = stacked.log().mean(dim=0).exp()
    factors = [stacked[0] / common_C]
    if len(step) == 2:
        factors.append(stacked[0] * stacked[1] / common_C**2)
    alive_C = (stacked > 0).all(dim=0)
    return [torch.where(alive_C, factor, 1.0) for factor in factors]


def _output_ranges(layer: Any) -> Tensor:
    return layer.weight.flatten(1).abs().amax(dim=1)


def _input_ranges(layer: Any, channels: int) -> Tensor:
    """(C,): the largest magnitude among the weights of each input channel."""
    if isinstance(layer, nn.Linear):
        return layer.weight.abs().view(len(layer.weight), channels, -1).amax(dim=(0, 2))
    groups = layer.groups
    per_group = layer.weight.abs().flatten(2).amax(dim=2).view(groups, -1, layer.in_channels // groups)
    return per_group.amax(dim=1).flatten()


def spread(layer: Any, values_C: Tensor) -> Tensor:
    """One value per input channel, in a shape that multiplies the layer's weight."""
    if isinstance(layer, nn.Linear):
        return values_C.repeat_interleave(layer.in_features // len(values_C))[None]
    groups, inside = layer.groups, layer.in_channels // layer.groups
    rows = values_C.view(groups, 1, inside).expand(groups, layer.out_channels // groups, inside)
    return rows.reshape(layer.out_channels, inside, *[1] * (layer.weight.dim() - 2))


def divide_outputs(
    network: fx.GraphModule, name: str, factor_C: Tensor, outputs: dict[str, Gaussian]
) -> None:
    """Divide what the layer `name` gives, channel by channel, and its distribution in `outputs`."""
    layer: Any = network.get_submodule(name)
    layer.weight.div_(factor_C.view(-1, *[1] * (layer.weight.dim() - 1)))
    if layer.bias is not None:
        layer.bias.div_(factor_C)
    if name in outputs:
        outputs[name] = Gaussian(*(part / factor_C for part in outputs[name]))


def _capped(network: fx.GraphModule, pair: Pair) -> list[CappedReLU]:
    """The caps between a pair, put there for each ReLU6."""
    first: Any = network.get_submodule(pair.first)
    for node in pair.between:
        if name_of(network, node) == "relu6":
            path = f"{node.name}_capped"
            capped = CappedReLU(len(first.weight), channel_axis(first))
            network.add_submodule(path, capped.to(first.weight))
            node.op, node.target, node.args, node.kwargs = "call_module", path, node.args[:1], {}
    nodes = (node for node in pair.between if calls_module(network, node, CappedReLU))
    return [network.get_submodule(str(node.target)) for node in nodes]  # type: ignore[misc]


@torch.no_grad()
def absorb_bias(network: fx.GraphModule, outputs: dict[str, Gaussian]) -> dict[str, Gaussian]:
    """Move what a ReLU passes almost always, c = max(0, beta - 3 gamma), from the first bias of a pair to the
    second: b1 - c, b2 + W2 c. Exact where pre-activations exceed c and nothing is padded with zeros.

    Returns:
        `outputs` with the means moved.
    """
    outputs = dict(outputs)
    for pair in pairs_of(network):
        if pair.first not in outputs or not all(_shifts(network, node) for node in pair.between):
            continue
        first: Any = network.get_submodule(pair.first)
        second: Any = network.get_submodule(pair.second)
        mean_C, std_C = outputs[pair.first]
        moved_C = (mean_C - ABSORBED_STDS * std_C).clamp(min=0)
        _bias(first).sub_(moved_C)
        _bias(second).add_((second.weight * spread(second, moved_C)).flatten(1).sum(dim=1))
        outputs[pair.first] = Gaussian(mean_C - moved_C, std_C)
    return outputs


def _shifts(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a constant that is added before the node comes out of it unchanged, for values above zero."""
    return operation(network, node).shifts or flattens(network, node)


def _bias(layer: Any) -> Tensor:
    """The layer's bias, made of zeros where there is none."""
    if layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)), requires_grad=False)
    return layer.bias
