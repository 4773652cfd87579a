"""A set of images in memory, and what is to be said of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from zsq.core.boxes import Target
from zsq.core.errors import ImagesError
from zsq.core.seeding import numpy_generator
from zsq.core.wording import quantity
from zsq.shards.schema import ShardProvenance


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in memory: `pixels` uint8 (N, C, H, W), `labels` int64 (N,), -1 for none.

    `targets` are what the network should make of each image, see `zsq.tasks.Truth`, None for none.
    `boxes` are the objects that each image shows, see `zsq.core.boxes`, None where they are not known.
    `source` is the SRC as given; `provenance` is that of the first shard, None unless they came from shards;
    `notes` are lines about how it was read that a user should see; `photo_fit` says how photos of other sizes
    were fitted to the teacher, None where there were none.
    """

    pixels: Tensor
    labels: Tensor
    source: str
    provenance: ShardProvenance | None = None
    notes: tuple[str, ...] = ()
    photo_fit: str | None = None
    targets: Tensor | None = None
    boxes: tuple[Target, ...] | None = None

    @property
    def is_shards(self) -> bool:
        """Whether the images came from a shard folder."""
        return self.provenance is not None

    def __len__(self) -> int:
        """N."""
        return len(self.pixels)

    @property
    def tensors(self) -> list[Tensor]:
        """All that is known of the images: pixels, labels, and the targets or boxes where there are some."""
        known = [self.pixels, self.labels] + ([] if self.targets is None else [self.targets])
        return known + [part for target in self.boxes or () for _, part in sorted(target.items())]

    def subset(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """A copy of the images at `indices`, in that order.

        Raises:
            IndexError: outside the set, or no whole numbers: a mask says `mask.nonzero()[:, 0]`.
        """
        chosen = torch.as_tensor(indices)
        if chosen.numel() and (chosen.dtype == torch.bool or chosen.is_floating_point()):
            raise IndexError(f"indices of {chosen.dtype}; expected whole numbers")
        chosen = chosen.to(torch.int64)
        targets = None if self.targets is None else self.targets[chosen]
        boxes = None if self.boxes is None else tuple(self.boxes[index] for index in chosen.tolist())
        pixels, labels = self.pixels[chosen], self.labels[chosen]
        return replace(self, pixels=pixels, labels=labels, targets=targets, boxes=boxes)

    def disjoint_sets(self, num_sets: int, count: int, seed: int) -> list[ImageSet]:
        """`num_sets` random sets of `count` images with no image in common.

        Raises:
            ImagesError: not enough images.
        """
        wanted = num_sets * count
        if wanted > len(self):
            raise ImagesError(
                f"{self.source} holds {quantity(len(self), 'image')}",
                f"{wanted} for {quantity(num_sets, 'disjoint set')} of {count}",
                "lower --count or give more images",
            )
        order = torch.from_numpy(numpy_generator(seed, 0, "disjoint sets").permutation(len(self)))
        return [self.subset(part) for part in order[:wanted].split(count)]


def said(*sets: ImageSet) -> list[str]:
    """The notes of image sets, each with the source it is about, none twice."""
    lines = [
        f"{images.source}: {note}"
        for images in sets
        for note in (*images.notes, *([images.photo_fit] if images.photo_fit else []))
    ]
    return list(dict.fromkeys(lines))


def photo_fits_of(**sets: ImageSet) -> dict[str, Any]:
    """How photos were fitted, as an entry of settings by the name of the set; empty where none were."""
    found = {name: images.photo_fit for name, images in sets.items() if images.photo_fit}
    return {"fitted": found} if found else {}
