"""Multiply-adds of the layers and products of a captured network, and what each of them reads."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from zsq.core.runtime import one_thread
from zsq.graph.vocabulary import image_nodes, multiplied

# Of an image as it is stored, where activations are quantized.
IMAGE_BITS = 8


def operands_read(network: fx.GraphModule) -> dict[fx.Node, list[tuple[fx.Node, bool]]]:
    """Call of a layer or product -> the tensors that it reads, one or two, and whether each is the image as
    it is before the first layer."""
    images = image_nodes(network.graph.nodes, network)
    computed: set[fx.Node] = set()
    found: dict[fx.Node, list[tuple[fx.Node, bool]]] = {}
    for node in network.graph.nodes:
        read = multiplied(network, node)
        if read:
            found[node] = [(source, source in images and source not in computed) for source in read]
        if read or any(source in computed for source in node.all_input_nodes):
            computed.add(node)
    return found


class Counting(fx.Interpreter):
    """Notes the multiply-adds of every layer and product that it runs."""

    def __init__(self, network: fx.GraphModule) -> None:
        """Nothing counted yet."""
        super().__init__(network)
        self.network = network
        self.macs: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        """What the node gives, counted where it multiplies."""
        if not multiplied(self.network, n):
            return super().run_node(n)
        with one_thread, FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
            value = super().run_node(n)
        # The counter counts a multiply-add as two.
        self.macs[n] = counter.get_total_flops() // 2
        return value


def _matrix_by_vector(matrix: Any, vector: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(matrix)


# Products that torch's counter does not know.
_UNCOUNTED = {torch.ops.aten.mv: _matrix_by_vector, torch.ops.aten.dot: _matrix_by_vector}
