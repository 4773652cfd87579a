"""manifest.json: what a finished run consists of. Written last, so its presence means a whole run."""

from __future__ import annotations

import hashlib
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, NonNegativeFloat, NonNegativeInt, ValidationError, model_validator

from zsq.contract import Teacher
from zsq.core.errors import ImagesError, ShardError
from zsq.core.files import atomic_write_text, input_path, read_regular
from zsq.core.imagespec import ImageSpec
from zsq.core.records import Record, Sha256, first_fault
from zsq.core.seal import SealRecord
from zsq.shards.schema import SHARD_PATTERN, ShardEntry, shard_name
from zsq.tasks import TaskName

MANIFEST_NAME = "manifest.json"
UNFINISHED = (
    "no manifest.json beside the shards: the run is not finished; zsq generate ... --resume finishes it"
)
SHARDS_FOLDER = "shards"

# A line per shard is about 150 bytes and there are at most 100,000 of them.
MAX_MANIFEST_BYTES = 64 * 2**20


class TeacherRecord(Record):
    """The teacher as a manifest states it; `accuracy` is the measured top-1 in percent, where measured."""

    name: str
    weights_sha256: Sha256
    task: TaskName
    num_outputs: Annotated[int, Field(gt=0)] | None
    num_classes: Annotated[int, Field(gt=0)] | None
    image_spec: ImageSpec
    accuracy: float | None = None

    @classmethod
    def of(cls, teacher: Teacher, accuracy: float | None = None) -> TeacherRecord:
        """The record of a loaded teacher."""
        return cls(
            name=teacher.name,
            weights_sha256=teacher.weights_sha256,
            task=teacher.task.name,
            num_outputs=teacher.num_outputs,
            num_classes=teacher.num_classes,
            image_spec=teacher.spec,
            accuracy=accuracy,
        )


class MethodRecord(Record):
    """The method, its resolved options, what of the real world it read, and how the labels of its boxes were
    found, None where it makes none."""

    name: str
    options: dict[str, Any]
    data_read: str
    labels: Literal["random", "sampled"] | None = None


class Manifest(Record):
    """The content of manifest.json. `teacher` is None for images made elsewhere; `seal` is what a sealed run
    opened."""

    format_version: Literal[1] = 1
    zsq_version: str
    libraries: dict[str, str]
    device: str
    runtime: dict[str, Any]
    config: dict[str, Any]
    config_sha256: Sha256
    teacher: TeacherRecord | None
    method: MethodRecord
    seed: NonNegativeInt
    num_images: NonNegativeInt
    shards: Annotated[tuple[ShardEntry, ...], Field(min_length=1)]
    seconds: NonNegativeFloat
    image_iterations_per_second: NonNegativeFloat
    data_read: str
    sealed: bool = False
    seal: SealRecord | None = None

    @property
    def shards_sha256(self) -> str:
        """Over the hex digests of the shards, in order."""
        return hashlib.sha256("".join(entry.sha256 for entry in self.shards).encode()).hexdigest()

    @model_validator(mode="after")
    def _counts_agree(self) -> Manifest:
        if self.sealed != (self.seal is not None):
            raise ValueError("sealed is true exactly where seal is there")
        total = sum(entry.num_images for entry in self.shards)
        if total != self.num_images:
            raise ValueError(f"num_images is {self.num_images}, the shards sum to {total}")
        for index, entry in enumerate(self.shards):
            if entry.file != shard_name(index):
                raise ValueError(f"shard {index} is called {entry.file}")
        return self


class ShardFolder(NamedTuple):
    """Where a run and its shards lie; `paths` are the shard files there, in order."""

    run: Path
    shards: Path
    paths: tuple[Path, ...]


def library_versions() -> dict[str, str]:
    """Versions that decide about bytes, for the manifest."""
    names = ("h5py", "numpy", "torch", "torchvision")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


def find_shards(folder: Path | str) -> ShardFolder:
    """Accept a run folder or its `shards/`.

    Raises:
        ImagesError: not a folder, or one without shards.
    """
    folder = input_path(folder, "folder")
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise ImagesError(f"{folder} {what}", "a run folder or its shards/")
    nested = folder / SHARDS_FOLDER
    shards = nested if nested.is_dir() else folder
    run = folder.parent if shards is folder and folder.resolve().name == SHARDS_FOLDER else folder
    paths = _shard_paths(shards)
    if not paths:
        raise ImagesError(f"{folder} holds no shards", f"files named {shard_name(0)} and so on")
    return ShardFolder(run, shards, tuple(paths))


def is_finished(folder: Path | str) -> bool:
    """Whether a manifest stands beside the shards of `folder`, as `find_shards` finds them."""
    return (find_shards(folder).run / MANIFEST_NAME).exists()


def holds_shards(folder: Path | str) -> bool:
    """Whether `folder` is a folder in which `find_shards` finds some.

    Raises:
        ImagesError: a folder that cannot be read.
    """
    folder = input_path(folder, "folder")
    nested = folder / SHARDS_FOLDER
    return folder.is_dir() and bool(_shard_paths(nested if nested.is_dir() else folder))


def _shard_paths(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if re.fullmatch(SHARD_PATTERN, path.name))
    except OSError as error:
        raise ImagesError(f"{folder} cannot be read: {error.strerror}", "a readable folder") from None


def write_manifest(run: Path, manifest: Manifest) -> Path:
    """Write `run`/manifest.json atomically; equal manifests give equal bytes.

    Raises:
        StorageError: the disk refused.
    """
    path = run / MANIFEST_NAME
    atomic_write_text(path, manifest.model_dump_json(indent=2) + "\n")
    return path


def read_manifest(folder: Path | str) -> Manifest:
    """Read the manifest of a run folder, or of the run of a `shards/` folder.

    Raises:
        ImagesError: no shards there.
        ShardError: no manifest, or one that is not in the format.
    """
    path = find_shards(folder).run / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(read_regular(path, MAX_MANIFEST_BYTES))
    except FileNotFoundError:
        remedy = "finish the run with --resume"
        raise ShardError(f"{path} does not exist", "the manifest of a finished run", remedy) from None
    except OSError as error:
        raise ShardError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        raise ShardError(f"{path}: {first_fault(error)}", "a zsq manifest") from None
