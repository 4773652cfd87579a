"""Writes to disk: a whole file or none, whatever happens in between."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from zsq.core.errors import StorageError


def atomic_write_text(path: Path, text: str) -> None:
    """`atomic_write_bytes` of UTF-8."""
    atomic_write_bytes(path, text.encode())


def atomic_write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a temporary sibling, fsync, rename over `path`, fsync the folder (made when missing).

    Raises:
        StorageError: the disk refused; `path` is as it was and no temporary file stays.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
        _remove_leftovers(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StorageError(
            f"cannot write {path}: {reason}",
            remedy="free disk space or choose another folder, then continue with --resume",
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of earlier attempts at `path`."""
    for sibling in path.parent.iterdir():
        if is_leftover(sibling.name, path.name):
            sibling.unlink(missing_ok=True)


def is_leftover(name: str, of: str) -> bool:
    """Whether `name` is a temporary file that a killed process left of writing the file `of`."""
    return name.startswith(f".{of}.") and name.endswith(".tmp")
