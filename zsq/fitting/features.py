"""What enters and leaves a unit, for all images: computed once, kept in memory or in a mapped file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from zsq.core.errors import StorageError
from zsq.core.runtime import Runtime

# What the features of one network may take in memory at a time; more is a temporary file, of which the system
# keeps in memory what fits.
RESIDENT_BYTES = 2 * 2**30


class Features:
    """float32 values of one graph node, (N, *shape); 4-D ones are channels_last in memory."""

    def __init__(self, num: int, shape: tuple[int, ...], runtime: Runtime, resident: bool) -> None:
        """Room for `num` images.

        Raises:
            StorageError: the disk has no room for what is not resident.
        """
        self.is_map = len(shape) == 3
        stored = (num, *shape[1:], shape[0]) if self.is_map else (num, *shape)
        self.runtime, self.shape = runtime, shape
        self.values = torch.empty(stored, device=runtime.device) if resident else _mapped(stored)

    def write(self, start: int, values: Tensor) -> None:
        """Rows from `start` on."""
        stored = values.permute(0, 2, 3, 1) if self.is_map else values
        self.values[start : start + len(values)] = stored.to(self.values.device)

    def rows(self, index_N: Tensor) -> Tensor:
        """(N, *shape) on the runtime's device; `index_N` on the CPU."""
        rows = self.values.index_select(0, index_N.to(self.values.device))
        if rows.device.type != torch.device(self.runtime.device).type:
            rows = self.runtime.sent(rows)
        return rows.permute(0, 3, 1, 2) if self.is_map else rows


def _mapped(shape: tuple[int, ...]) -> Tensor:
    size = int(np.prod(shape)) * 4
    try:
        # The mapping outlives the file object; the file goes with it.
        with tempfile.TemporaryFile(prefix="zsq-features-") as file:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):
                # A page that the disk has no room for would kill the process later.
                os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))
    except OSError as error:
        raise StorageError(
            f"no room for {size / 2**30:.1f} GiB of features in {tempfile.gettempdir()} ({error.strerror})",
            remedy="set TMPDIR to a folder with space, or use fewer images",
        ) from None


def fits_in_memory(num: int, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether float32 features of `num` images and these shapes may stay in memory."""
    return 4 * num * sum(int(np.prod(shape)) for shape in shapes) <= RESIDENT_BYTES
