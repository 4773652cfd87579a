"""What a student costs: bit operations and weight bytes.

BOPs of a layer = multiply-adds x bits of its weight x bits of its input; float counts as 32 bits. Counted are
all Conv2d and Linear layers, first and last included; not biases, accumulators, quantizers, normalisations,
nor other elementwise work. Where activations are quantized, the image is 8 bits, as it is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from zsq.contract import FittedStudent
from zsq.core.imagespec import ImageSpec
from zsq.graph.vocabulary import LAYER_CLASSES, calls_module
from zsq.placement.sites import row_name
from zsq.quantizers.grids import Quantizer
from zsq.widths import FLOAT_BITS

IMAGE_BITS = 8


@dataclass(frozen=True)
class LayerCost:
    """One layer on one image: `macs` multiply-adds, summed over its calls."""

    name: str
    macs: int
    num_weights: int
    weight_bits: int
    activation_bits: int

    @property
    def bit_operations(self) -> int:
        """Multiply-adds times both widths."""
        return self.macs * self.weight_bits * self.activation_bits


@dataclass(frozen=True)
class Cost:
    """A student on one image; bytes hold weights packed at their own width, without steps and biases."""

    layers: tuple[LayerCost, ...]

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bit_operations(self) -> int:
        """BOPs at the student's widths."""
        return sum(layer.bit_operations for layer in self.layers)

    @property
    def float_bit_operations(self) -> int:
        """BOPs with every width at 32."""
        return self.macs * FLOAT_BITS**2

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, each tensor rounded up to whole bytes."""
        return sum(-(-layer.num_weights * layer.weight_bits // 8) for layer in self.layers)

    @property
    def float_weight_bytes(self) -> int:
        """Bytes of all weights in float32."""
        return sum(layer.num_weights * 4 for layer in self.layers)

    def summary(self) -> str:
        """One line of the sums."""
        return (
            f"{self.macs:,} multiply-adds, {self.bit_operations:,} bit operations "
            f"(float {self.float_bit_operations:,}), "
            f"{self.weight_bytes:,} weight bytes (float {self.float_weight_bytes:,})"
        )


def student_cost(fitted: FittedStudent) -> Cost:
    """Counted on one image of the student's spec, through torch's FLOP counter."""
    network = fitted.network
    assert isinstance(network, fx.GraphModule)
    bits = {tensor.name: tensor.bits for tensor in fitted.tensors}
    image_bits = FLOAT_BITS if fitted.bits.activations == FLOAT_BITS else IMAGE_BITS
    inputs = _input_bits(network, bits, image_bits)
    macs = _macs(network, fitted.spec)
    layers = (
        LayerCost(
            name,
            macs.get(name, 0),
            network.get_parameter(f"{name}.weight").numel(),
            bits.get(f"{name}.weight", FLOAT_BITS),
            width,
        )
        for name, width in inputs.items()
    )
    return Cost(tuple(layers))


def _input_bits(network: fx.GraphModule, bits: dict[str, int], image_bits: int) -> dict[str, int]:
    """Layer -> width of what it reads, the widest where it is called on several tensors."""
    after_layer: set[fx.Node] = set()
    widths: dict[str, int] = {}
    for node in network.graph.nodes:
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, LAYER_CLASSES):
            (source,) = node.all_input_nodes
            name = str(node.target)
            width = _width(network, source, bits, FLOAT_BITS if source in after_layer else image_bits)
            widths[name] = max(width, widths.get(name, 0))
        if isinstance(module, LAYER_CLASSES) or any(source in after_layer for source in node.all_input_nodes):
            after_layer.add(node)
    return widths


def _width(network: fx.GraphModule, source: fx.Node, bits: dict[str, int], unquantized: int) -> int:
    if not calls_module(network, source, Quantizer):
        return unquantized
    return bits[row_name(str(source.target))]


@torch.no_grad()
def _macs(network: nn.Module, spec: ImageSpec) -> dict[str, int]:
    """Layer -> multiply-adds on one image."""
    device = next(network.parameters()).device
    black = torch.zeros(1, *spec.shape, dtype=torch.uint8, device=device)
    with FlopCounterMode(display=False) as counter:
        network(spec.pixels_to_norm(black))
    counts = counter.get_flop_counts()
    # The counter counts a multiply-add as two and puts the class of the network before each path.
    return {path.partition(".")[2]: sum(flops.values()) // 2 for path, flops in counts.items()}
