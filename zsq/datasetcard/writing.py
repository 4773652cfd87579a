"""Writes the dataset card of a run, and of what is exported from one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zsq.core.files import atomic_write_bytes, atomic_write_text
from zsq.datasetcard.audited import audit_of
from zsq.datasetcard.page import RUN_FILES, Files, page
from zsq.datasetcard.sheets import MAX_IMAGES, contact_sheet, sheet_png
from zsq.shards.manifest import SHARDS_FOLDER, Manifest
from zsq.shards.reader import ShardFile

CARD_NAME = "README.md"
SHEET_NAME = "contact_sheet.png"


def write_run_card(run: Path, manifest: Manifest) -> None:
    """README.md and contact_sheet.png of a run whose shards are there.

    Raises:
        ShardError: a damaged shard or audit.json. StorageError: the disk refused.
    """
    write_card(run, run / SHARDS_FOLDER, run, manifest, RUN_FILES, SHEET_NAME)


def write_card(
    folder: Path, shards: Path, run: Path, manifest: Manifest, files: Files, sheet_name: str
) -> None:
    """README.md and the contact sheet `sheet_name` in `folder`, of the shards of `run`; the same errors."""
    pixels, num_labelled = _first_images(shards, manifest)
    text = page(manifest, tuple(pixels.shape[1:]), num_labelled, audit_of(run, manifest), files, sheet_name)
    atomic_write_bytes(folder / sheet_name, sheet_png(contact_sheet(pixels)))
    atomic_write_text(folder / CARD_NAME, text)


def _first_images(shards: Path, manifest: Manifest) -> tuple[Tensor, int]:
    """The first images, uint8 (N, C, ...), and how many of all have a label."""
    parts, missing, num_labelled = [], MAX_IMAGES, 0
    for entry in manifest.shards:
        with ShardFile(shards / entry.file) as shard:
            if missing > 0:
                parts.append(shard.read("pixels", slice(0, missing)))
                missing -= len(parts[-1])
            num_labelled += int((shard.read("labels") >= 0).sum())
    return torch.from_numpy(np.concatenate(parts)), num_labelled
