"""What is in a shard: the arrays, the attributes, and the one check that writer, reader and verify share.

Tensor suffixes: N images of the shard, C channels, H height, W width, K outputs of the teacher, B boxes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeInt, TypeAdapter, ValidationError

from zsq.core.boxes import Target
from zsq.core.errors import OptionError, ShardError
from zsq.core.imagespec import ImageSpec
from zsq.core.records import Record, Sha256, first_fault
from zsq.core.wording import quantity

FORMAT_VERSION = 1

SHARD_PATTERN = r"^shard-[0-9]{5}\.h5$"

# Dataset name -> little-endian dtype and number of dimensions; the order is the order in the file.
ARRAYS: dict[str, tuple[np.dtype[Any], int]] = {
    "pixels": (np.dtype("u1"), 4),
    "labels": (np.dtype("<i8"), 1),
    "targets": (np.dtype("<f2"), 2),
    "logits": (np.dtype("<f4"), 2),
    "bn_distance": (np.dtype("<f4"), 1),
    "patch_entropy": (np.dtype("<f4"), 1),
    "head_similarity": (np.dtype("<f4"), 1),
    "box_ends": (np.dtype("<i8"), 1),
    "boxes": (np.dtype("<f4"), 2),
    "box_labels": (np.dtype("<i8"), 1),
}
# What the teacher says of each image: a number, NaN where it has none to say.
DIAGNOSTICS = ("bn_distance", "patch_entropy", "head_similarity")
OPTIONAL_ARRAYS = frozenset(
    {"targets", "logits", "patch_entropy", "head_similarity", "box_ends", "boxes", "box_labels"}
)
# Those with a row per box; HDF5 stores no chunk of nothing, so both are absent where no image has a box.
BOX_ARRAYS = frozenset({"boxes", "box_labels"})

# float16 keeps 11 significant bits, so a row of rounded probabilities is off by at most 2**-11 plus the
# subnormals of very many classes; anything beyond this is not a rounded distribution.
TARGET_SUM_TOLERANCE = 0.01


def shard_name(index: int) -> str:
    """File name of shard `index`.

    Raises:
        OptionError: more shards than five digits can name.
    """
    if not 0 <= index <= 99_999:
        raise OptionError(f"shard number {index}", "at most 100000 shards", "use a larger --shard-size")
    return f"shard-{index:05d}.h5"


class ShardEntry(Record):
    """One line of a manifest's list of shards."""

    file: Annotated[str, Field(pattern=SHARD_PATTERN)]
    sha256: Sha256
    num_images: Annotated[int, Field(gt=0)]


@dataclass(frozen=True, eq=False)
class ShardContent:
    """The arrays of one shard.

    pixels       uint8 (N, C, H, W), of signals (N, C, L)
    labels       int64 (N,), -1 where there is none
    logits       float32 (N, K), the teacher's on the stored pixels; None for images made without a teacher
    bn_distance  float32 (N,), NaN where the teacher has no BN or there is no teacher
    targets      float16 (N, K), rows sum to 1; None for a method without labels
    boxes        of each image, see `zsq.core.boxes`; None for a method that makes none
    patch_entropy    float32 (N,), of patch similarities; None of a teacher with BN or without attention
    head_similarity  float32 (N,), 0 to 1, of an attention's heads; NaN where none has two, None as above
    """

    pixels: np.ndarray
    labels: np.ndarray
    logits: np.ndarray | None
    bn_distance: np.ndarray
    targets: np.ndarray | None = None
    boxes: tuple[Target, ...] | None = None
    patch_entropy: np.ndarray | None = None
    head_similarity: np.ndarray | None = None

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.pixels)

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array) of those that are there, in the order of the file."""
        ragged = box_arrays(self.boxes) if self.boxes is not None else {}
        for name in ARRAYS:
            array = ragged.get(name) if name == "box_ends" or name in BOX_ARRAYS else getattr(self, name)
            if array is not None:
                yield name, array


def box_arrays(boxes: Sequence[Target]) -> dict[str, np.ndarray]:
    """The boxes of N images one after another: `boxes` float32 (B, 4) and `box_labels` int64 (B,), absent
    where B is 0, and `box_ends` int64 (N,), how many boxes this image and those before it have."""
    found = {"box_ends": np.cumsum([len(each["labels"]) for each in boxes], dtype=np.int64)}
    if found["box_ends"][-1] > 0:
        found["boxes"] = np.concatenate([each["boxes"].cpu().float().numpy() for each in boxes])
        found["box_labels"] = np.concatenate([each["labels"].cpu().long().numpy() for each in boxes])
    return found


@dataclass(frozen=True)
class ShardProvenance:
    """Where a shard's images come from. `teacher` and its hash are None for images made elsewhere.

    `groups` are the indices of the plan's groups in this shard, `first_image` is the number of its first
    image in the run, `data_read` what of the real world the method read ("none", or what).
    """

    teacher: str | None
    teacher_sha256: str | None
    spec: ImageSpec
    method: str
    options: dict[str, Any]
    seed: NonNegativeInt
    groups: tuple[int, ...]
    first_image: NonNegativeInt
    data_read: str

    def shared(self) -> dict[str, Any]:
        """What all shards of a run have in common, JSON-ready."""
        own = ("groups", "first_image")
        return {name: value for name, value in self.attributes().items() if name not in own}

    def attributes(self) -> dict[str, Any]:
        """Attribute name -> JSON value, the format version first.

        Raises:
            OptionError: an option that is infinite or NaN, which JSON cannot say.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["spec"] = self.spec.model_dump(mode="json")
        try:
            text = json.dumps(fields, allow_nan=False)
        except ValueError:
            raise OptionError(f"options {self.options}", "finite numbers") from None
        return {"format_version": FORMAT_VERSION} | json.loads(text)

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], file: str) -> ShardProvenance:
        """Parse JSON values.

        Raises:
            ShardError: another format version, or a value that is missing or of another kind.
        """
        version = attributes["format_version"]
        if version != FORMAT_VERSION:
            raise ShardError(
                f"{file}: format version {version}", str(FORMAT_VERSION), "read it with the zsq that wrote it"
            )
        values = {name: value for name, value in attributes.items() if name != "format_version"}
        try:
            return _PROVENANCE.validate_python(values)
        except ValidationError as error:
            raise ShardError(f"{file}: attribute {first_fault(error)}") from None


_PROVENANCE = TypeAdapter(ShardProvenance)

ATTRIBUTES = ("format_version", *(field.name for field in dataclasses.fields(ShardProvenance)))


def check_content(content: ShardContent, spec: ImageSpec, file: str) -> None:
    """Check every array against the schema and against the others.

    Raises:
        ShardError: naming `file` and the first array that has another dtype, shape or range.
    """
    num_images = content.num_images
    if num_images == 0:
        raise ShardError(f"{file}: no images", "at least one")
    for name, array in content.arrays():
        dtype, ndim = ARRAYS[name]
        ndim = 1 + len(spec.shape) if name == "pixels" else ndim
        right = name in BOX_ARRAYS or len(array) == num_images
        if array.dtype != dtype or array.ndim != ndim or not right or 0 in array.shape:
            found = f"{name} is {array.dtype} {array.shape}"
            raise ShardError(
                f"{file}: {found}", f"{dtype}, {ndim} dimensions, {quantity(num_images, 'image')}"
            )
    if content.pixels.shape[1:] != spec.shape:
        raise ShardError(f"{file}: images of {content.pixels.shape[1:]}", f"{spec.shape} of its image spec")
    _check_outputs(content, file)
    _check_labels(content, file)
    for boxes in content.boxes or ():
        check_boxes(boxes, spec, file)
    for name in DIAGNOSTICS:
        values = getattr(content, name)
        if values is None:
            continue
        if np.isinf(values).any():
            raise ShardError(f"{file}: {name} is infinite", "finite numbers, or NaN for none")
        if name != "patch_entropy" and (values < 0).any():
            raise ShardError(f"{file}: {name} is negative", "0 or more, or NaN for none")


def _check_outputs(content: ShardContent, file: str) -> None:
    logits, targets = content.logits, content.targets
    if logits is not None and not np.isfinite(logits).all():
        raise ShardError(f"{file}: logits are not all finite", "finite numbers")
    if targets is None:
        return
    if logits is not None and logits.shape != targets.shape:
        raise ShardError(f"{file}: targets {targets.shape} and logits {logits.shape}", "the same shape")
    sums = targets.astype(np.float64).sum(axis=1)
    # The comparisons are written so that NaN fails them.
    if not (targets >= 0).all() or not (np.abs(sums - 1) <= TARGET_SUM_TOLERANCE).all():
        raise ShardError(f"{file}: targets are not probabilities", "rows from 0 to 1 that sum to 1")


def _check_labels(content: ShardContent, file: str) -> None:
    outputs = content.logits if content.logits is not None else content.targets
    lowest, highest = int(content.labels.min()), int(content.labels.max())
    if lowest < -1:
        raise ShardError(f"{file}: label {lowest}", "-1 for none, or a class from 0")
    if outputs is not None and highest >= outputs.shape[1]:
        raise ShardError(f"{file}: label {highest}", f"less than the {quantity(outputs.shape[1], 'class')}")


def check_boxes(boxes: Target, spec: ImageSpec, file: str) -> None:
    """Check the boxes of one image.

    Raises:
        ShardError: naming `file`; boxes without area or not in the image, or labels below 0.
    """
    corners, labels = boxes["boxes"], boxes["labels"]
    if corners.shape != (len(labels), 4):
        raise ShardError(
            f"{file}: boxes are {tuple(corners.shape)}", f"({len(labels)}, 4), one for each label"
        )
    height, width = spec.plane
    x1, y1, x2, y2 = corners.unbind(1)
    inside = (x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)
    if not inside.all():
        found = corners[~inside][0].tolist()
        raise ShardError(f"{file}: box {found}", f"x1 < x2 <= {width} and y1 < y2 <= {height}, from 0")
    if len(labels) and int(labels.min()) < 0:
        raise ShardError(f"{file}: label {int(labels.min())} of a box", "a class from 0")
