"""Images in the teacher's normalisation, for plain torch; the other adapters stand on this one.

Tensor suffixes: N images, C channels, H height, W width (of the network's input).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zsq.core.errors import MismatchError, OptionError
from zsq.core.imagespec import ImageSpec
from zsq.images.imageset import ImageSet
from zsq.images.sources import load_images
from zsq.shards.manifest import holds_shards
from zsq.shards.reader import ShardDataset
from zsq.shards.schema import ShardProvenance

Images = str | Path | ShardDataset | ImageSet


class CalibrationImages(Dataset[tuple[Tensor, int]]):
    """Images as the network takes them: float32 (C, H, W), normalised and resized, and labels (-1: none).

    Shards are read as they are asked for, in the worker; other sources are in memory.
    """

    def __init__(self, images: Images, spec: ImageSpec | None = None) -> None:
        """Open `images`: a run's folder, a `ShardDataset`, an `ImageSet`, or any SRC.

        Args:
            spec: the teacher's; without it that of the shards holds.

        Raises:
            MismatchError: images that name no teacher and no `spec`, or of another shape than its.
            OptionError: something that is no images.
            ImagesError, ShardError: no images, or damaged ones.
        """
        if isinstance(images, str | Path):
            images = ShardDataset(images) if holds_shards(images) else load_images(images, spec)
        if not isinstance(images, ShardDataset | ImageSet):
            found = f"images in a {type(images).__name__}"
            raise OptionError(found, "a run's folder, a ShardDataset, an ImageSet, or the name of a source")
        self.images: ShardDataset | ImageSet = images
        self.spec = spec or _own_spec(images)
        pixels = images.spec.shape if isinstance(images, ShardDataset) else tuple(images.pixels.shape[1:])
        if pixels != self.spec.shape:
            raise MismatchError(f"images of {pixels}", f"{self.spec.shape} as the teacher takes")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image and its label."""
        index = range(len(self))[index]
        norm = self.norm([index])[0]
        if isinstance(self.images, ShardDataset):
            return norm, int(self.images.labels([index])[0])
        return norm, int(self.images.labels[index])

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """The stored images: uint8 (n, C, H, W)."""
        if isinstance(self.images, ShardDataset):
            return self.images.pixels(indices)
        return self.images.pixels[torch.as_tensor(indices)]

    def norm(self, indices: Sequence[int]) -> Tensor:
        """The network's input: float32 (n, C, H, W)."""
        return self.spec.pixels_to_norm(self.pixels(indices))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W), or (C, L), of the network's input."""
        return (self.spec.channels, *self.spec.network_size)


class Batches(Sequence[Tensor]):
    """The images in order as batches of the network's input; the last may be smaller. Nothing is kept."""

    def __init__(self, images: Images, batch: int, spec: ImageSpec | None = None) -> None:
        """`batch` images each.

        Raises:
            OptionError: a batch below 1; else as `CalibrationImages`.
        """
        _check_batch(batch)
        self.images = images if isinstance(images, CalibrationImages) else CalibrationImages(images, spec)
        self.batch = batch

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.images) // self.batch)

    def __getitem__(self, index: Any) -> Any:
        """Batch number `index`."""
        first = range(0, len(self.images), self.batch)[index]
        return self.images.norm(range(first, min(first + self.batch, len(self.images))))


def data_loader(
    images: Images,
    batch: int = 32,
    *,
    spec: ImageSpec | None = None,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
) -> DataLoader[tuple[Tensor, int]]:
    """A torch DataLoader of (float32 (n, C, H, W) in the teacher's normalisation, int64 labels (n,)).

    Raises:
        OptionError: a batch below 1.
        MismatchError, ImagesError, ShardError: as `CalibrationImages`.
    """
    _check_batch(batch)
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        CalibrationImages(images, spec),
        batch_size=batch,
        shuffle=shuffle,
        generator=generator,
        num_workers=num_workers,
    )


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise OptionError(f"batch {batch}", "at least 1")


def _own_spec(images: ShardDataset | ImageSet) -> ImageSpec:
    provenance: ShardProvenance | None = images.provenance
    if provenance is None or provenance.teacher is None:
        remedy = "pass spec=, as zsq.load_teacher(...).spec gives it"
        raise MismatchError("these images name no teacher", "the normalisation of one", remedy)
    return provenance.spec
