"""Write a report: report.json, report.md and the self-contained report.html."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from zsq.core.files import atomic_write_text
from zsq.measure.gap import Row
from zsq.report import embeddings
from zsq.report.data import ReportData, finite
from zsq.report.plots import cost_figure, distance_figure, gap_figure, roc_figure
from zsq.report.sheets import MAX_IMAGES, contact_sheet, png_data_uri
from zsq.report.tables import (
    Grid,
    bootstrap_grid,
    contrast_grid,
    entries,
    gap_grid,
    has_bootstrap,
    markdown_table,
    number,
    runs_grid,
)

AGAINST = "Every metric against real images and noise"
BOTH_INTERVALS = "Both intervals of every gap"

SETS_TEXT = (
    "Of each source's first set: teacher passes per image, mean BN distance over layers, and the mean cosine "
    "distance between the teacher's features of two images that it puts into one class."
)


def build_report(data: ReportData, folder: Path) -> Path:
    """Write the three files into `folder`, over those of an earlier report; the path of the page.

    Raises:
        StorageError: the disk refused.
    """
    atomic_write_text(folder / "report.json", json.dumps(data.as_json(), indent=1, allow_nan=False) + "\n")
    atomic_write_text(folder / "report.md", markdown(data))
    page = folder / "report.html"
    atomic_write_text(page, html(data))
    return page


def markdown(data: ReportData) -> str:
    """The tables of the page, without its pictures."""
    parts = [
        f"# {data.title}",
        data.verdict,
        *(f"- {name}: {value}" for name, value in teacher_facts(data)),
        "## Gap to real images",
        markdown_table(gap_grid(data.rows, data.gaps)),
        *explanation(data.rows, data.embeds),
    ]
    if has_bootstrap(data.gaps):
        parts += ["## " + BOTH_INTERVALS, markdown_table(bootstrap_grid(data.gaps))]
    if data.contrasts:
        parts += ["## " + AGAINST, markdown_table(contrast_grid(data.contrasts))]
    if data.layer_names:
        parts += ["## The sets", markdown_table(sets_grid(data)), SETS_TEXT]
        parts += ["## BN distance per layer", markdown_table(distance_grid(data))]
    parts += [
        "## Every run",
        markdown_table(runs_grid(data.rows)),
        *(
            text
            for student in data.quantized_tensors
            for text in (f"## Quantized tensors: {student}", markdown_table(tensors_grid(data, student)))
        ),
        "## Settings",
        f"```json\n{_settings(data)}\n```",
    ]
    return _joined(parts) + "\n"


def _joined(parts: Sequence[str]) -> str:
    """Paragraphs apart, items of a list together."""
    text = ""
    for before, part in zip(["", *parts], parts, strict=False):
        text += ("\n" if before.startswith("- ") and part.startswith("- ") else "\n\n") + part
    return text.strip()


def html(data: ReportData) -> str:
    """The page: style, figures and images inside, nothing fetched."""
    environment = Environment(
        loader=PackageLoader("zsq", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sheets = data.shown_sheets
    return environment.get_template("report.html.j2").render(
        title=data.title,
        verdict=data.verdict,
        facts=teacher_facts(data),
        gap_grid=gap_grid(data.rows, data.gaps),
        explanation=explanation(data.rows, data.embeds),
        figures=figures(data),
        sheets={source: png_data_uri(contact_sheet(pixels)) for source, pixels in sheets.items()},
        sheet_sizes={source: min(len(pixels), MAX_IMAGES) for source, pixels in sheets.items()},
        details=({AGAINST: contrast_grid(data.contrasts)} if data.contrasts else {})
        | ({BOTH_INTERVALS: bootstrap_grid(data.gaps)} if has_bootstrap(data.gaps) else {})
        | {
            "Every run": runs_grid(data.rows),
            "The sets": sets_grid(data),
            "BN distance per layer": distance_grid(data),
        }
        | {
            f"Quantized tensors: {student}": tensors_grid(data, student) for student in data.quantized_tensors
        },
        settings=_settings(data),
    )


def figures(data: ReportData) -> list[dict[str, Any]]:
    """Title, description and SVG of each figure there is data for."""
    table = entries(data.rows, data.gaps)
    metric = "Cosine to the teacher" if data.embeds else "Accuracy"
    drawn = []
    if data.gaps:
        text = (
            f"{metric} on real images minus that on each source, in points; whiskers are 95 % intervals. "
            "Shorter is better. Every panel has its own axis."
        )
        drawn.append(("Gap per source", text, gap_figure(table)))
    if any(entry.main.source in data.cost for entry in table):
        text = (
            "Mean over shard sets against the teacher passes spent on one image; whiskers and the band "
            "around real images are 95 % intervals. Sources of equal cost stand side by side."
        )
        ceiling = 100.0 if data.embeds else data.teacher.get("accuracy")
        drawn.append((f"{metric} against cost", text, cost_figure(table, data.cost, ceiling, data.curves)))
    if data.roc:
        text = (
            "Share of genuine pairs accepted against the share of impostor pairs accepted, which is on a "
            "logarithmic axis; real images are dashed. Every panel has its own axis."
        )
        drawn.append(("ROC curves", text, roc_figure(data.roc)))
    if any(math.isfinite(v) and v > 0 for values in data.bn_distance.values() for v in values):
        text = (
            "Distance of the images' statistics to those stored in the teacher's batch normalisation layers, "
            "on a logarithmic axis."
        )
        drawn.append(("BN distance per layer", text, distance_figure(data.layer_names, data.bn_distance)))
    return [{"title": title, "text": text, "svg": Markup(svg)} for title, text, svg in drawn]


def teacher_facts(data: ReportData) -> list[tuple[str, str]]:
    """Name and value of each fact about the teacher, as text."""
    titles = {"name": "teacher", "weights_sha256": "weights sha256", "num_outputs": "outputs"}
    facts = []
    for key, value in data.teacher.items():
        if key == "accuracy":
            facts.append(
                ("full-precision accuracy", f"{number(value)} %" if value is not None else "not measured")
            )
        elif isinstance(value, float):
            facts.append((f"full-precision {key}", f"{number(value)} %"))
        elif value is not None:
            facts.append((titles.get(key, key.replace("_", " ")), str(value)))
    return facts


def explanation(rows: Sequence[Row], embeds: bool = False) -> list[str]:
    """What the figures and intervals mean, in the numbers of this report."""
    sets = sorted({len({run.shard_set for run in row.runs}) for row in rows})
    seeds = sorted({len({run.seed for run in row.runs}) for row in rows})
    images = sorted({row.num_images for row in rows})
    text = [
        f"Every student was fitted on {_listed(sets)} shard set{_s(sets)} of {_listed(images)} images per "
        f"source, with {_listed(seeds)} seed{_s(seeds)} each, and scored after its last step. The gap is the "
        "mean on real images minus the mean on the source, in points: above 0, the source is worse. Recovery "
        "is the part of the way from noise to real images that the source covers; it is given only where "
        "real images and noise differ by more than 3 standard errors."
    ]
    if sets and max(sets) > 1:
        text.append(
            "Brackets are 95 % intervals over shard sets, student seeds averaged first: Student's t for a "
            "mean, Welch's for a gap. They say how much the result would move with other images of the same "
            "sources, not with other evaluation images. An interval that contains 0 does not show that a "
            "source equals real images. The two-level bootstrap resamples shard sets and seeds; with few "
            "sets it is too narrow."
        )
    elif embeds:
        text.append(embeddings.INTERVALS)
    else:
        text.append("With one shard set per source there is no interval: differences may be chance.")
    return [*text, embeddings.METRICS, embeddings.REVEALED] if embeds else text


def _listed(numbers: Sequence[int]) -> str:
    return " or ".join(str(n) for n in numbers) or "no"


def _s(numbers: Sequence[int]) -> str:
    return "" if list(numbers) == [1] else "s"


def distance_grid(data: ReportData) -> Grid:
    """BN distance of each layer and source."""
    columns = [
        [f"{v:.4g}" if math.isfinite(v) else "" for v in values] for values in data.bn_distance.values()
    ]
    return Grid(("layer", *data.bn_distance), tuple(zip(data.layer_names, *columns, strict=True)), 1)


def sets_grid(data: ReportData) -> Grid:
    """What each source cost and what its first set is like to the teacher."""
    lines = tuple(
        (
            source,
            number(data.cost.get(source), 0),
            f"{math.fsum(values) / len(values):.4g}",
            number(finite(data.intra_class_distance.get(source)), 3),
        )
        for source, values in data.bn_distance.items()
    )
    return Grid(("source", "teacher passes per image", "BN distance", "intra-class distance"), lines, 1)


def tensors_grid(data: ReportData, student: str) -> Grid:
    """The quantized tensors of one student."""
    lines = tuple(
        (t.name, t.kind, "signed" if t.signed else "unsigned", str(t.bits), str(t.num_scales))
        for t in data.quantized_tensors[student]
    )
    return Grid(("tensor", "kind", "grid", "bits", "scales"), lines, 3)


def _settings(data: ReportData) -> str:
    return json.dumps(data.as_json()["settings"], indent=2, ensure_ascii=False, default=str)
