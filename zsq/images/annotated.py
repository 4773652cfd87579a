"""Photos with more than a class: a folder or .zip with `images/` and beside it `annotations.json`, boxes in
COCO's form, or `masks/`, where `masks/NAME.png` holds the class of each pixel of `images/NAME.jpg`.

Boxes and masks are fitted to the teacher with their photo; masks to the nearest pixel, so that no class is
made up between two others.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zsq.core.boxes import Target, clipped, scaled
from zsq.core.errors import ImagesError, MismatchError
from zsq.core.files import read_regular
from zsq.core.photofit import PhotoFit
from zsq.images.coco import MAX_JSON_BYTES, fit_target, parse_annotations
from zsq.images.photos import (
    IMAGE_FORMATS,
    MAX_FILE_BYTES,
    Reading,
    check_memory,
    decoded,
    fitted_to,
    is_image,
    named,
    opened_archive,
    read_member,
    spread,
)

IMAGES, ANNOTATIONS, MASKS = "images", "annotations.json", "masks"
# One byte a pixel is its class: grey, or a palette, whose numbers count and not its colours.
MASK_MODES = ("L", "P", "1")


class Annotated(NamedTuple):
    """`pixels` uint8 (N, C, H, W), then what there is: `boxes` of each image and `masks` uint8 (N, H, W)."""

    pixels: Tensor
    boxes: tuple[Target, ...] | None
    masks: Tensor | None
    notes: tuple[str, ...]
    photo_fit: str | None


class Tree(NamedTuple):
    """Files below a root.

    Attributes:
        source: what messages call the root.
        names: of the files that matter here, as posix paths below it.
        read: (name, most bytes) -> content; raises what `UNREADABLE` lists.
    """

    source: str
    names: frozenset[str]
    read: Callable[[str, int], bytes]

    @property
    def is_annotated(self) -> bool:
        """Whether it has the layout that this file reads."""
        return ANNOTATIONS in self.names or {IMAGES, MASKS} <= {name.partition("/")[0] for name in self.names}


def folder_tree(folder: Path) -> Tree:
    """All files of a folder that has the layout, none of another's."""
    annotated = (folder / ANNOTATIONS).exists() or all((folder / top).is_dir() for top in (IMAGES, MASKS))
    paths = folder.rglob("*") if annotated else ()
    names = frozenset(path.relative_to(folder).as_posix() for path in paths)
    return Tree(str(folder), names, lambda name, most: read_regular(folder / name, most))


@contextmanager
def archive_tree(path: Path) -> Iterator[Tree]:
    """Of a .zip, whose files may all stand in one folder.

    Raises:
        ImagesError: no .zip.
    """
    with opened_archive(path) as archive:
        infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        root = _common_root(list(infos))
        names = frozenset(name.removeprefix(root) for name in infos if name.startswith(root))

        yield Tree(str(path), names, lambda name, most: read_member(archive, infos[root + name], most))


def read_annotated(tree: Tree, reading: Reading) -> Annotated:
    """The photos with their boxes and masks: those of the annotations in their order, else all by name.

    Raises:
        ImagesError, MismatchError: files that are missing, damaged or do not fit together.
    """
    where = f"{tree.source}: {ANNOTATIONS}"
    photos = sorted(name for name in tree.names if is_image(PurePosixPath(name)) and not _is_mask(name))
    listed = None
    if ANNOTATIONS in tree.names:
        with named(where):
            data = tree.read(ANNOTATIONS, MAX_JSON_BYTES)
        listed = parse_annotations(data, where, reading.class_names)
    names = photos if listed is None else [_found(tree, photo.file_name, where) for photo in listed]
    if not names:
        raise ImagesError(f"{tree.source} has no photos in {IMAGES}/", "at least one")
    left = len(set(photos) - set(names))
    notes = (f"{left} photos are not in {ANNOTATIONS} and are left out",) if left else ()
    chosen = spread(len(names), reading.limit).tolist()
    names, sizes = [names[index] for index in chosen], [(0, 0)] * len(chosen)
    masks_of = _mask_names(tree, names)

    def open_photo(index: int) -> Image.Image:
        image = Image.open(io.BytesIO(tree.read(names[index], MAX_FILE_BYTES)), formats=IMAGE_FORMATS)
        sizes[index] = (image.height, image.width)
        return image

    pixels, photo_fit = decoded(names, open_photo, reading)
    size, boxes = (pixels.shape[2], pixels.shape[3]), None
    if listed is not None:
        found = [fit_target(listed[i], photo, where) for i, photo in zip(chosen, sizes, strict=True)]
        boxes = tuple(
            _moved(each, photo, size, reading.fit) for each, photo in zip(found, sizes, strict=True)
        )
    masks = _read_masks(tree, masks_of, sizes, size, reading.fit) if masks_of else None
    return Annotated(pixels, boxes, masks, notes, photo_fit)


def _common_root(names: Sequence[str]) -> str:
    """`folder/` where all files stand in one; else nothing."""
    tops = {name.partition("/")[0] for name in names if not name.startswith("__MACOSX/")}
    return f"{tops.pop()}/" if len(tops) == 1 else ""


def _found(tree: Tree, file_name: str, where: str) -> str:
    """COCO's own names are below `images/`; others write them from the root."""
    name = PurePosixPath(file_name).as_posix()
    for candidate in (f"{IMAGES}/{name}", name):
        if candidate in tree.names and is_image(PurePosixPath(candidate)):
            return candidate
    raise ImagesError(f"{where} lists {file_name!r}", f"a photo {IMAGES}/{name}")


def _is_mask(name: str) -> bool:
    return name.startswith(f"{MASKS}/")


def _mask_names(tree: Tree, names: Sequence[str]) -> list[str]:
    """The mask of each photo, none where there are no masks at all."""
    if not any(map(_is_mask, tree.names)):
        return []
    found = []
    for name in names:
        below = PurePosixPath(name.removeprefix(f"{IMAGES}/")).with_suffix(".png").as_posix()
        if f"{MASKS}/{below}" not in tree.names:
            raise ImagesError(f"{tree.source}: {name} has no mask", f"{MASKS}/{below}")
        found.append(f"{MASKS}/{below}")
    return found


def _moved(target: Target, photo: tuple[int, int], size: tuple[int, int], fit: PhotoFit) -> Target:
    """The boxes in pixels of the image that their photo became; what a crop cuts away is dropped."""
    if photo == size:
        return target
    (height, width), lost = fit.placed(photo, size)
    moved = scaled(target, (height / photo[0], width / photo[1]), lost)
    return moved if (height, width) == size else clipped(moved, size)


def _read_masks(
    tree: Tree, names: Sequence[str], photos: Sequence[tuple[int, int]], size: tuple[int, int], fit: PhotoFit
) -> Tensor:
    check_memory(names[0], len(names), (1, *size))
    masks = np.empty((len(names), *size), np.uint8)
    for index, (name, photo) in enumerate(zip(names, photos, strict=True)):
        where = f"{tree.source}: {name}"
        with named(where), Image.open(io.BytesIO(tree.read(name, MAX_FILE_BYTES)), formats=("PNG",)) as mask:
            if mask.mode not in MASK_MODES:
                raise ImagesError(
                    f"{where} has mode {mask.mode}", "one channel of 8 bits: the class of each pixel"
                )
            if (mask.height, mask.width) != photo:
                found, expected = f"{mask.width}x{mask.height} px", f"{photo[1]}x{photo[0]}, as its photo"
                raise MismatchError(f"{where} is {found}", expected)
            same = photo == size
            masks[index] = np.asarray(mask if same else fitted_to(mask, size, fit, Image.Resampling.NEAREST))
    return torch.from_numpy(masks)
