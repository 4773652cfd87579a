"""AQuant: the borders at which activations are rounded up are learned, channel by channel."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, fx, nn

from zsq.contract import Facts
from zsq.core.options import Options
from zsq.fitting.dropping import DEVIATIONS, DroppingOptions, DroppingStudent
from zsq.fitting.reconstruction import ParameterGroup
from zsq.fitting.unitwise import Fitting
from zsq.graph.vocabulary import is_layer
from zsq.placement.sites import Placement, Site
from zsq.quantizers.grids import FakeQuantizer, Quantizer
from zsq.quantizers.thresholds import LearnedBorders


class AQuantOptions(DroppingOptions):
    """`border_start=weights`: borders start where the layer's products have the least error alone, instead of
    at rounding to nearest."""

    border_learning_rate: float = Field(1e-3, gt=0)
    border_start: Literal["nearest", "weights"] = "weights"


class AQuant(DroppingStudent):
    """As QDrop, and each channel of an activation has learned thresholds between its levels."""

    name = "aquant"
    form = "thresholds"
    facts = Facts(
        paper="AQuant, Li et al. 2022 (arXiv:2208.11945), from its abstract",
        summary="as QDrop, with learned borders at which activations are rounded up, per channel",
        deviations=(
            "the paper's form of the border, its training and its setting are not public: ours is affine in "
            "the level, per channel of a layer's input, and one for both operands of a product",
            "its figure for ResNet-18 at W2A2 is no target",
            *DEVIATIONS,
        ),
    )
    options_class: ClassVar[type[Options]] = AQuantOptions
    options: AQuantOptions
    step_work = 1.9

    def groups(self) -> tuple[ParameterGroup, ...]:
        """Those of QDrop, and the borders."""
        rate = self.options.border_learning_rate
        return (*super().groups(), ParameterGroup("border", rate, cosine=True))

    def softened(self, state: Fitting, site: Site, quantizer: FakeQuantizer) -> Quantizer:
        """With learned borders."""
        slope_C, axis = first_slopes(state.placement, site)
        if self.options.border_start == "nearest":
            slope_C = torch.zeros_like(slope_C)
        return LearnedBorders(quantizer, slope_C.to(quantizer.step.device), axis)

    def settled(self, state: Fitting, site: Site, quantizer: Quantizer) -> Quantizer:
        """Thresholds."""
        if isinstance(quantizer, FakeQuantizer):
            quantizer = LearnedBorders(quantizer, torch.zeros_like(quantizer.step)[None], 1)
        assert isinstance(quantizer, LearnedBorders)
        return quantizer.hardened()


@torch.no_grad()
def first_slopes(placement: Placement, site: Site) -> tuple[Tensor, int]:
    """k per channel of what a site quantizes, and the axis of channels: ||W'||^2 / <W, W'> - 1, over all taps
    and outputs of the layers that read it, where W' is W on its grid. Zero of one channel for products and
    for layers of several groups.
    """
    network = placement.network
    readers = [
        user
        for node in network.graph.nodes
        if node.op == "call_module" and str(node.target) == site.path
        for user in node.users
    ]
    layers = [_layer(network, reader) for reader in readers]
    if not layers or any(layer is None or getattr(layer, "groups", 1) > 1 for layer in layers):
        return torch.zeros(1), 1
    linear = {isinstance(layer, nn.Linear) for layer in layers}
    widths = {layer.get_parameter("weight").shape[1] for layer in layers if layer is not None}
    if len(linear) > 1 or len(widths) > 1:
        return torch.zeros(1), 1
    numerator, denominator = torch.zeros(()), torch.zeros(())
    for layer in layers:
        assert layer is not None
        weight: Tensor = layer.get_parameter("weight").detach()
        quantizer = getattr(layer, "weight_quantizer", None)
        rounded = quantizer(weight) if isinstance(quantizer, Quantizer) else weight
        taps = [axis for axis in range(weight.dim()) if axis != 1]
        numerator = numerator.to(weight.device) + rounded.square().sum(taps)
        denominator = denominator.to(weight.device) + (weight * rounded).sum(taps)
    slope = torch.where(denominator > 0, numerator / denominator - 1, torch.zeros_like(numerator))
    return slope, -1 if True in linear else 1


def _layer(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if is_layer(network, node) else None
