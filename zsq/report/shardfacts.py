"""What a shard set holds and where it comes from, in lines, and its contact sheet."""

from __future__ import annotations

from pathlib import Path

from zsq.core.files import atomic_write_bytes
from zsq.core.wording import quantity
from zsq.datasetcard.sheets import contact_sheet, sheet_png
from zsq.datasetcard.writing import SHEET_NAME
from zsq.shards.manifest import UNFINISHED, find_shards, is_finished
from zsq.shards.reader import ShardDataset

SHEET_IMAGES = 64


def shard_lines(folder: str | Path) -> list[str]:
    """Lines for `zsq inspect`; writes the contact sheet into the run's folder.

    Raises:
        ImagesError, ShardError: no shards, or damaged ones. StorageError: the disk refused.
    """
    dataset = ShardDataset(folder)
    provenance = dataset.provenance
    shown = dataset.pixels(range(min(SHEET_IMAGES, len(dataset))))
    sheet = find_shards(folder).run / SHEET_NAME
    atomic_write_bytes(sheet, sheet_png(contact_sheet(shown)))
    labels = dataset.labels()
    classes = labels[labels >= 0].unique().numel()
    lines = [
        f"{quantity(len(dataset), 'image')} of {'x'.join(map(str, dataset.spec.shape))}, "
        + (quantity(classes, "class") if classes else "without labels"),
        f"method {provenance.method}, seed {provenance.seed}, data read: {provenance.data_read}",
        f"teacher {provenance.teacher} {(provenance.teacher_sha256 or '')[:16]}"
        if provenance.teacher
        else "no teacher: images made elsewhere",
        "options " + ", ".join(f"{key}={value}" for key, value in provenance.options.items()),
    ]
    if said := dataset.diagnostics():
        means = (f"{name.replace('_', ' ')} {values.nanmean().item():.3g}" for name, values in said.items())
        lines.append("means over images: " + ", ".join(means))
    if not is_finished(folder):
        lines.append(UNFINISHED)
    return [*lines, f"contact sheet: {sheet}"]
