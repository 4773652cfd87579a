"""ERQ: RepQ-ViT's grids, and weights that take up the errors of their inputs and of their own rounding."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from zsq.contract import Facts, Fit
from zsq.core.options import Options
from zsq.fitting.frontier import Frontier, Images
from zsq.fitting.ridge import Moments, input_corrected, moments_of, rounded
from zsq.placement.sites import Placement, Site
from zsq.students.repq import RepQ, percentile_weight


class ERQOptions(Options):
    """Strengths of the ridge, in mean squares of an input; `most_flips` in each row of a half of a weight."""

    # Published: 1,000 to 2,000 for sums over 32 images of 197 tokens.
    input_ridge: float = Field(0.2, gt=0)
    weight_ridge: float = Field(0.2, gt=0)
    most_flips: int = Field(100, ge=0)


class ERQ(RepQ):
    """The inputs of one linear layer after the other come from the network as it is quantized so far."""

    name = "erq"
    facts = Facts(
        paper="ERQ, Zhong et al. 2024 (arXiv:2407.06794)",
        summary="repq, and each layer's weights take up the errors of their inputs and of their rounding; "
        "nothing trained",
        needs_layer_norm=True,
        deviations=(
            "the strength of the ridge counts mean squares of an input instead of 1,000 to 2,000 of the sums",
            "the float input is the teacher's: errors of earlier layers are taken up too",
            "an output that this makes worse on the images is rounded to the nearest, as repq does",
            "convolutions are rounded to the nearest",
            *RepQ.facts.deviations,
        ),
    )
    options_class: ClassVar[type[Options]] = ERQOptions
    options: ERQOptions

    @torch.no_grad()
    def quantize_weights(self, placement: Placement, fit: Fit) -> None:
        """One layer after the other, in the order of execution."""
        network = placement.network
        full = copy.deepcopy(network)
        for site in placement.of_kind("activation"):
            full.set_submodule(site.path, nn.Identity())
        images = Images(fit.teacher.spec, fit.pixels_NCHW, self.runtime)
        frontiers = Frontier(full, images), Frontier(network, images)
        sites = {site.name.removesuffix(".weight"): site for site in placement.of_kind("weight")}
        linear = [layer for layer in sites if isinstance(network.get_submodule(layer), nn.Linear)]
        for layer, site in sites.items():
            if layer in linear:
                later = linear[linear.index(layer) + 1 :]
                self._correct(placement, site, layer, moments_of(*frontiers, layer, later))
            else:
                placement.put(site, percentile_weight(placement.weight(site), site.bits))

    def _correct(self, placement: Placement, site: Site, layer: str, moments: Moments) -> None:
        options, weight = self.options, placement.weight(site)
        nearest = percentile_weight(weight, site.bits)
        corrected, shift_O = input_corrected(weight, moments, options.input_ridge)
        grid = percentile_weight(corrected, site.bits)
        learned = rounded(corrected, grid, moments, options.weight_ridge, options.most_flips)
        plain = nearest(weight)
        # NaN, of a ridge too weak for the images, is not better either.
        better_O = moments.error(learned, shift_O) <= moments.error(plain, torch.zeros_like(shift_O))
        grid.step.copy_(torch.where(better_O[:, None], grid.step, nearest.step))
        grid.zero_point.copy_(torch.where(better_O[:, None], grid.zero_point, nearest.zero_point))
        weight.copy_(torch.where(better_O[:, None], learned, plain))
        module: Any = placement.network.get_submodule(layer)
        bias = 0 if module.bias is None else module.bias
        module.bias = nn.Parameter(bias + torch.where(better_O, shift_O, 0.0), requires_grad=False)
        placement.put(site, grid)
