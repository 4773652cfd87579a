"""Images as one array in a file: `.npz`, `.npy`, `.safetensors`, `.pt` and `.pth`.

A file is a stranger's: nothing in it is run, and no memory is taken for what it declares but does not hold.
What floats mean is not known here.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zsq.core.errors import ImagesError, first_line
from zsq.core.files import open_regular
from zsq.core.imagespec import MAX_LENGTH
from zsq.core.wording import quantity
from zsq.images.photos import MAX_SIDE, UNREADABLE, check_bytes
from zsq.teacher.load import read_content

TENSOR_SUFFIXES = (".pt", ".pth", ".safetensors")
SUFFIXES = (".npz", ".npy", *TENSOR_SUFFIXES)
DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
LABEL_DTYPES = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
EXPECTED = "one array of images, uint8 or floats, or `images` and perhaps `labels`"

# Members of an .npz that are read: their types, and those in words.
MEMBERS = {
    "images": (frozenset(np.dtype(name) for name in ("u1", "f2", "f4", "f8")), "uint8 or floats"),
    "labels": (
        frozenset(np.dtype(name) for name in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")),
        "integers",
    ),
    "targets": (
        frozenset(np.dtype(name) for name in ("u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8")),
        "uint8, signed integers or floats",
    ),
}
MAX_LABEL = 2**31 - 1


class Arrays(NamedTuple):
    """What a file holds.

    Attributes:
        images: (N, ., ., .), of signals (N, ., .), uint8 or floating.
        labels: int64 (N,), -1 for none.
        targets: of an .npz, what should come out of each image, images and maps in the same layout;
            None for none.
        layout: what files of this kind have where nobody says.
    """

    images: Tensor
    labels: np.ndarray
    layout: Literal["nchw", "nhwc"]
    targets: Tensor | None = None


def read_arrays(path: Path) -> Arrays:
    """Read `path`, which ends in one of `SUFFIXES`.

    Raises:
        ImagesError: damaged, of another content, or more than fits into memory.
        WeightsError: a tensor file that is damaged or carries code.
    """
    targets = None
    if path.suffix in TENSOR_SUFFIXES:
        images, labels = _tensors(path)
    else:
        images, labels, targets = _numpy(path)
    largest = {4: MAX_SIDE, 3: MAX_LENGTH}.get(images.ndim, 0)
    if 0 in images.shape or max((1, *images.shape[1:])) > largest:
        raise ImagesError(
            f"{path} holds images of shape {tuple(images.shape)}",
            f"4 axes, none empty or over {MAX_SIDE}; of signals 3",
        )
    if targets is not None and (targets.ndim == 0 or 0 in targets.shape or len(targets) != len(images)):
        expected = f"one for each of {quantity(len(images), 'image')}, none empty"
        raise ImagesError(f"{path} holds `targets` of shape {tuple(targets.shape)}", expected)
    layout: Literal["nchw", "nhwc"] = "nhwc" if path.suffix == ".npz" else "nchw"
    return Arrays(images, _labels(path, labels, len(images)), layout, targets)


def _numpy(path: Path) -> tuple[Tensor, np.ndarray | None, Tensor | None]:
    try:
        with open_regular(path) as file:
            arrays = _members(path, file) if path.suffix == ".npz" else {"images": _array(path, file)}
    except UNREADABLE as error:
        raise ImagesError(
            f"{path} cannot be read ({first_line(error)})", f"an intact {path.suffix}"
        ) from None
    if "images" not in arrays:
        raise ImagesError(f"{path} holds no `images`", EXPECTED)
    targets = arrays.get("targets")
    return (
        torch.from_numpy(arrays["images"]),
        arrays.get("labels"),
        None if targets is None else torch.from_numpy(targets),
    )


def _members(path: Path, file: Any) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        infos = [info for info in archive.infolist() if info.filename in {f"{name}.npy" for name in MEMBERS}]
        names = [info.filename.removesuffix(".npy") for info in infos]
        if len(set(names)) < len(names):
            raise ValueError("two members have one name")
        found = {}
        for name, info in zip(names, infos, strict=True):
            with archive.open(info) as member:
                found[name] = _array(path, member, info.file_size, name)
        return found


def _array(path: Path, file: Any, size: int | None = None, name: str = "images") -> np.ndarray:
    """One array, whose header is looked at before its values are read."""
    size = path.stat().st_size if size is None else size
    version = np.lib.format.read_magic(file)
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in headers:
        raise ValueError(f"version {version} of numpy's format")
    shape, is_fortran, dtype = headers[version](file)
    # Torch takes no other byte order than the machine's.
    native = dtype.newbyteorder("=")
    types, expected = MEMBERS[name]
    if native not in types:
        raise ImagesError(f"{path} holds `{name}` {dtype} {shape}", expected)
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes > size:
        raise ValueError(f"`{name}` of {num_bytes} bytes is not all there")
    check_bytes(f"{path} holds `{name}` {dtype} {shape}", num_bytes)
    data = np.empty(num_bytes, np.uint8)
    left = data.data
    while left:
        count = file.readinto(left)
        if not count:
            raise ValueError(f"`{name}` of {num_bytes} bytes is not all there")
        left = left[count:]
    values = data.view(dtype).astype(native, copy=False)
    return values.reshape(shape, order="F" if is_fortran else "C")


def _tensors(path: Path) -> tuple[Tensor, Any]:
    """Images and labels: of a dict, or images alone."""
    content = read_content(path)
    parts = content if isinstance(content, Mapping) else {"images": content}
    content, labels = parts.get("images"), parts.get("labels")
    if isinstance(content, Sequence) and content and all(isinstance(part, Tensor) for part in content):
        for part in content:
            _check_tensor(path, part)
        content = [part if part.ndim == 4 else part[None] for part in content]
        if len({part.shape[1:] for part in content}) != 1:
            raise ImagesError(f"{path} holds a list of tensors of several shapes", "images of one shape")
        if len({part.dtype for part in content}) != 1:
            raise ImagesError(f"{path} holds a list of tensors of several types", "images of one type")
        check_bytes(f"{path} holds {len(content)} tensors", sum(part.nbytes for part in content))
        content = torch.cat(content)
    if not isinstance(content, Tensor):
        raise ImagesError(f"{path} holds no `images`", "a tensor, a list of tensors, or a dict with `images`")
    _check_tensor(path, content)
    if isinstance(labels, Tensor):
        labels = _label_array(path, labels)
    return content.detach(), labels


def _label_array(path: Path, labels: Tensor) -> np.ndarray:
    if labels.layout is not torch.strided or labels.dtype not in LABEL_DTYPES:
        raise ImagesError(f"{path} holds `labels` {labels.dtype} {tuple(labels.shape)}", "integers")
    _check_held(path, "labels", labels)
    return labels.numpy()


def _check_tensor(path: Path, tensor: Tensor) -> None:
    plain = tensor.layout is torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
    if not plain or tensor.dtype not in DTYPES:
        found = f"{path} holds a {tensor.layout} {tensor.dtype} tensor"
        raise ImagesError(found, "uint8 pixels, or plain floats")
    _check_held(path, "images", tensor)


def _check_held(path: Path, name: str, tensor: Tensor) -> None:
    """Refuse a view that repeats a few stored values many times."""
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        found = (
            f"{path} declares `{name}` of {tensor.nbytes} bytes and holds {tensor.untyped_storage().nbytes()}"
        )
        raise ImagesError(found, "every value stored", "save tensor.contiguous()")


def _labels(path: Path, labels: Any, count: int) -> np.ndarray:
    if labels is None:
        return np.full(count, -1, np.int64)
    try:
        found = np.asarray(labels)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ImagesError(
            f"{path} holds `labels` of another kind ({first_line(error)})", "integers"
        ) from None
    if found.dtype.kind not in "iu" or found.shape != (count,) or found.min() < -1 or found.max() > MAX_LABEL:
        raise ImagesError(f"{path} holds `labels` {found.dtype} {found.shape}", f"classes or -1, ({count},)")
    return found.astype(np.int64)
