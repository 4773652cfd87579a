"""All images of a fit, and how far a network has been computed on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from zsq.core.imagespec import ImageSpec
from zsq.core.layout import maps_channels_last
from zsq.core.runtime import Runtime
from zsq.fitting.calibration import norm_batches
from zsq.fitting.features import Features
from zsq.placement.subgraphs import from_known, nearest_known


@dataclass(frozen=True)
class Images:
    """uint8 images of a spec, and where they are computed on."""

    spec: ImageSpec
    pixels_NCHW: Tensor
    runtime: Runtime

    def batches(self) -> Iterator[tuple[int, Tensor]]:
        """(index of the first image, what a network takes), channels_last."""
        start = 0
        for norm in norm_batches(self.spec, self.pixels_NCHW, self.runtime.device):
            yield start, norm
            start += len(norm)

    def rows(self, index_N: Tensor) -> Tensor:
        """What a network takes of these images, channels_last."""
        pixels = self.pixels_NCHW[index_N].to(self.runtime.device)
        return maps_channels_last(self.spec.pixels_to_norm(pixels))


class Frontier:
    """Features of a network at the nodes that later units follow from: each is computed once, from the
    nearest ones that are known.

    What lies before a node must not change once its features are known.
    """

    def __init__(self, network: fx.GraphModule, images: Images) -> None:
        """Nothing is known but the images."""
        self.network, self.images = network, images
        self.known: dict[str, Features] = {}

    @torch.no_grad()
    def features(self, shapes: dict[str, tuple[int, ...]], resident: bool) -> tuple[Features, ...]:
        """Of the nodes `shapes`, which are those of one image; computed where they are not known."""
        num, runtime = len(self.images.pixels_NCHW), self.images.runtime
        made = {
            name: Features(num, shape, runtime, resident)
            for name, shape in shapes.items()
            if name not in self.known
        }
        if made:
            part, starts = from_known(self.network, list(made), self.known)
            for start, norm in self.images.batches():
                index = torch.arange(start, start + len(norm))
                values = part(norm, *(self.known[name].rows(index) for name in starts))
                for features, value in zip(made.values(), values, strict=True):
                    features.write(start, value)
        self.known |= made
        return tuple(self.known[name] for name in shapes)

    def keep(self, names: Sequence[str]) -> None:
        """Forget what the nodes `names` do not follow from."""
        needed = nearest_known(self.network, names, self.known)
        self.known = {name: features for name, features in self.known.items() if name in needed}
