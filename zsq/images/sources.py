"""Images in: whatever SRC names becomes one set of uint8 pixels and labels in memory. Photos of another size
are fitted to the teacher; arrays and shards of another size are refused."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from zsq.config import IMAGES, ImagesConfig
from zsq.contract import Teacher
from zsq.core.errors import ImagesError, MismatchError, OptionError, first_line
from zsq.core.imagespec import ImageSpec
from zsq.core.photofit import PhotoFit
from zsq.core.selection import MARK, split_source
from zsq.images.annotated import Annotated, archive_tree, folder_tree, read_annotated
from zsq.images.class_names import ANY_ORDER, ClassNames, class_names_of
from zsq.images.imageset import ImageSet
from zsq.images.photos import (
    REFUSE,
    UNREADABLE,
    Photos,
    Reading,
    check_memory,
    decoded,
    first_of_each,
    read_archive,
    read_folders,
    spread,
)
from zsq.images.tensors import SUFFIXES, Arrays, read_arrays
from zsq.images.values import pixels_of_values
from zsq.shards.manifest import UNFINISHED, holds_shards, is_finished
from zsq.shards.reader import ShardDataset

EMBEDDED = ("embedded:digits[:train|val|test]", "embedded:digits-detector[:train|test]")
SOURCES = (
    "a folder of class folders or of photos, or with images/ beside annotations.json (COCO) or masks/, "
    "a .zip of these, an .npz, .npy, .pt or .safetensors of uint8, "
    f"a shard folder, {', '.join(EMBEDDED)} or torchvision:NAME:ROOT[:SPLIT]; each may end in "
    "#labels=FIRST-LAST"
)
TORCHVISION = re.compile(r"torchvision:(?P<name>\w+):(?P<root>.+?)(?::(?P<split>\w+))?")

CHANNELS = (1, 3)


def images_for(
    teacher: Teacher,
    source: str | Path,
    asked: ImagesConfig = IMAGES,
    *,
    labelled: bool = False,
    limit: int | None = None,
    one_per_class: bool = False,
) -> ImageSet:
    """`load_images` for a teacher: photos have its size, and names of class folders are its classes.

    Args:
        asked: `fit` in place of the teacher's own; `class_names` is a file with the names of the classes, one
            a line, or `by-order`, where folders are named otherwise than the teacher's own list says.
        labelled: the labels are needed; names that have no class are refused.

    Raises:
        OptionError: `class_names` that cannot be.
        ImagesError, MismatchError, ShardError: as `load_images`.
    """
    labelled = labelled or one_per_class or split_source(str(source))[1] is not None
    rule = class_names_of(teacher, asked.class_names, labelled)
    own = teacher.photo_fit
    fit = own if asked.fit in (None, own.how) else PhotoFit(how=asked.fit, interpolation=own.interpolation)
    return load_images(source, teacher.spec, limit, one_per_class, class_names=rule, fit=fit)


def load_images(
    source: str | Path,
    spec: ImageSpec | None = None,
    limit: int | None = None,
    one_per_class: bool = False,
    *,
    class_names: ClassNames = ANY_ORDER,
    fit: PhotoFit = REFUSE,
) -> ImageSet:
    """Read SRC.

    Args:
        spec: of the teacher the images are for; fixes channels and size. Without it photos are read as RGB
            and the first one's size holds for all.
        limit: read that many at most, evenly spread over the order of the source.
        one_per_class: give the first image of each class alone; of shards, where none is real, all.
        class_names: what names of class folders stand for; by default they count by rank.
        fit: how photos of another size than the spec's are brought to it; by default they are refused.

    Raises:
        ImagesError: missing, empty, unreadable, or not a source.
        MismatchError: images of another shape than the spec's, or photos of several sizes.
        ShardError: a damaged shard.

    Example:
        >>> spec = zsq.load_teacher("embedded:digits").spec
        >>> images = zsq.load_images("embedded:digits:test", spec, limit=10)
        >>> images.pixels.shape, images.pixels.dtype
        (torch.Size([10, 1, 32, 32]), torch.uint8)
    """
    if not isinstance(source, str | Path):
        raise OptionError(f"a source of images that is a {type(source).__name__}", "a path or a name")
    if not isinstance(spec, ImageSpec | None):
        raise OptionError(
            f"a spec that is a {type(spec).__name__}", "an ImageSpec, as load_teacher(...).spec"
        )
    if not isinstance(fit, PhotoFit | None):
        raise OptionError(f"fit {fit!r}", "a PhotoFit, such as load_teacher(...).photo_fit")
    source = str(source)
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise OptionError(f"{limit} images", "a whole number, at least 1")
    source, wanted = split_source(source)
    reading = Reading(spec, limit if wanted is None else None, one_per_class, class_names, fit)
    images = _loaded(source, reading)
    if wanted is not None:
        images = _with_labels(images, wanted, limit)
    if one_per_class and not images.is_shards:
        if images.boxes is not None or images.targets is not None:
            raise ImagesError(
                f"{source} says no class of an image", "class folders, of which one each is read"
            )
        return images.subset(first_of_each(images.labels.tolist()))
    return images


def _with_labels(images: ImageSet, wanted: range, limit: int | None) -> ImageSet:
    labels = images.labels.numpy()
    chosen = np.flatnonzero((labels >= wanted.start) & (labels < wanted.stop))
    if len(chosen) == 0:
        found = f"{images.source} holds no image of a label {wanted[0]} to {wanted[-1]}"
        raise ImagesError(found, "at least one")
    kept = images.subset(chosen[spread(len(chosen), limit)])
    return replace(kept, source=f"{images.source}{MARK}{wanted[0]}-{wanted[-1]}")


def _loaded(source: str, reading: Reading) -> ImageSet:
    if not is_path(source):
        return NAMED[source.partition(":")[0]](source, reading)
    path, spec, limit = Path(source), reading.spec, reading.limit
    if path.is_dir():
        if holds_shards(path):
            return _shards(path, spec, limit)
        tree = folder_tree(path)
        if tree.is_annotated:
            return _annotated(path, read_annotated(tree, reading))
        return _photos(path, read_folders(path, reading))
    if path.suffix in SUFFIXES and path.is_file():
        return _arrays(path, spec, limit)
    if path.suffix == ".zip" and path.is_file():
        with archive_tree(path) as tree:
            if tree.is_annotated:
                return _annotated(path, read_annotated(tree, reading))
        return _photos(path, read_archive(path, reading))
    what = "is no source of images" if path.exists() else "does not exist"
    raise ImagesError(f"{source} {what}", SOURCES)


def _photos(path: Path, photos: Photos) -> ImageSet:
    return ImageSet(photos.pixels, photos.labels, str(path), notes=photos.notes, photo_fit=photos.photo_fit)


def _annotated(path: Path, found: Annotated) -> ImageSet:
    labels = torch.full((len(found.pixels),), -1)
    return ImageSet(
        found.pixels,
        labels,
        str(path),
        notes=found.notes,
        photo_fit=found.photo_fit,
        targets=found.masks,
        boxes=found.boxes,
    )


def check_shape(source: str, shape: Sequence[int], spec: ImageSpec | None, verb: str = "holds") -> None:
    """Check that the images of a source, of this shape without N, are as the teacher of `spec` takes them.

    Raises:
        MismatchError: they have another shape.
    """
    if spec is not None and tuple(shape) != spec.shape:
        found, expected = ("x".join(map(str, each)) for each in (shape, spec.shape))
        axes = "CxL" if spec.is_signal else "CxHxW"
        raise MismatchError(f"{source} {verb} {found} images", f"{expected} as the teacher takes ({axes})")


def _embedded(source: str, reading: Reading) -> ImageSet:
    from zsq.teacher.digits import Split, load_digits_images
    from zsq.teacher.digits_canvases import load_digits_canvases

    name, _, named = source.removeprefix("embedded:").partition(":")
    split, boxes = cast(Split, named or "train"), None
    if name == "digits":
        pixels, labels = load_digits_images(split)
    elif name == "digits-detector":
        pixels, boxes = load_digits_canvases(split)
        labels = torch.full((len(pixels),), -1)
    else:
        raise ImagesError(f"unknown images '{source}'", f"one of {', '.join(EMBEDDED)}")
    check_shape(source, pixels.shape[1:], reading.spec)
    images = ImageSet(pixels, labels, source, boxes=None if boxes is None else tuple(boxes))
    return images.subset(torch.from_numpy(spread(len(pixels), reading.limit)))


def _shards(folder: Path, spec: ImageSpec | None, limit: int | None) -> ImageSet:
    images = ShardDataset(folder)
    check_shape(str(folder), images.spec.shape, spec)
    chosen = spread(images.num_images, limit)
    check_memory(str(folder), len(chosen), images.spec.shape)
    return ImageSet(
        images.pixels(chosen),
        images.labels(chosen),
        str(folder),
        images.provenance,
        notes=() if is_finished(folder) else (UNFINISHED,),
        boxes=images.boxes(chosen),
    )


def _arrays(path: Path, spec: ImageSpec | None, limit: int | None) -> ImageSet:
    found = read_arrays(path)
    as_values = spec is not None and spec.range is not None and found.images.dtype != torch.uint8
    if found.images.dtype != torch.uint8 and not as_values:
        what = f"{path} holds {str(found.images.dtype).removeprefix('torch.')}"
        remedy = "say what the floats are: zsq import SRC --mean M --std S --out DIR, and use DIR"
        raise ImagesError(what, "uint8 pixels", remedy)
    layout = _layout(found, spec)
    images, targets = (
        part if layout == "nchw" or part is None or part.ndim != found.images.ndim else part.movedim(-1, 1)
        for part in (found.images, found.targets)
    )
    assert images is not None
    check_shape(str(path), images.shape[1:], spec)
    if images.ndim == 3 and spec is None:
        raise ImagesError(f"{path} holds signals (N, C, L)", "images of 4 axes, or a teacher of signals")
    chosen = torch.from_numpy(spread(len(images), limit))
    pixels = images[chosen].contiguous()
    return ImageSet(
        pixels_of_values(path, pixels, spec) if spec is not None and as_values else pixels,
        torch.from_numpy(found.labels)[chosen],
        str(path),
        notes=(spec.step_line,) if spec is not None and as_values and spec.step_line else (),
        targets=None if targets is None else targets[chosen].contiguous(),
    )


def _layout(found: Arrays, spec: ImageSpec | None) -> str:
    """The layout that files of this kind have, unless the shape fits the other one alone."""
    shape = tuple(found.images.shape[1:])
    channels = CHANNELS if spec is None else (spec.channels,)
    shapes = {"nchw": shape, "nhwc": (shape[-1], *shape[:-1])}
    fits = {name: s[0] in channels and (spec is None or s == spec.shape) for name, s in shapes.items()}
    other = "nhwc" if found.layout == "nchw" else "nchw"
    return other if fits[other] and not fits[found.layout] else found.layout


def _torchvision(source: str, reading: Reading) -> ImageSet:
    dataset = _torchvision_dataset(source)
    chosen = spread(len(dataset), reading.limit)
    if len(chosen) == 0:
        raise ImagesError(f"{source} holds no images", "at least one")
    labels = np.empty(len(chosen), np.int64)

    def item(index: int) -> Image.Image:
        image, labels[index] = dataset[int(chosen[index])]
        if not isinstance(image, Image.Image):
            raise ValueError(f"a {type(image).__name__} instead of an image")
        return image

    names = [f"{source} item {index}" for index in chosen]
    pixels, photo_fit = decoded(names, item, reading, num_threads=1)
    return ImageSet(pixels, torch.from_numpy(labels), source, photo_fit=photo_fit)


def _torchvision_dataset(source: str) -> Any:
    """Open the data set without downloading; SPLIT becomes its `train` or `split` argument."""
    from torchvision import datasets

    match = TORCHVISION.fullmatch(source)
    if match is None:
        raise ImagesError(f"'{source}'", "torchvision:NAME:ROOT[:SPLIT]")
    name, root, split = match["name"], match["root"], match["split"]
    kind = getattr(datasets, name) if name in datasets.__all__ else None
    parameters = inspect.signature(kind).parameters if kind else {}
    if kind is None or "root" not in parameters:
        near = ", ".join(difflib.get_close_matches(name, datasets.__all__)) or "CIFAR10"
        raise ImagesError(f"torchvision has no data set '{name}' with a root folder", f"such as {near}")
    arguments: dict[str, Any] = {"root": root}
    if "download" in parameters:
        arguments["download"] = False
    if split and "train" in parameters and split in ("train", "test"):
        arguments["train"] = split == "train"
    elif split and "split" in parameters:
        arguments["split"] = split
    elif split:
        raise ImagesError(f"{source}: {name} has no split '{split}'", "train or test, where it has them")
    try:
        return kind(**arguments)
    except UNREADABLE as error:
        remedy = "zsq downloads no images: put the data set there first"
        raise ImagesError(f"{source} cannot be read ({first_line(error)})", remedy=remedy) from None


# By what stands before the colon; every other source is a path.
NAMED: dict[str, Callable[[str, Reading], ImageSet]] = {"embedded": _embedded, "torchvision": _torchvision}


def is_path(source: str) -> bool:
    """Whether SRC is a file or folder, rather than images that have a name."""
    prefix, colon, _ = source.partition(":")
    return not colon or prefix not in NAMED


def located(source: str, folder: Path) -> str:
    """SRC with its path, where it holds one, from `folder`."""
    if is_path(source):
        return str(folder / source)
    match = TORCHVISION.fullmatch(split_source(source)[0])
    if match is None:
        return source
    start, end = match.span("root")
    return f"{source[:start]}{folder / match['root']}{source[end:]}"
