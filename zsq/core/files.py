"""The disk: writes that leave a whole file or none, and reads of regular files of a known size alone.

A temporary file or folder is locked by the process that fills it. The system lets go of the lock when the
process ends, however it ends: what nobody locks was left by a kill, and who writes beside it removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from tempfile import TemporaryFile

from zsq.core.errors import OptionError, StorageError

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.zsq\.tmp", re.DOTALL)


def input_path(path: str | Path, what: str) -> Path:
    """Where to read from, as given by the user.

    Raises:
        OptionError: anything but text and a path, or empty text, which as Path would be the current folder.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise OptionError(f"{what} {path!r}", "a path, as text or Path")
    return Path(path)


def output_path(text: str | Path, option: str = "--out") -> Path:
    """Where to write, as given by the user.

    Raises:
        OptionError: no name, the root, a name that is no UTF-8, which no manifest or report could state, or a
            path through a file.
        StorageError: the disk refuses to write there. Said now, since what follows may take hours.
    """
    if not isinstance(text, str | os.PathLike):
        raise OptionError(f"{option} {text!r}", "the name of a file or folder")
    given = os.fspath(text)
    shown = given.encode(errors="backslashreplace").decode()
    if not given.strip() or "\0" in given:
        raise OptionError(f"{option} '{shown}'", "the name of a file or folder")
    if shown != given:
        raise OptionError(f"{option} '{shown}'", "a name in UTF-8")
    path = Path(given)
    # `.` and `..` have no name that a temporary sibling could be called by.
    path = path.resolve() if path.name in ("", "..") else path
    if path == Path(path.anchor):
        raise OptionError(f"{option} {shown}", "a folder other than the root")
    _check_writable(path, option)
    return path


def output_file(text: str | Path, option: str = "--out") -> Path:
    """The same, for a single file.

    Raises:
        OptionError: also a folder. StorageError: as `output_path`.
    """
    path = output_path(text, option)
    if path.is_dir():
        raise OptionError(f"{option} {path} is a folder", "a file")
    return path


def _check_writable(path: Path, option: str) -> None:
    """Whether the nearest folder above `path` that exists takes a new file, of which nothing stays."""
    try:
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not above.is_dir():
            raise OptionError(f"{option} {path}: {above} is a file", "a folder", f"choose another {option}")
        with TemporaryFile(dir=above):
            pass
    except OSError as error:
        found = f"{option} {path}: cannot write there: {error.strerror}"
        raise StorageError(found, remedy=f"choose another {option}") from None


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading: no pipe, which would be waited for, and no device, which may never end.

    Raises:
        OSError: missing, unreadable or no regular file; `strerror` says which.
    """
    # Before, since opening a device can do something; and after, since a name can change its file.
    try:
        status = path.stat()
    except ValueError:  # a zero byte
        raise OSError(errno.EINVAL, "no file has such a name", repr(str(path))) from None
    _check_regular(status, path)
    return os.fdopen(_opened(path, os.O_RDONLY), "rb")


def read_regular(path: Path, most_bytes: int) -> bytes:
    """The content of a file, of which no more than `most_bytes` are taken into memory.

    Raises:
        OSError: as `open_regular`, or larger than that.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            found = f"larger than the {most_bytes} bytes that such a file may have"
            raise OSError(errno.EFBIG, found, str(path))
        data = file.read(size + 1)
    if len(data) != size:
        raise OSError(errno.EIO, f"holds other than the {size} bytes of its size", str(path))
    return data


def append_regular(path: Path, data: bytes) -> None:
    """Add to the end of a file, which is made where there is none.

    Raises:
        OSError: as `open_regular`, or the disk refused.
    """
    if path.exists():
        _check_regular(path.stat(), path)
    with os.fdopen(_opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as file:
        file.write(data)


def _opened(path: Path, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    try:
        _check_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))


def atomic_write_text(path: Path, text: str) -> None:
    """`atomic_write_bytes` of UTF-8."""
    atomic_write_bytes(path, text.encode())


def atomic_write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a temporary sibling, fsync, rename over `path`, fsync the folder (made when missing).

    Raises:
        StorageError: the disk refused; `path` is as it was and no temporary file stays.
    """
    try:
        # A device, or a link to one, is not to be replaced by a file.
        if path.exists():
            _check_regular(path.stat(), path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_sibling(path, lambda name: name.touch(exist_ok=False)) as temporary:
            with temporary.open("r+b") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            fsync_folder(path.parent)
        remove_leftovers(path.parent)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StorageError(
            f"cannot write {path}: {reason}",
            remedy="free disk space or choose another folder",
        ) from None


@contextmanager
def temporary_sibling(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A locked temporary file or folder beside `path`, made by `make`; removed at the end where it still is.

    Raises:
        OSError: the disk refused.
    """
    temporary, lock = _locked_sibling(path, make)
    try:
        yield temporary
    finally:
        _remove(temporary)
        os.close(lock)


def _locked_sibling(path: Path, make: Callable[[Path], None]) -> tuple[Path, int]:
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.zsq.tmp")
        make(temporary)
        # Between these lines it is nobody's, and may be taken for a leftover: then the next name.
        try:
            lock = os.open(temporary, os.O_RDONLY)
        except FileNotFoundError:
            continue
        # A file system without locks also shows none to who looks for leftovers: nothing is removed there.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, lock
        os.close(lock)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_leftover(name: str) -> bool:
    """Whether `name` is one that `temporary_sibling` gives."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders in `folder` that no process works on."""
    for entry in list(os.scandir(folder)):
        if is_leftover(entry.name):
            _remove_unlocked(Path(entry))


def _remove_unlocked(path: Path) -> None:
    with suppress(OSError):
        lock = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        finally:
            os.close(lock)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
