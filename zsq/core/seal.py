"""A sealed run: which files it opened, and the refusal of every other one.

Python reports each file, socket and program that it opens to audit hooks. One of them watches while a teacher
is loaded, and from then on refuses what the run does not need. Native code and other programs are not seen.
"""

from __future__ import annotations

import hashlib
import os
import site
import sys
import sysconfig
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt

from zsq.core.errors import SealError
from zsq.core.records import Record, Sha256
from zsq.core.wording import quantity

# What a file is by its ending; others are "other".
ROLES = {
    "card": (".toml",),
    "code": (".py", ".pyc"),
    "configuration": (".json", ".yaml", ".yml", ".txt"),
    "weights": (".bin", ".ckpt", ".pt", ".pth", ".safetensors"),
}
# Images, arrays and archives are no part of an interpreter, wherever they lie.
DATA_ENDINGS = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
    *(".bz2", ".csv", ".gz", ".h5", ".hdf5", ".mat", ".npy", ".npz", ".parquet", ".pickle", ".pkl", ".tar"),
    *(".tfrecord", ".xz", ".zip", *ROLES["weights"]),
)
SYSTEM_FOLDERS = ("/proc", "/sys")
SYSTEM_FILES = ("/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero")
PROGRAMS = ("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class OpenedFile(Record):
    """A file that was opened, and its content when the teacher was loaded; `name` is without its folder."""

    role: str
    name: str
    sha256: Sha256


class SealRecord(Record):
    """What the processes of a sealed run opened.

    `counts` are times that files were opened, by their place: `interpreter`, `compiler`, `run`, `system`,
    `temporary`; `sockets` are those that were opened while the teacher was loaded, for a download.
    `programs` were started, by the compiler. `rendezvous` is where several processes met.
    """

    files: tuple[OpenedFile, ...]
    counts: dict[str, NonNegativeInt]
    programs: tuple[str, ...] = ()
    processes: NonNegativeInt = 1
    rendezvous: str | None = None

    def lines(self) -> list[str]:
        """What `zsq verify` shows."""
        counted = ", ".join(f"{place} {times}" for place, times in sorted(self.counts.items()))
        met = f", which met at {self.rendezvous}" if self.rendezvous else ""
        return [
            f"sealed: {quantity(len(self.files), 'file')} opened by "
            f"{quantity(self.processes, 'process')}{met}",
            *(f"  {file.role} {file.name} {file.sha256}" for file in self.files),
            f"  and files of these places, times opened: {counted}",
            f"  programs started: {', '.join(self.programs) or 'none'}",
        ]


class Seal:
    """The files of one run: watched from the beginning, all others refused from `shut` on."""

    def __init__(self) -> None:
        """Refuses nothing yet."""
        self.files: dict[str, str] = {}  # real path -> sha256, once shut
        self.counts: Counter[str] = Counter()
        self.programs: set[str] = set()
        self.refused: SealError | None = None
        self._places: dict[str, tuple[str, ...]] = {"interpreter": _interpreter(), "system": SYSTEM_FOLDERS}
        self._made: set[str] = set()
        self._temporary = os.path.realpath(tempfile.gettempdir())
        self._compiles = self._shut = False

    def shut(self, run: Path, compiler: Path | None) -> None:
        """From now on nothing but what was opened before, the run's folder, and the interpreter's own.

        Args:
            compiler: the folder of what was compiled, of a run that compiles.
        """
        self._places["run"] = (os.path.realpath(run),)
        if compiler is not None:
            self._places["compiler"] = (os.path.realpath(compiler),)
        self._compiles = compiler is not None
        own = (*self._places["run"], *self._places.get("compiler", ()))
        listed = [path for path in sorted(self.files) if not _below(path, own)]
        with _unheard():
            # What a download renamed is there under its last name.
            self.files = {path: _sha256(path) for path in listed if Path(path).exists()}
        self._shut = True

    def check(self) -> None:
        """Raise what was refused, also where a library swallowed it.

        Raises:
            SealError: something was.
        """
        if self.refused is not None:
            raise self.refused

    def record(self) -> dict[str, Any]:
        """As JSON holds a `SealRecord` of this process."""
        files = [
            {"role": _role(path), "name": Path(path).name, "sha256": sha} for path, sha in self.files.items()
        ]
        return {"files": files, "counts": dict(self.counts), "programs": sorted(self.programs)}

    def heard(self, event: str, args: tuple[Any, ...]) -> None:
        """One audit event."""
        if event in ("open", "sqlite3.connect"):
            if not isinstance(args[0], int) and args[0] is not None:
                self._opened(args[0], args[2] if event == "open" else WRITES)
        elif event == "os.mkdir":
            path = os.path.realpath(os.fsdecode(args[0]))
            if _below(path, (self._temporary,)) and not os.path.lexists(path):
                self._made.add(path)
        elif event.startswith("socket.") and event != "socket.gethostname":
            if self._shut:
                self._refuse("open a socket")
            self.counts["sockets"] += event == "socket.connect"
        elif event in PROGRAMS:
            name = Path(os.fsdecode(args[0])).name if args and isinstance(args[0], str | bytes) else event
            if self._shut and not self._compiles:
                self._refuse(f"start {name}")
            self.programs.add(name)

    def _opened(self, path: Any, flags: Any) -> None:
        real = os.path.realpath(os.fsdecode(path))
        # A folder holds names alone.
        if Path(real).is_dir():
            return
        place = self._place(real)
        if place:
            self.counts[place] += 1
        elif real not in self.files and (Path(real).exists() or flags & WRITES):
            if flags & os.O_EXCL and _below(real, (self._temporary,)):
                self._made.add(real)
                self.counts["temporary"] += 1
            elif not self._shut:
                self.files[real] = ""
            else:
                self._refuse(f"open {Path(real).name}")

    def _place(self, real: str) -> str | None:
        for place in ("run", "compiler"):
            if _below(real, self._places.get(place, ())):
                return place
        if real in SYSTEM_FILES or _below(real, SYSTEM_FOLDERS):
            return "system"
        if _below(real, tuple(self._made)):
            return "temporary"
        # A path that is not there opens nothing.
        data = real.lower().endswith(DATA_ENDINGS) and Path(real).exists()
        return "interpreter" if not data and _below(real, self._places["interpreter"]) else None

    def _refuse(self, what: str) -> None:
        error = SealError(f"a sealed run wanted to {what}")
        self.refused = self.refused or error
        raise error


_current: Seal | None = None
_installed = False
_quiet = threading.local()


@contextmanager
def watched(wanted: bool = True) -> Iterator[Seal | None]:
    """A seal for the block, that of an outer block where there is one; None where none is wanted."""
    global _current, _installed
    if not wanted or _current is not None:
        yield _current
        return
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    _current = Seal()
    try:
        yield _current
    finally:
        _current = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    seal = _current
    if seal is not None and not getattr(_quiet, "on", False):
        with _unheard():
            seal.heard(event, args)


@contextmanager
def _unheard() -> Iterator[None]:
    """What this thread opens for the seal's own sake."""
    before, _quiet.on = getattr(_quiet, "on", False), True
    try:
        yield
    finally:
        _quiet.on = before


def merged(records: list[dict[str, Any]], rendezvous: str | None) -> SealRecord:
    """One record of all processes."""
    files = {(f["role"], f["name"], f["sha256"]): f for record in records for f in record["files"]}
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record["counts"])
    return SealRecord(
        files=tuple(OpenedFile(**files[key]) for key in sorted(files)),
        counts=dict(sorted(counts.items())),
        programs=tuple(sorted({name for record in records for name in record["programs"]})),
        processes=len(records),
        rendezvous=rendezvous,
    )


def _role(path: str) -> str:
    return next((role for role, endings in ROLES.items() if path.lower().endswith(endings)), "other")


def _below(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(f"{folder}{os.sep}") for folder in folders)


def _interpreter() -> tuple[str, ...]:
    """Folders of Python, of installed packages and of zsq's own code and metadata."""
    found = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    found += [*site.getsitepackages(), site.getusersitepackages()]
    own = Path(__file__).parents[1]
    # Methods and recipes may be links; an editable install keeps its metadata beside the code.
    metadata = own.parent / "zsq.egg-info"
    found += [str(folder) for folder in (own, own / "generators", own / "recipes", metadata)]
    return tuple({os.path.realpath(path) for path in found})


def _sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
