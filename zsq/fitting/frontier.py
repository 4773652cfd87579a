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
from zsq.fitting.features import Features, fits_in_memory
from zsq.placement.subgraphs import from_known, nearest_known
from zsq.placement.units import by_image


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

    def features(self, names: Sequence[str]) -> tuple[Features, ...]:
        """Of the nodes `names`, whose values have the images first."""
        for _ in self.batches(names):
            pass
        return tuple(self.known[name] for name in names)

    @torch.no_grad()
    def batches(self, names: Sequence[str]) -> Iterator[tuple[Tensor, ...]]:
        """Values of the nodes `names`, a batch of images at a time; those that are not known are computed,
        and known from then on where they have the images first."""
        missing = [name for name in names if name not in self.known]
        part, starts = from_known(self.network, missing, self.known)
        kept = [n.name for n in self.network.graph.nodes if n.name in missing and by_image(n)]
        made: dict[str, Features] = {}
        for start, norm in self.images.batches():
            index = torch.arange(start, start + len(norm))
            given = part(norm, *(self.known[name].rows(index) for name in starts))
            values = dict(zip(missing, given, strict=True))
            made = made or self._room({name: tuple(values[name].shape[1:]) for name in kept})
            for name, features in made.items():
                features.write(start, values[name])
            yield tuple(values[name] if name in values else self.known[name].rows(index) for name in names)
        self.known |= made

    def _room(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Features]:
        num, runtime = len(self.images.pixels_NCHW), self.images.runtime
        held = (known.shape for known in self.known.values())
        resident = fits_in_memory(num, [*shapes.values(), *held])
        return {name: Features(num, shape, runtime, resident) for name, shape in shapes.items()}

    def keep(self, names: Sequence[str]) -> None:
        """Forget what the nodes `names` do not follow from."""
        needed = nearest_known(self.network, names, self.known)
        self.known = {name: features for name, features in self.known.items() if name in needed}

    def forget(self, names: Sequence[str]) -> None:
        """These nodes, whose values are about to change."""
        for name in names:
            self.known.pop(name, None)
