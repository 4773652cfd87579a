"""Verifies: every file against its hash, every array against the schema, every shard against its run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zsq.core.errors import ShardError
from zsq.core.files import open_regular
from zsq.core.seal import SealRecord
from zsq.shards.manifest import Manifest, find_shards, read_manifest
from zsq.shards.reader import read_shard
from zsq.shards.schema import ShardEntry, ShardProvenance


class DamageError(ShardError):
    """A run that is not as it was written; `damages` are all findings, the message is the first."""

    exit_code = 1  # the answer to the question whether a run is whole

    def __init__(self, damages: list[str]) -> None:
        """Count what the line leaves out."""
        more = f" (and {len(damages) - 1} more)" if len(damages) > 1 else ""
        super().__init__(damages[0] + more)
        self.damages = tuple(damages)


@dataclass(frozen=True)
class VerifyResult:
    """What an intact run holds."""

    num_images: int
    num_shards: int
    seal: SealRecord | None = None


def verify_shard(path: Path, sha256: str | None = None) -> tuple[ShardEntry, ShardProvenance]:
    """Check one file, against `sha256` where it is known, and against its own checksums and the schema.

    Raises:
        ShardError: missing, altered or not in the format.
    """
    try:
        with open_regular(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ShardError(f"{path} cannot be read: {error.strerror}", "a shard file") from None
    if sha256 is not None and found != sha256:
        raise ShardError(f"{path} has sha256 {found[:16]}...", f"{sha256[:16]}... by the manifest")
    content, provenance = read_shard(path)
    return ShardEntry(file=path.name, sha256=found, num_images=content.num_images), provenance


def verify_run(folder: Path | str) -> VerifyResult:
    """Check a finished run, given as the run folder or its `shards/`.

    Raises:
        ImagesError: no shards there.
        DamageError: anything missing, altered, foreign or too much; `damages` lists all of it.
        ShardError: no manifest, or one that cannot be read.

    Example:
        >>> folder = zsq.generate("embedded:digits", "noise", count=8, out="noise")
        >>> zsq.verify_run(folder).num_images
        8
    """
    manifest = read_manifest(folder)
    damages = list(_damages(folder, manifest))
    if damages:
        raise DamageError(damages)
    return VerifyResult(manifest.num_images, len(manifest.shards), manifest.seal)


def _damages(folder: Path | str, manifest: Manifest) -> Iterator[str]:
    found = find_shards(folder)
    listed = {entry.file for entry in manifest.shards}
    first_image = 0
    for entry in manifest.shards:
        try:
            verified, provenance = verify_shard(found.shards / entry.file, entry.sha256)
            if verified.num_images != entry.num_images or provenance.first_image != first_image:
                yield f"{entry.file} holds other images than the manifest says"
            for name, value in _run_facts(manifest).items():
                if provenance.shared()[name] != value:
                    yield f"{entry.file}: {name} is not that of the manifest"
        except ShardError as error:
            yield str(error)
        first_image += entry.num_images
    for path in found.paths:
        if path.name not in listed:
            yield f"{path} is not listed in the manifest"


def _run_facts(manifest: Manifest) -> dict[str, Any]:
    """What each shard must say of the run; without a teacher the image spec stands in the shards only."""
    values = manifest.model_dump(mode="json")
    teacher, method = values["teacher"], values["method"]
    facts = {
        "teacher": teacher and teacher["name"],
        "teacher_sha256": teacher and teacher["weights_sha256"],
        "method": method["name"],
        "options": method["options"],
        "seed": values["seed"],
        "data_read": values["data_read"],
    }
    return facts | ({"spec": teacher["image_spec"]} if teacher else {})
