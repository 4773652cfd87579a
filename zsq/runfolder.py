"""A run's folder: created empty, `run.json` first, resumed only with the same options."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zsq.config import config_json
from zsq.core.errors import OptionError, RunFolderError, StorageError
from zsq.core.files import (
    atomic_write_text,
    fsync_folder,
    is_leftover,
    output_file,
    output_path,
    read_regular,
    remove_leftovers,
    temporary_sibling,
)
from zsq.shards.manifest import MANIFEST_NAME, SHARDS_FOLDER
from zsq.shards.schema import shard_name

# Where runs go that nobody gave a place.
OUTPUTS = Path("outputs")
RUN_FILE = "run.json"
# What the first versions did not state of a comparison: where it is missing, it is not compared.
DIGESTS = ("evaluation_sha256", "real_sha256", "synthetic_sha256")
MAX_RUN_FILE_BYTES = 2**24


def folder_out(path: str | Path, option: str = "--out") -> Path:
    """A folder to write, as given by the user.

    Raises:
        OptionError: also one inside the folder of a run. StorageError: as `output_path`.
    """
    target = output_path(path, option)
    check_apart(target, option)
    return target


def file_out(path: str | Path, option: str = "--out") -> Path:
    """A single file to write; it may lie beside the files of a run.

    Raises:
        OptionError: also one that a run consists of, or deeper in its folder. StorageError: as `output_file`.
    """
    target = output_file(path, option)
    if target.name in (RUN_FILE, MANIFEST_NAME):
        raise OptionError(f"{option} {path} is a file of a run", "another name or folder")
    check_apart(target, option, beside=True)
    return target


def check_apart(path: Path, option: str = "--out", *, beside: bool = False) -> None:
    """Refuse a place inside the folder of a run, whose files it would mix with; `beside` them it may lie.

    Raises:
        OptionError: it is in one.
    """
    around = path.resolve().parents[1 if beside else 0 :]
    run = next((folder for folder in around if _is_run(folder)), None)
    if run is not None:
        found = f"{option} {path} lies in {run}, the folder of a run"
        raise OptionError(found, "a place of its own", f"choose another {option}")


def _is_run(folder: Path) -> bool:
    """Whether a command made it; its `shards/`, wherever it lies, is one too."""
    if any((place / shard_name(0)).is_file() for place in (folder, folder / SHARDS_FOLDER)):
        return True
    try:
        return "command" in stored_options(folder)
    # Another program's file of that name.
    except RunFolderError:
        return False


def plain_name(name: str) -> str:
    """A teacher or recipe as a folder is called after it: of a file its name without folders and ending."""
    path = Path(name.removeprefix("file:"))
    return (path.stem if path.suffix == ".toml" else path.name).replace(":", "-")


def next_folder(base: Path) -> Path:
    """`base`, or the first of `base`-2, `base`-3, ... that does not exist."""
    folder, number = base, 2
    while folder.exists():
        folder = base.with_name(f"{base.name}-{number}")
        number += 1
    return folder


def latest_folder(base: Path) -> Path:
    """The last folder that `next_folder(base)` gave; `base` where there is none yet."""
    folder, number = base, 2
    while (following := base.with_name(f"{base.name}-{number}")).exists():
        folder, number = following, number + 1
    return folder


def folder_of_run(base: Path, options: dict[str, Any]) -> Path:
    """Of `base`, `base`-2, `base`-3, ...: the one whose run has these options, finished or not; else the
    first that does not exist."""
    folder, number, wanted = base, 2, json.loads(config_json(options))
    while folder.exists():
        try:
            if stored_options(folder) == wanted:
                return folder
        # What holds no readable run is another's.
        except RunFolderError:
            pass
        folder = base.with_name(f"{base.name}-{number}")
        number += 1
    return folder


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `out` when the block ends well and vanishes when it does not.

    Raises:
        RunFolderError: `out` holds something already.
        StorageError: the disk refused.
    """
    try:
        # Taking its place would leave the shell in a folder that is gone.
        if out.exists() and out.samefile(Path()):
            raise RunFolderError(f"{out} is the current folder", "a new folder", "choose another --out")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RunFolderError(f"{out} is in the way", "a new or empty folder", "choose another --out")
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out.parent)
        with temporary_sibling(out, Path.mkdir) as temporary:
            try:
                yield temporary
            except StorageError as error:
                # Nobody knows the temporary name, and it is gone.
                raise StorageError(str(error).replace(str(temporary), str(out))) from None
            for folder in (temporary, *(path for path in temporary.iterdir() if path.is_dir())):
                fsync_folder(folder)
            temporary.replace(out)
            fsync_folder(out.parent)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StorageError(f"cannot write {out}: {reason}", remedy="choose another --out") from None


def make_folder(folder: Path) -> None:
    """Create it, where it is not there.

    Raises:
        RunFolderError: a file is in its place.
        StorageError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RunFolderError(f"{folder}: a file is in the way", "a folder", "choose another --out") from None
    except OSError as error:
        raise StorageError(f"cannot create {folder}: {error.strerror}") from None


def open_run(
    folder: Path, options: dict[str, Any], resume: bool, grows: tuple[str, ...] = (), whole: str = RUN_FILE
) -> None:
    """Create `folder` with its `run.json`, or take it up again.

    Args:
        grows: options that may differ from those of the folder, whose `run.json` then says the new ones.
        whole: the file that says the run is finished; where it grows, it no longer is.

    Raises:
        RunFolderError: a file is in its place, the folder holds something and `resume` is off, or holds a run
            with other options.
        StorageError: the folder cannot be made.
    """
    make_folder(folder)
    path = folder / RUN_FILE
    if all(is_leftover(entry.name) for entry in list(os.scandir(folder))):
        atomic_write_text(path, config_json(options) + "\n")
        return
    if not resume:
        raise RunFolderError(
            f"{folder} is not empty", "a new folder", "pass --resume to continue, or another --out"
        )
    before = stored_options(folder)
    text = config_json(options)
    differing = _check_same(path, before, json.loads(text), grows)
    if differing:
        try:
            (folder / whole).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"cannot remove {folder / whole}: {error.strerror}") from None
        atomic_write_text(path, text + "\n")


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """No other process works in `folder` until the block ends, or until this one is gone.

    Of a file system without locks, none is asked for.

    Raises:
        RunFolderError: another process works in it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = f"another zsq works in {folder}"
            raise RunFolderError(found, "one at a time", "wait for it, or choose another --out") from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def stored_options(folder: Path) -> dict[str, Any]:
    """What `run.json` says of an earlier run; empty where there is none.

    Raises:
        RunFolderError: it cannot be read.
    """
    try:
        return dict(json.loads(read_regular(folder / RUN_FILE, MAX_RUN_FILE_BYTES)))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, RecursionError):
        raise _unreadable(folder) from None


def _unreadable(folder: Path) -> RunFolderError:
    found = f"{folder} holds no readable {RUN_FILE}"
    return RunFolderError(found, "the folder of an earlier run", "choose another --out")


def _check_same(
    path: Path, before: dict[str, Any], options: dict[str, Any], grows: tuple[str, ...]
) -> list[str]:
    """The options among `grows` that differ; any other that does is refused."""
    if not before:
        raise _unreadable(path.parent)
    if before.get("command") != options.get("command"):
        found = f"{path.parent} holds a run of zsq {before.get('command')}"
        raise RunFolderError(found, f"one of zsq {options.get('command')}", "choose another --out")
    compared = set(before) | (set(options) - set(DIGESTS))
    # Options first: other images may follow from one.
    ordered = sorted(compared, key=lambda key: (key in DIGESTS, key))
    different = [key for key in ordered if before.get(key) != options.get(key)]
    for key in different:
        if key in grows:
            continue
        old, new = before.get(key), options.get(key)
        if key in DIGESTS:
            what = key.removesuffix("_sha256")
            found = f"--resume with other {what} images than those that {path.parent} was begun with"
            raise RunFolderError(found, "the same images", "choose another --out")
        if isinstance(old, dict) and isinstance(new, dict):
            key = next(name for name in sorted(set(old) | set(new)) if old.get(name) != new.get(name))
            old, new = old.get(key), new.get(key)
        raise RunFolderError(
            f"--resume with {key} = {new}", f"{old} as in {path}", "use the same options, or another --out"
        )
    return different
