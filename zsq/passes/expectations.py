"""The mean of each layer's input as it follows from batch norm, without images (Nagel et al. 2019, DFQ)."""

from __future__ import annotations

import math

from torch import Tensor, fx

from zsq.engine.gaussians import rectified
from zsq.graph.fold import Gaussian, distribution
from zsq.graph.layers import CappedReLU
from zsq.graph.norms import stores_statistics
from zsq.graph.vocabulary import is_layer, name_of, operation
from zsq.placement.pairs import flattens
from zsq.placement.units import is_addition


def expected_inputs(network: fx.GraphModule, outputs: dict[str, Gaussian]) -> dict[str, Gaussian]:
    """Layer -> distribution of each channel of what it reads, for the layers where it is known.

    Known are outputs of folded layers (`outputs`) and of remaining BNs, and through ReLU, ReLU6, averages and
    sums of independent Gaussians what follows from them. In a sum, a rectified value counts as a Gaussian of
    its mean and variance.
    """
    known: dict[fx.Node, Gaussian] = {}
    inputs: dict[str, Gaussian] = {}
    for node in network.graph.nodes:
        sources = [known.get(source) for source in node.all_input_nodes]
        if is_layer(network, node):
            if sources[0] is not None:
                inputs.setdefault(str(node.target), sources[0])
            if str(node.target) in outputs:
                known[node] = outputs[str(node.target)]
            continue
        result = _through(network, node, sources)
        if result is not None:
            known[node] = result
    return inputs


def _through(network: fx.GraphModule, node: fx.Node, sources: list[Gaussian | None]) -> Gaussian | None:
    module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    if module is not None and stores_statistics(module):
        return distribution(module)
    given = [source for source in sources if source is not None]
    if not given or len(given) != len(sources):
        return None
    first, name, known = given[0], name_of(network, node), operation(network, node)
    if name == "relu":
        return clipped(first, math.inf)
    if known.scaling == "clip":
        return clipped(first, module.cap if isinstance(module, CappedReLU) else 6.0)
    averages = known.moments in ("average", "moves") and known.scaling is not None
    if averages or flattens(network, node):
        return first
    if is_addition(network, node) and len(given) == 2 and given[0].mean_C.shape == given[1].mean_C.shape:
        variance = given[0].std_C.square() + given[1].std_C.square()
        return Gaussian(given[0].mean_C + given[1].mean_C, variance.sqrt())
    return None


def clipped(x: Gaussian, cap: float | Tensor) -> Gaussian:
    """Mean and std of min(max(x, 0), cap) for Gaussian x, in float64."""
    mean, std = x.mean_C.double(), x.std_C.double().clamp(min=1e-12)
    first, second = rectified(mean, std, std.square())
    if isinstance(cap, Tensor) or cap != math.inf:
        # min(max(x, 0), c) = max(x, 0) - max(x - c, 0), and of squares p^2 - q^2 - 2 c q with q the excess.
        excess, excess2 = rectified(mean - cap, std, std.square())
        first, second = first - excess, second - excess2 - 2 * cap * excess
    variance = (second - first.square()).clamp(min=0)
    return Gaussian(first.to(x.mean_C.dtype), variance.sqrt().to(x.mean_C.dtype))
