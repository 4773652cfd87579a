"""`zsq export` and `zsq verify --against`: a finished run as files for other tools, and the check that these
show the same pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from zsq.config import EXPORT, ExportConfig, validated
from zsq.contract import Teacher
from zsq.core.errors import ExportError, MismatchError, OptionError, UnknownNameError
from zsq.core.files import atomic_write_text, input_path
from zsq.core.version import __version__
from zsq.core.wording import quantity
from zsq.datasetcard.page import Files
from zsq.datasetcard.writing import write_card
from zsq.exports.export_json import (
    CARD_NAMES,
    RECORD_NAME,
    SHEET_NAME,
    ChannelValues,
    Each,
    ExportRecord,
    Range,
    SourceRecord,
    applied,
    read_record,
)
from zsq.exports.formats import FORMATS
from zsq.exports.kinds import Reader
from zsq.exports.tools import TOOLS
from zsq.images.photos import check_memory
from zsq.images.sources import check_shape
from zsq.runfolder import folder_out, whole_folder
from zsq.shards.manifest import Manifest, find_shards, read_manifest
from zsq.shards.reader import ShardDataset, read_shard
from zsq.shards.schema import ShardContent
from zsq.shards.verify import verify_shard

IMAGES_AT_ONCE = 256  # that a reader is asked for, about


def export(
    folder: str | Path,
    to: str | None = EXPORT.to,
    out: str | Path | None = None,
    *,
    tool: str | None = EXPORT.tool,
    each: str | None = EXPORT.each,
    layout: str | None = EXPORT.layout,
    range: str | None = EXPORT.range,
    card: bool = EXPORT.card,
) -> ExportRecord:
    """Write a finished run as files for other tools; what EXPORT.json says. `out` is complete or absent.

    Args:
        to: `files`, `imagefolder`, `npy`, `npz`, `raw` or `webdataset`.
        tool: of `zsq.exports.tools.TOOLS`, which sets all but `layout`.
        each: with `files`, what the file of an image is: `png`, `npy` or `raw`.
        layout: `nchw` or `nhwc`; by default nhwc in an npz and nchw elsewhere. PNG has none.
        range: `uint8` 0..255, `unit` 0..1 or `norm` (normalised as the teacher takes it, not resized), both
            float32; by default uint8.
        card: also write a dataset card, README.md, with a picture of the first images.

    Raises:
        OptionError: an option that this format cannot take.
        ShardError, ImagesError: no finished run, or a damaged one.
        RunFolderError, StorageError: `out` is in the way, or the disk refused.
        MissingExtraError: the format needs a package that is not installed.

    Example:
        >>> folder = zsq.generate("embedded:digits", "noise", count=8, out="noise")
        >>> zsq.export(folder, "npz", "arrays").num_images
        8
    """
    if out is None:
        raise OptionError("no folder to export to", "out")
    given = {"to": to, "tool": tool, "each": each, "layout": layout, "range": range, "card": card}
    asked = validated(ExportConfig, given, "export")
    folder, out = input_path(folder, "folder"), folder_out(out)
    dataset, manifest = ShardDataset(folder), read_manifest(folder)
    plan = _planned(dataset, manifest, _resolved(asked, dataset))
    with whole_folder(out) as staged:
        record = _written(staged, folder, manifest, plan, asked.card)
        atomic_write_text(staged / RECORD_NAME, record.model_dump_json(indent=2) + "\n")
    return record


def _planned(dataset: ShardDataset, manifest: Manifest, values: dict[str, Any]) -> ExportRecord:
    """What is known before the files are written."""
    return ExportRecord.model_construct(
        zsq_version=__version__,
        applied=applied(dataset.spec, values["layout"], values["range"]),
        image=dataset.spec,
        num_images=manifest.num_images,
        num_labelled=int((dataset.labels() >= 0).sum()),
        num_shards=len(manifest.shards),
        source=_source(manifest),
        **values,
    )


def _written(staged: Path, folder: Path, manifest: Manifest, plan: ExportRecord, card: bool) -> ExportRecord:
    """Write the images and all that stands beside them but EXPORT.json, whose content is returned."""
    writer = FORMATS[plan.to]().writer(staged, plan)
    first_image, seen = 0, _Seen(plan)
    for content in _contents(folder, manifest):
        writer.add(content.pixels, content.labels, first_image)
        seen.add(content.pixels)
        first_image += content.num_images
    record = ExportRecord.model_construct(**{**vars(plan), "use": writer.use(plan), "seen": seen.values()})
    if card:
        found = find_shards(folder)
        write_card(staged, found.shards, found.run, manifest, _beside(record), SHEET_NAME)
        for name in CARD_NAMES:
            writer.sums.add(staged / name)
    return ExportRecord(**{**vars(record), "sums_sha256": writer.close()})


def _beside(record: ExportRecord) -> Files:
    """What the card says of the files."""
    said = [f"{step[0].upper()}{step[1:]}." for step in (*record.applied, record.values_line)]
    if record.to != "imagefolder":
        pattern = "images/*.png" if record.each == "png" else None
        return Files(said, record.use, pattern)
    said.append(
        'A label is the rank of its folder\'s name; `images.features["label"].names` has the class. '
        "`unlabelled` is none."
    )
    load = 'images = load_dataset("imagefolder", data_dir=".")["train"]'
    return Files(said, ("from datasets import load_dataset", load), "*/*.png")


class _Seen:
    """The values of each channel in the order of the files, from shards as they pass."""

    def __init__(self, record: ExportRecord) -> None:
        """`record` says how pixels become values, which is increasing and the same for all pixels."""
        self.record = record
        channels = record.image.channels
        self.low, self.high = np.full(channels, 255), np.zeros(channels, int)
        self.total, self.count = np.zeros(channels), 0

    def add(self, pixels: np.ndarray) -> None:
        """Take uint8 (N, C, ...)."""
        axes = (0, *range(2, pixels.ndim))
        self.low = np.minimum(self.low, pixels.min(axes))
        self.high = np.maximum(self.high, pixels.max(axes))
        self.total += pixels.sum(axes, dtype=np.float64)
        self.count += pixels.size // pixels.shape[1]

    def values(self) -> tuple[ChannelValues, ...]:
        """Lowest, highest and mean value of each channel."""
        black, white = (self._encoded(level) for level in (0, 255))
        order = slice(None, None, -1) if self._turned else slice(None)
        rows = (
            black + (white - black) * level[order] / 255
            for level in (self.low, self.high, self.total / self.count)
        )
        return tuple(
            ChannelValues(low=low, high=high, mean=mean) for low, high, mean in zip(*rows, strict=True)
        )

    @property
    def _turned(self) -> bool:
        return self.record.range == "norm" and self.record.image.channel_order == "bgr"

    def _encoded(self, level: int) -> np.ndarray:
        """What `level` in all channels becomes, a float64 value per channel in the order of the files."""
        shape = self.record.image.shape
        encoded = self.record.encode(np.full((1, *shape), level, np.uint8)).astype(np.float64)
        last = self.record.layout != "nchw"
        return encoded.reshape(-1, shape[0])[0] if last else encoded.reshape(shape[0], -1)[:, 0]


def _resolved(asked: ExportConfig, dataset: ShardDataset) -> dict[str, Any]:
    """`to`, `each`, `layout`, `range`, `dtype` and `tool` of the record."""
    if asked.tool is not None:
        asked = _of_tool(asked.tool, asked)
    to, each, layout, range = asked.to, asked.each, asked.layout, asked.range or "uint8"
    if to is None:
        raise OptionError("neither --to nor --for", f"one of them: --to {', '.join(FORMATS)}")
    if to not in FORMATS:
        raise UnknownNameError("format", to, FORMATS, "zsq export --help")
    if (each is None) == (to == "files") or each not in (None, *get_args(Each)):
        given = "without --each" if each is None else f"with --each {each}"
        raise OptionError(f"--to {to} {given}", "--to files with --each png, npy or raw")
    writer = FORMATS[to]().writer
    if range not in get_args(Range):
        raise OptionError(f"--range {range}", f"one of {', '.join(get_args(Range))}")
    ranges = ("uint8",) if each == "png" else writer.ranges
    if range not in ranges:
        raise OptionError(f"--to {to} --range {range}", f"--range {' or '.join(ranges)}")
    stores_png = each == "png" or (to == "webdataset" and range == "uint8")
    own = "png" if stores_png else writer.default_layout
    _check_layout(to, layout, own, dataset)
    dtype = "uint8" if range == "uint8" else "float32"
    return {
        "to": to,
        "each": each,
        "layout": layout or own,
        "range": range,
        "dtype": dtype,
        "tool": asked.tool,
    }


def _of_tool(tool: str, asked: ExportConfig) -> ExportConfig:
    """`asked` with what the row of a tool sets; the layout may be another one."""
    if tool not in TOOLS:
        raise UnknownNameError("tool", tool, TOOLS, "zsq export --help")
    for option, value in (("--to", asked.to), ("--each", asked.each), ("--range", asked.range)):
        if value is not None:
            raise OptionError(f"{option} {value} with --for {tool}", "one of the two", "--for sets it")
    row = TOOLS[tool]
    sets = {"to": row.to, "each": row.each, "layout": asked.layout or row.layout, "range": row.range}
    return asked.model_copy(update=sets)


def _check_layout(to: str, layout: str | None, own: str, dataset: ShardDataset) -> None:
    if layout is not None and own == "png":
        raise OptionError(f"--layout {layout}", f"none: {to} stores PNG files", "leave it out")
    if layout not in (None, "nchw", "nhwc"):
        raise OptionError(f"--layout {layout}", "nchw or nhwc")
    if own == "png" and dataset.spec.channels not in (1, 3):
        raise OptionError(
            f"--to {to} with {quantity(dataset.spec.channels, 'channel')}", "1 or 3", "use --to npy"
        )
    if own == "png" and dataset.spec.is_signal:
        raise OptionError(f"--to {to} with signals", "images", "use --to npy")


def _source(manifest: Manifest) -> SourceRecord:
    return SourceRecord(
        method=manifest.method.name,
        seed=manifest.seed,
        teacher=manifest.teacher.name if manifest.teacher else None,
        teacher_sha256=manifest.teacher.weights_sha256 if manifest.teacher else None,
        shards_sha256=manifest.shards_sha256,
    )


def _contents(folder: Path, manifest: Manifest) -> Iterator[ShardContent]:
    """One shard at a time, checked against the manifest."""
    shards = find_shards(folder).shards
    for entry in manifest.shards:
        verify_shard(shards / entry.file, entry.sha256)
        yield read_shard(shards / entry.file)[0]


def open_export(folder: Path) -> Reader:
    """A reader of an export's images, in the order of the run.

    Raises:
        ExportError: a damaged export.
        ImagesError: no export, or its images are larger than fits into memory.
    """
    record = read_record(folder)
    check_memory(str(folder), min(record.num_images, IMAGES_AT_ONCE), record.image.shape)
    return FORMATS[record.to]().reader(folder, record)


@dataclass(frozen=True)
class Comparison:
    """What was compared; `logit_difference` is the largest found, None without a teacher."""

    num_images: int
    to: str
    logit_difference: float | None


def verify_export(folder: Path, export: Path, teacher: Teacher | None, tolerance: float) -> Comparison:
    """Undo what EXPORT.json states, and compare every pixel and label with the run's.

    Args:
        teacher: its logits of the exported images are compared with the stored ones too.
        tolerance: largest allowed difference of a logit.

    Raises:
        ExportError: damaged, or the first image that differs. ImagesError: no export.
        MismatchError: the stored logits are of other weights, or there are none; or the teacher takes images
            of another size.
    """
    manifest = read_manifest(folder)
    dataset = ShardDataset(folder)
    _check_teacher(folder, manifest, dataset, teacher)
    with open_export(export) as reader:
        _check_facts(reader.record, manifest, dataset, export)
        first_image, difference = 0, 0.0
        for content in _contents(folder, manifest):
            pixels, labels = reader.take(content.num_images)
            _compare(pixels, labels, content, first_image, export)
            if teacher is not None:
                difference = max(difference, _logit_difference(teacher, pixels, content))
            first_image += content.num_images
        reader.check_end()
        to = reader.record.to
    # The comparison is written so that NaN fails it.
    if not difference <= tolerance:
        raise ExportError(
            f"logits of {export} differ by {difference:.3g}", f"{tolerance:g} at most", "see --tolerance"
        )
    return Comparison(manifest.num_images, to, None if teacher is None else difference)


def _check_teacher(folder: Path, manifest: Manifest, dataset: ShardDataset, teacher: Teacher | None) -> None:
    if teacher is None:
        return
    stored = manifest.teacher and manifest.teacher.weights_sha256
    if stored != teacher.weights_sha256:
        found = f"weights {teacher.weights_sha256[:16]}... of {teacher.name}"
        raise MismatchError(found, f"{(stored or 'no teacher')[:16]} as the run says", "pass its --weights")
    check_shape(str(folder), dataset.spec.shape, teacher.spec)


def _check_facts(record: ExportRecord, manifest: Manifest, dataset: ShardDataset, export: Path) -> None:
    if record.num_images != manifest.num_images:
        raise ExportError(
            f"{export} states {quantity(record.num_images, 'image')}", f"the {manifest.num_images} of the run"
        )
    if record.image.shape != dataset.spec.shape:
        raise ExportError(
            f"{export} states images of {record.image.shape}", f"{dataset.spec.shape} of the run"
        )


def _compare(
    pixels: np.ndarray, labels: np.ndarray, content: ShardContent, first_image: int, export: Path
) -> None:
    wrong = np.flatnonzero((pixels != content.pixels).reshape(len(pixels), -1).any(axis=1))
    if wrong.size:
        index = int(wrong[0])
        where = tuple(int(axis[0]) for axis in np.nonzero(pixels[index] != content.pixels[index]))
        found, expected = int(pixels[index][where]), int(content.pixels[index][where])
        axes = "channel, position" if len(where) == 2 else "channel, row, column"
        raise ExportError(
            f"{export}: image {first_image + index} has {found} at {axes} {where}",
            f"{expected} as in the run",
        )
    wrong = np.flatnonzero(labels != content.labels)
    if wrong.size:
        index = int(wrong[0])
        what = f"{export}: image {first_image + index} has label {labels[index]}"
        raise ExportError(what, f"{content.labels[index]} as in the run")


def _logit_difference(teacher: Teacher, pixels: np.ndarray, content: ShardContent) -> float:
    if content.logits is None:
        raise MismatchError("shards without logits", "shards with logits", "leave --teacher out")
    device = next(teacher.network.parameters()).device
    with torch.inference_mode():
        standard = teacher.spec.pixels_to_standard(torch.from_numpy(pixels).to(device))
        logits = teacher.logits(standard).float().cpu().numpy()
    return float(np.abs(logits - content.logits).max())
