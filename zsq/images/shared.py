"""Images that a student is both fitted and scored on."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from torch import Tensor

from zsq.core.wording import quantity
from zsq.images.sources import ImageSet


def shared_lines(fitted: Iterable[ImageSet], evaluation: ImageSet | None) -> list[str]:
    """What to say where sets for fits hold evaluation images, pixel for pixel: a line for each source."""
    if evaluation is None:
        return []
    scored = _digests(evaluation.pixels)
    counts: dict[str, int] = {}
    for images in fitted:
        counts[images.source] = counts.get(images.source, 0) + len(scored & _digests(images.pixels))
    return [
        f"{source}: fit and evaluation share {quantity(count, 'image')}: scores on others may be lower"
        for source, count in counts.items()
        if count
    ]


def _digests(pixels_NCHW: Tensor) -> set[bytes]:
    return {sha256(image.tobytes()).digest() for image in pixels_NCHW.numpy()}
