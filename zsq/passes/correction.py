"""Corrects what quantization shifts: biases and BN statistics of a quantized network, in place.

The reference is the float network it came from, captured and folded alike: layers have the same names.
Suffix C: output channels of a layer. Moments are exact means over images and positions, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from zsq.graph.fold import Gaussian
from zsq.graph.layers import channel_axis
from zsq.graph.norms import stores_statistics
from zsq.graph.vocabulary import LAYER_CLASSES

Batches = list[Tensor]
Visit = Callable[[fx.Node, nn.Module, Batches], None]
StatisticsRule = Literal["relative", "absolute"]


@torch.no_grad()
def walk(network: fx.GraphModule, norm_batches: Sequence[Tensor], visit: Visit) -> None:
    """Run a network node by node over all batches at once; `visit` sees each module and its inputs before it
    runs, and may change it. Later modules see what it then gives.

    Memory holds the activations that are still needed, of all batches.
    """
    values: dict[fx.Node, Any] = {}
    last_use = {source: node for node in network.graph.nodes for source in node.all_input_nodes}
    for node in network.graph.nodes:
        if node.op == "output":
            return
        if node.op == "placeholder":
            values[node] = list(norm_batches)
            continue
        if node.op == "call_module":
            visit(node, network.get_submodule(str(node.target)), values[node.all_input_nodes[0]])
        interpreter = fx.Interpreter(network, garbage_collect_values=False)
        values[node] = []
        for index in range(len(norm_batches)):
            interpreter.env = {source: values[source][index] for source in node.all_input_nodes}
            values[node].append(interpreter.run_node(node))
        for source in node.all_input_nodes:
            if last_use[source] is node:
                del values[source]


def moments(batches: Batches, axis: int = 1) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, float64 (C,): the mean first, then the squares around it.

    `axis` is that of the channels.
    """
    rows = [batch.double().transpose(0, axis).flatten(1) for batch in batches]
    num = sum(part.shape[1] for part in rows)
    mean_C = torch.stack([part.sum(dim=1) for part in rows]).sum(dim=0) / num
    squares = torch.stack([(part - mean_C[:, None]).square().sum(dim=1) for part in rows])
    return mean_C, squares.sum(dim=0) / num


def _output_moments(layer: nn.Module, inputs: Batches) -> tuple[Tensor, Tensor]:
    return moments([layer(batch) for batch in inputs], channel_axis(layer))


def correct_bias(network: fx.GraphModule, reference: fx.GraphModule, norm_batches: Sequence[Tensor]) -> None:
    """b - mean(y_quantized - y_float) for each layer in turn, earlier ones already corrected (Nagel et al.
    2019, the empirical form)."""
    wanted: dict[str, list[Tensor]] = {}

    def note(node: fx.Node, module: nn.Module, inputs: Batches) -> None:
        if isinstance(module, LAYER_CLASSES):
            mean_C, _ = _output_moments(module, inputs)
            wanted.setdefault(str(node.target), []).append(mean_C)

    def correct(node: fx.Node, module: nn.Module, inputs: Batches) -> None:
        # A layer that is called several times is corrected at its first call.
        if isinstance(module, LAYER_CLASSES) and str(node.target) in wanted:
            mean_C, _ = _output_moments(module, inputs)
            move_bias(module, wanted.pop(str(node.target))[0] - mean_C)

    walk(reference, norm_batches, note)
    walk(network, norm_batches, correct)


@torch.no_grad()
def move_bias(layer: nn.Module, by_C: Tensor) -> None:
    """Add to a layer's bias, made where there is none."""
    layer_: Any = layer
    bias = torch.zeros_like(by_C) if layer_.bias is None else layer_.bias.detach().double()
    moved = (bias + by_C).to(layer_.weight.dtype)
    layer_.bias = nn.Parameter(moved, requires_grad=False)


@torch.no_grad()
def correct_bias_analytically(
    network: fx.GraphModule, reference: fx.GraphModule, inputs: dict[str, Gaussian]
) -> None:
    """b - (W_quantized - W) E[x] for each layer with a quantized weight whose mean input is known.

    Args:
        inputs: layer -> distribution of each channel of its input; see `zsq.passes.expectations`.
    """
    for name, (mean_C, _) in inputs.items():
        layer: Any = network.get_submodule(name)
        float_layer: Any = reference.get_submodule(name)
        quantizer = getattr(layer, "weight_quantizer", None)
        if quantizer is None:
            continue
        error = (quantizer(layer.weight) - float_layer.weight).double()
        if isinstance(layer, nn.Linear):
            expected = error @ mean_C.double().repeat_interleave(error.shape[1] // len(mean_C))
        else:
            per_input = error.flatten(2).sum(dim=2).view(layer.groups, -1, error.shape[1])
            expected = (per_input * mean_C.double().view(layer.groups, 1, -1)).sum(dim=2).flatten()
            if layer.transposed:
                # Each position sees one of so many parts of the kernel.
                expected = expected / math.prod(layer.stride)
        move_bias(layer, -expected)


def adapt_batch_norms(
    network: fx.GraphModule,
    reference: fx.GraphModule,
    norm_batches: Sequence[Tensor],
    rule: StatisticsRule = "relative",
) -> int:
    """Set BN statistics anew for the outputs of quantized layers, one BN after another; the number of BNs.

    With z the input of a BN in the quantized network, m and s its mean and std on the images:
    absolute: mu = m(z), var = s(z)^2. relative: r = s(z) / s(z_float), mu = m(z) + r (mu - m(z_float)),
    var = r^2 var: the stored statistics go through the shift that quantization causes, so that the images'
    own distance from them cancels.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(node: fx.Node, module: nn.Module, inputs: Batches) -> None:
        if stores_statistics(module):
            seen.setdefault(str(node.target), moments(inputs))

    def adapt(node: fx.Node, module: nn.Module, inputs: Batches) -> None:
        if stores_statistics(module) and str(node.target) in seen:
            float_moments = seen.pop(str(node.target))
            _adapt(module, moments(inputs), float_moments, rule)

    walk(reference, norm_batches, note)
    found = len(seen)
    walk(network, norm_batches, adapt)
    return found - len(seen)


def _adapt(
    norm: Any, quantized: tuple[Tensor, Tensor], float_: tuple[Tensor, Tensor], rule: StatisticsRule
) -> None:
    (mean_C, var_C), (float_mean_C, float_var_C) = quantized, float_
    if rule == "relative":
        # A channel that was constant in float tells nothing about its scale.
        ratio_C = torch.where(float_var_C > 0, (var_C / float_var_C).sqrt(), 1.0)
        mean_C = mean_C + ratio_C * (norm.running_mean.double() - float_mean_C)
        # What a BN divides by has its epsilon in it.
        var_C = (norm.running_var.double() + norm.eps) * ratio_C.square() - norm.eps
    norm.running_mean.copy_(mean_C)
    norm.running_var.copy_(var_C.clamp(min=0))
