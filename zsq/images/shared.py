"""Images in two sets that should share none, pixel for pixel: what is refused, and what is warned of."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from hashlib import sha256

from torch import Tensor

from zsq.core.errors import MismatchError
from zsq.core.wording import quantity
from zsq.images.imageset import ImageSet

# A set's name in messages, and the digests of its images.
Named = tuple[str, set[bytes]]


def named(images: ImageSet) -> Named:
    """By its source."""
    return images.source, digests_of(images.pixels)


def warn_of_scored(fitted: Iterable[Named], evaluation: ImageSet | None) -> None:
    """Warn where sets for fits hold evaluation images: once for each name."""
    if evaluation is None:
        return
    scored = digests_of(evaluation.pixels)
    counts: dict[str, int] = {}
    for name, own in fitted:
        counts[name] = counts.get(name, 0) + len(scored & own)
    for name, count in counts.items():
        if count:
            _warn(
                f"{name}: fit and evaluation share {quantity(count, 'image')}: scores on others may be lower"
            )


def check_compared(shard_sets: Iterable[Named], real: Iterable[ImageSet]) -> None:
    """Refuse a set that is compared with its own images as the real ones, and warn of some that are.

    Raises:
        MismatchError: the real images hold all of a set.
    """
    known = {digest for images in real for digest in digests_of(images.pixels)}
    for name, own in shard_sets:
        if own <= known:
            found = f"the images of {name} are those of --real"
            raise MismatchError(found, "a set to compare with real images", "give others as --real")
        if own & known:
            _warn(
                f"{name} and the real images share {quantity(len(own & known), 'image')}: the gap comes out "
                "too small; give other images as --real"
            )


def check_different(sets: Iterable[Named]) -> None:
    """Refuse sets of the same images, in any order, and warn of some: intervals count them as several draws.

    Raises:
        MismatchError: two sets hold the same images.
    """
    known: list[tuple[str, set[bytes]]] = []
    for name, own in sets:
        for other, digests in known:
            if own == digests:
                found = f"the sets {other} and {name} hold the same images"
                raise MismatchError(found, "each set once", "make the other one with another --seed")
            if own & digests:
                _warn(
                    f"the sets {other} and {name} share {quantity(len(own & digests), 'image')}: intervals "
                    "come out too narrow; make one of the sets with another --seed"
                )
        known.append((name, own))


def check_known_membership(train: ImageSet, holdout: ImageSet) -> None:
    """Refuse training and held-out images that are the same ones, and warn of some: an audit cannot tell
    them apart, whatever the network remembers.

    Raises:
        MismatchError: one of both holds nothing but images of the other.
    """
    seen, unseen = digests_of(train.pixels), digests_of(holdout.pixels)
    shared = seen & unseen
    if shared and shared in (seen, unseen):
        found = f"the training images {train.source} and the held-out images {holdout.source} are the same"
        raise MismatchError(found, "held-out images that the network was not trained on")
    if shared:
        _warn(
            f"training and held-out images share {quantity(len(shared), 'image')}: the audit finds less than "
            "there is; take them out of one of both"
        )


def warn_of_seen(synthetic: ImageSet, holdout: ImageSet) -> None:
    """Warn where a set that is audited holds held-out images."""
    count = len(digests_of(synthetic.pixels) & digests_of(holdout.pixels))
    if count:
        _warn(
            f"{synthetic.source} and the held-out images share {quantity(count, 'image')}: the audit finds "
            "less than there is; give held-out images that the method has not read either"
        )


def digests_of(pixels_NCHW: Tensor) -> set[bytes]:
    """One for each different image of uint8 (N, C, H, W)."""
    return {sha256(image.tobytes()).digest() for image in pixels_NCHW.numpy()}


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=3)
