"""`zsq import`: images made elsewhere become a shard set; any synthesiser can then stand in a gap table."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from zsq.config import IMPORT, config_json, config_sha256
from zsq.core.errors import OptionError
from zsq.core.files import atomic_write_text
from zsq.core.imagespec import check_moments
from zsq.core.records import valid
from zsq.core.version import __version__
from zsq.datasetcard.writing import write_run_card
from zsq.imports.blocks import Blocks, Moments, open_source
from zsq.runfolder import RUN_FILE, folder_out, whole_folder
from zsq.shards.manifest import SHARDS_FOLDER, Manifest, MethodRecord, library_versions, write_manifest
from zsq.shards.schema import ShardContent, ShardEntry, ShardProvenance, shard_name
from zsq.shards.writer import write_shard

DATA_READ = "unknown: images made elsewhere"
Values = float | Iterable[float]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}")


@dataclass(frozen=True)
class Imported:
    """What became of a source; `clamped` is the share of values outside of 0..255, which were clamped."""

    num_images: int
    num_labelled: int
    clamped: float


def import_images(
    source: str | Path,
    out: str | Path,
    *,
    name: str = IMPORT.name,
    mean: Values | None = IMPORT.mean,
    std: Values | None = IMPORT.std,
    layout: str | None = IMPORT.layout,
) -> Imported:
    """Make a shard set of images made elsewhere: a run folder without a teacher, complete or absent.

    Args:
        source: what `zsq.images` reads, the folder of an export, or uint8 or float images as an `.npz`
            (`images`, `labels`), `.safetensors` or `.pt` (a tensor, a list of tensors, or a dict with
            `images` and perhaps `labels`).
        name: of the source in a gap table.
        mean, std: one value or one per channel, such that value * std + mean lies in 0..1; for floats only.
        layout: `nchw` or `nhwc`; by default nhwc in an `.npz` and nchw in tensors.

    Raises:
        OptionError: an option that is missing or has no effect.
        ImagesError, WeightsError, ExportError, ShardError: a source that cannot be read.
        RunFolderError, StorageError: `out` is in the way, or the disk refused.

    Example:
        >>> import torch
        >>> torch.save({"images": torch.rand(8, 1, 32, 32)}, "elsewhere.pt")
        >>> zsq.import_images("elsewhere.pt", "imported", name="other", mean=[0.0], std=[1.0]).num_images
        8
    """
    start = time.perf_counter()
    source, out = str(source), folder_out(out)
    name = valid(str, name, "name")
    if not NAME.fullmatch(name) or name in ("real", "noise"):
        raise OptionError(f"--name '{name}'", "letters, digits, '.', '_', '+', '-'; real and noise are taken")
    opened = open_source(source, _moments(mean, std), layout)
    moments = {} if mean is None else {"mean": list(opened.spec.mean), "std": list(opened.spec.std)}
    config = {"command": "import", "source": source, "name": name, "layout": layout, "set": moments}
    provenance = ShardProvenance(None, None, opened.spec, name, moments, 0, (), 0, DATA_READ)
    with whole_folder(out) as staged:
        atomic_write_text(staged / RUN_FILE, config_json(config) + "\n")
        entries, num_labelled = _write_shards(staged / SHARDS_FOLDER, opened.blocks(), provenance)
        manifest = _manifest(provenance, config, entries, time.perf_counter() - start)
        write_run_card(staged, manifest)
        write_manifest(staged, manifest)
    return Imported(manifest.num_images, num_labelled, opened.clamped)


def _moments(mean: Values | None, std: Values | None) -> Moments | None:
    if (mean is None) != (std is None):
        raise OptionError("--mean without --std" if std is None else "--std without --mean", "both or none")
    if mean is None or std is None:
        return None
    mean, std = (_numbers(given) for given in (mean, std))
    if not np.isfinite([*mean, *std]).all() or min(std, default=0) <= 0:
        raise OptionError(f"--mean {list(mean)} --std {list(std)}", "finite numbers, --std above 0")
    try:
        check_moments(mean, std)
    except ValueError as error:
        raise OptionError(f"--mean {list(mean)} --std {list(std)}: {error}") from None
    return Moments(tuple(mean), tuple(std))


def _numbers(given: Values) -> tuple[float, ...]:
    values = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    if not all(isinstance(value, Real) for value in values):
        raise OptionError(f"mean or std {given!r}", "one number, or one for each channel")
    return tuple(map(float, values))


def _write_shards(folder: Path, blocks: Blocks, provenance: ShardProvenance) -> tuple[list[ShardEntry], int]:
    entries: list[ShardEntry] = []
    first_image = num_labelled = 0
    for index, (pixels, labels) in enumerate(blocks):
        distance = np.full(len(pixels), np.nan, np.float32)
        content = ShardContent(pixels=pixels, labels=labels, logits=None, bn_distance=distance)
        own = replace(provenance, groups=(index,), first_image=first_image)
        entries.append(write_shard(folder / shard_name(index), content, own))
        first_image += len(pixels)
        num_labelled += int((labels >= 0).sum())
    return entries, num_labelled


def _manifest(
    provenance: ShardProvenance, config: dict[str, Any], entries: list[ShardEntry], seconds: float
) -> Manifest:
    return Manifest(
        zsq_version=__version__,
        libraries=library_versions(),
        device="cpu",
        runtime={},
        config=config,
        config_sha256=config_sha256(config),
        teacher=None,
        method=MethodRecord(name=provenance.method, options=provenance.options, data_read=DATA_READ),
        seed=provenance.seed,
        num_images=sum(entry.num_images for entry in entries),
        shards=tuple(entries),
        seconds=round(seconds, 3),
        image_iterations_per_second=0.0,
        data_read=DATA_READ,
    )
