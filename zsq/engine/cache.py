"""What a run prepared once, kept in its folder as safetensors: whole and unaltered, or not there."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from zsq.core.errors import StorageError
from zsq.core.files import atomic_write_bytes, read_regular

MAX_BYTES = 16 * 2**30
DIGEST = "sha256"  # a tensor of the file: the sha256 of all others, saved without it


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors; same tensors, same bytes.

    Raises:
        StorageError: the disk refused; nothing is left behind.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write_bytes(path, save(kept | {DIGEST: _digest(kept)}))


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    """What `write_tensors` wrote, on the CPU; None where nothing is, or, with a warning, a damaged file.

    Raises:
        StorageError: the disk refused.
    """
    try:
        data = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from None
    try:
        tensors = load(data)
        if torch.equal(tensors.pop(DIGEST), _digest(tensors)):
            return tensors
    except (SafetensorError, KeyError):
        pass
    warnings.warn(f"{path} is damaged; what it held is made again", stacklevel=2)
    return None


def _digest(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.tensor(list(hashlib.sha256(save(dict(tensors))).digest()), dtype=torch.uint8)
