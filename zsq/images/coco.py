"""`annotations.json` in COCO's form: which photos there are, and the boxes of objects in them.

The file is a stranger's: its size is looked at first, and whatever does not fit together is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zsq.core.boxes import Target
from zsq.core.errors import ImagesError, first_line
from zsq.core.records import first_fault
from zsq.images.class_names import ClassNames, spelled
from zsq.images.photos import check_bytes

MAX_JSON_BYTES = 2**30
# What is kept of it takes about as much, and reading it as much again.
BYTES_PER_BYTE = 4
# Boxes were drawn by hand and rounded: so much beyond the border, or this share of the side, is cut off.
OUTSIDE_PIXELS, OUTSIDE_SHARE = 2.0, 0.01

Identity = Annotated[int, Field(ge=-(2**62), le=2**62)]


class _Row(BaseModel):
    """COCO's rows hold more than is read here, such as outlines."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class _Photo(_Row):
    id: Identity
    file_name: Annotated[str, Field(min_length=1, max_length=1024)]
    width: int | None = None
    height: int | None = None


class _Object(_Row):
    image_id: Identity
    category_id: Identity
    bbox: tuple[float, float, float, float]
    iscrowd: Annotated[int, Field(ge=0, le=1)] = 0


class _Category(_Row):
    id: Identity
    name: str


class _File(_Row):
    images: tuple[_Photo, ...]
    annotations: tuple[_Object, ...]
    categories: tuple[_Category, ...]


class AnnotatedPhoto(NamedTuple):
    """A photo of the list.

    Attributes:
        file_name: as the file has it.
        size: (height, width) where the file says it.
        target: boxes in pixels of the photo, and also `iscrowd` bool (n,).
    """

    file_name: str
    size: tuple[int, int] | None
    target: Target


def parse_annotations(data: bytes, where: str, class_names: ClassNames) -> list[AnnotatedPhoto]:
    """The photos in the order of the file.

    Args:
        where: what messages call the file.
        class_names: where it lists names, categories are classes by their names; else by their ids.

    Raises:
        ImagesError: not in COCO's form, an id that does not exist or exists twice, or a box that is none.
    """
    check_bytes(f"{where} to be read", BYTES_PER_BYTE * len(data))
    try:
        # A tuple is a JSON list here, which a strict model takes from JSON alone.
        file = _File.model_validate_json(data)
    except ValidationError as error:
        raise ImagesError(f"{where}: {first_fault(error)}", "annotations in COCO's form") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ImagesError(f"{where} cannot be read ({first_line(error)})", "JSON") from None
    if not file.images:
        raise ImagesError(f"{where} lists no images", "at least one")
    _refuse_twice(where, [photo.id for photo in file.images], "image id")
    _refuse_twice(where, [photo.file_name for photo in file.images], "file_name")
    label_of = category_labels({row.id: row.name for row in file.categories}, where, class_names)
    objects: dict[int, list[_Object]] = {photo.id: [] for photo in file.images}
    for index, row in enumerate(file.annotations):
        for known, key, found in (
            (objects, "image_id", row.image_id),
            (label_of, "category_id", row.category_id),
        ):
            if found not in known:
                raise ImagesError(f"{where}: annotation {index} has {key} {found}", "an id of its lists")
        if min(row.bbox[2:]) < 0:
            raise ImagesError(f"{where}: annotation {index} has bbox {row.bbox}", "x, y, width and height")
        objects[row.image_id].append(row)
    return [_photo(photo, objects[photo.id], label_of, where) for photo in file.images]


def category_labels(names: Mapping[int, str], where: str, class_names: ClassNames) -> dict[int, int]:
    """Category id -> class.

    Raises:
        ImagesError: a name that the list of classes does not have, or an id that is no class.
    """
    if class_names.by_order:
        return {identity: rank for rank, identity in enumerate(sorted(names))}
    if class_names.stated:
        found = {identity: class_names.known.get(spelled(name)) for identity, name in names.items()}
        for identity, label in found.items():
            if label is None:
                raise class_names.unknown(f"{where} has a category", names[identity])
        return {identity: label for identity, label in found.items() if label is not None}
    for identity in names:
        if identity < 0 or (class_names.num_classes is not None and identity >= class_names.num_classes):
            expected = f"0 to {(class_names.num_classes or 0) - 1}, the teacher's classes"
            remedy = "list `classes` in the teacher card: categories are then found by their names"
            raise ImagesError(f"{where} has category id {identity} ('{names[identity]}')", expected, remedy)
    return {identity: identity for identity in names}


def fit_target(photo: AnnotatedPhoto, size: tuple[int, int], where: str) -> Target:
    """The boxes of a photo whose (height, width) turned out to be `size`, cut at its border.

    Raises:
        ImagesError: the file says another size, or a box lies outside.
    """
    if photo.size is not None and photo.size != size:
        found, stated = (f"{width}x{height}" for height, width in (size, photo.size))
        raise ImagesError(f"{where}: {photo.file_name} is {found} px", f"{stated}, as the annotations say")
    height, width = size
    boxes = photo.target["boxes"]
    limit = boxes.new_tensor([width, height, width, height])
    allowed = (OUTSIDE_SHARE * limit).clamp(min=OUTSIDE_PIXELS)
    outside = ((boxes < -allowed) | (boxes > limit + allowed)).any(1)
    if outside.any():
        x1, y1, x2, y2 = boxes[outside][0].tolist()
        found = f"{where}: {photo.file_name} has a box from ({x1:g}, {y1:g}) to ({x2:g}, {y2:g})"
        raise ImagesError(found, f"boxes inside of its {width}x{height} px")
    return photo.target | {"boxes": boxes.clamp(min=0).minimum(limit)}


def _photo(photo: _Photo, rows: list[_Object], label_of: Mapping[int, int], where: str) -> AnnotatedPhoto:
    path = PurePosixPath(photo.file_name)
    if path.is_absolute() or ".." in path.parts or "\\" in photo.file_name:
        raise ImagesError(f"{where}: file_name {photo.file_name!r}", "a path below the folder")
    boxes = torch.tensor([row.bbox for row in rows], dtype=torch.float64).reshape(-1, 4)
    target = {
        "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
        "labels": torch.tensor([label_of[row.category_id] for row in rows], dtype=torch.int64),
        "iscrowd": torch.tensor([row.iscrowd == 1 for row in rows], dtype=torch.bool),
    }
    stated = None if photo.height is None or photo.width is None else (photo.height, photo.width)
    return AnnotatedPhoto(photo.file_name, stated, target)


def _refuse_twice(where: str, values: list[int] | list[str], what: str) -> None:
    seen: set[int | str] = set()
    for value in values:
        if value in seen:
            raise ImagesError(f"{where} has {what} {value!r} twice", "each once")
        seen.add(value)
