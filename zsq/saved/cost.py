"""What a student costs: bit operations and weight bytes.

BOPs = multiply-adds x bits of one operand x bits of the other; float counts as 32 bits. Counted are all
layers (convolutions, transposed convolutions, linear), first and last included, with their weight and their
input, and all products of two activations (attention) with both operands; not biases, accumulators,
quantizers, normalisations, nor elementwise work. Where activations are quantized, the image is 8 bits, as it
is stored. A transposed convolution multiplies each of its inputs by every weight, whether or not the result
is then cut off. Of a pruned layer the operations are
those of the weights that are left, and its bytes hold these and one bit for each weight. A layer that not
every image passes counts by the share of the images of the fit that does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from zsq.contract import FittedStudent
from zsq.graph.vocabulary import calls_module
from zsq.placement.macs import IMAGE_BITS, Counting, operands_read
from zsq.placement.sites import row_name
from zsq.quantizers.grids import Quantizer
from zsq.saved.dry_run import without_numbers
from zsq.widths import FLOAT_BITS


@dataclass(frozen=True)
class LayerCost:
    """One layer on one image: `macs` multiply-adds with all weights, summed over its calls, of a layer that
    not every image passes on average. `num_kept`: weights that pruning left; None of a layer that was not
    pruned."""

    name: str
    macs: int
    num_weights: int
    weight_bits: int
    activation_bits: int
    num_kept: int | None = None

    @property
    def bit_operations(self) -> int:
        """Multiply-adds times both widths; of a pruned layer, the share of its weights that are left."""
        dense = self.macs * self.weight_bits * self.activation_bits
        return dense if self.num_kept is None else dense * self.num_kept // self.num_weights

    @property
    def weight_bytes(self) -> int:
        """Of the weights in whole bytes; of a pruned layer, of those left and of a bit for each weight."""
        kept = self.num_weights if self.num_kept is None else self.num_kept
        places = 0 if self.num_kept is None else self.num_weights
        return -(-(kept * self.weight_bits + places) // 8)


@dataclass(frozen=True)
class ProductCost:
    """One product of two activations on one image, by its name in the graph."""

    name: str
    macs: int
    left_bits: int
    right_bits: int

    @property
    def bit_operations(self) -> int:
        """Multiply-adds times both widths."""
        return self.macs * self.left_bits * self.right_bits


@dataclass(frozen=True)
class Cost:
    """A student on one image; bytes hold weights packed at their own width, without steps and biases."""

    layers: tuple[LayerCost, ...]
    products: tuple[ProductCost, ...] = ()

    @property
    def parts(self) -> tuple[LayerCost | ProductCost, ...]:
        """Layers, then products."""
        return (*self.layers, *self.products)

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        return sum(part.macs for part in self.parts)

    @property
    def bit_operations(self) -> int:
        """BOPs at the student's widths."""
        return sum(part.bit_operations for part in self.parts)

    @property
    def float_bit_operations(self) -> int:
        """BOPs with every width at 32."""
        return self.macs * FLOAT_BITS**2

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, each tensor rounded up to whole bytes."""
        return sum(layer.weight_bytes for layer in self.layers)

    @property
    def float_weight_bytes(self) -> int:
        """Bytes of all weights in float32."""
        return sum(layer.num_weights * 4 for layer in self.layers)

    @property
    def mean_weight_bits(self) -> float:
        """Width of a weight, over all weights of all layers."""
        num_weights = sum(layer.num_weights for layer in self.layers)
        return sum(layer.num_weights * layer.weight_bits for layer in self.layers) / max(num_weights, 1)

    @property
    def mean_activation_bits(self) -> float:
        """Width of a layer's input, over all multiply-adds of all layers."""
        macs = sum(layer.macs for layer in self.layers)
        return sum(layer.macs * layer.activation_bits for layer in self.layers) / max(macs, 1)

    def mean_bits(self) -> str:
        """Both means as text."""
        return f"W{self.mean_weight_bits:.2f} A{self.mean_activation_bits:.2f}"

    def summary(self) -> str:
        """One line of the sums."""
        return (
            f"{self.macs:,} multiply-adds, {self.bit_operations:,} bit operations "
            f"(float {self.float_bit_operations:,}), a mean of {self.mean_bits()}, "
            f"{self.weight_bytes:,} weight bytes (float {self.float_weight_bytes:,})"
        )


def student_cost(fitted: FittedStudent) -> Cost:
    """Counted on one image of the student's spec, through torch's FLOP counter."""
    network = fitted.network
    assert isinstance(network, fx.GraphModule)
    bits = {tensor.name: tensor.bits for tensor in fitted.tensors}
    image_bits = FLOAT_BITS if fitted.bits.activations == FLOAT_BITS else IMAGE_BITS
    widths = _operand_bits(network, bits, image_bits)
    macs = _macs(network, fitted.spec.pixels_to_norm(torch.zeros(1, *fitted.spec.shape, dtype=torch.uint8)))
    products = (
        # An einsum may have any number of operands.
        ProductCost(node.name, macs[node], read[0], max(read[1:], default=read[0]))
        for node, read in widths.items()
        if node.op != "call_module"
    )
    return Cost(tuple(_layers(network, bits, widths, macs, fitted)), tuple(products))


def _layers(
    network: fx.GraphModule,
    bits: Mapping[str, int],
    widths: Mapping[fx.Node, list[int]],
    macs: Mapping[fx.Node, int],
    fitted: FittedStudent,
) -> list[LayerCost]:
    """One for each layer, over all its calls; its input is as wide as the widest."""
    sums: Counter[str] = Counter()
    widest: dict[str, int] = {}
    for node, (width, *_) in widths.items():
        if node.op == "call_module":
            name = str(node.target)
            sums[name] += macs[node]
            widest[name] = max(width, widest.get(name, 0))
    return [
        LayerCost(
            name,
            round(sums[name] * fitted.shares.get(name, 1)),
            network.get_parameter(f"{name}.weight").numel(),
            bits.get(f"{name}.weight", FLOAT_BITS),
            width,
            fitted.kept.get(f"{name}.weight"),
        )
        for name, width in widest.items()
    ]


def _operand_bits(
    network: fx.GraphModule, bits: Mapping[str, int], image_bits: int
) -> dict[fx.Node, list[int]]:
    """Call of a layer or product -> width of what it reads: one tensor, or two."""
    return {
        node: [_width(network, each, bits, image_bits if raw else FLOAT_BITS) for each, raw in read]
        for node, read in operands_read(network).items()
    }


def _width(network: fx.GraphModule, source: fx.Node, bits: Mapping[str, int], unquantized: int) -> int:
    if not calls_module(network, source, Quantizer):
        return unquantized
    return bits[row_name(str(source.target))]


def _macs(network: fx.GraphModule, image: Tensor) -> dict[fx.Node, int]:
    """Multiply-adds on one image, which need no numbers."""
    counting = Counting(network)
    device = next(network.parameters()).device
    with without_numbers(network) as mode:
        counting.run(mode.from_tensor(image).to(device))
    return counting.macs
