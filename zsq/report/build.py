"""Write a report: report.json, report.md and the self-contained report.html."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from zsq.core.files import atomic_write_text
from zsq.core.wording import other_than
from zsq.datasetcard.sheets import MAX_IMAGES, contact_sheet, png_data_uri
from zsq.measure.gap import Row
from zsq.measure.protocol import REAL
from zsq.report import embeddings
from zsq.report.choices import TEXT as CHOSEN_TEXT
from zsq.report.choices import choice_verdicts, choices_grid
from zsq.report.data import ReportData, finite
from zsq.report.layers import GAP_TEXT, worst_grid
from zsq.report.leakage import FIGURE_TEXT, leakage_figure, leakage_grid, leakage_text
from zsq.report.page import page
from zsq.report.plots import cost_figure, distance_figure, gap_figure, roc_figure
from zsq.report.tables import (
    DASH,
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
from zsq.tasks.metrics import against_teacher, symbol, unit, words

AGAINST = "Every metric against real images and noise"
SETS = "What the sets are like"
WORST = "Worst layers"
CHOSEN = "Bits that images choose"
REVEALED = "What the sets reveal"
BOTH_INTERVALS = "Both intervals of every gap"

SETS_TEXT = (
    "Of the first set of each source: how many teacher passes one image took; how far the statistics of the "
    "images are from those in the teacher's batch norm layers, mean over layers; of a teacher with attention "
    "and without batch norm, how varied the patches of an image are to it (entropy of their similarities) "
    "and how alike the heads of an attention see them (0 to 1), means over images; how much two images "
    "differ that the teacher puts into one class, as the mean cosine distance of their features."
)


INTERVALS_OVER_SETS = (
    "Brackets hold 95 % intervals: how far a value would move with other sets of images of the "
    "same sources. They do not say how far it would move with other evaluation images. A gap whose "
    "interval contains 0 is not shown to differ from 0, and not shown to be 0 either. Seeds are "
    "averaged first; the interval of a mean is Student's, that of a gap Welch's. The details hold "
    "a second interval of each gap, from a bootstrap over sets and seeds; with few sets it is too "
    "narrow."
)

INTERVALS_OVER_SEEDS = (
    "Brackets hold 95 % intervals over the seeds of the students: how far a value would move if the same "
    "images were fitted again. How far it would move with other images of the same sources is not known: "
    "there is one shard set per source."
)

INTERVALS_OVER_IMAGES = (
    "Brackets hold 95 % intervals from a bootstrap over the evaluation images: how far a value would move "
    "with others. All students share the draws, so their differences are paired. How far a value would move "
    "with other images of the same sources is not known: there is one shard set per source."
)


def build_report(data: ReportData, folder: Path) -> Path:
    """Write the three files into `folder`, over those of an earlier report; the path of the page.

    Raises:
        StorageError: the disk refused.
    """
    atomic_write_text(folder / "report.json", json.dumps(data.as_json(), indent=1, allow_nan=False) + "\n")
    atomic_write_text(folder / "report.md", markdown(data))
    path = folder / "report.html"
    atomic_write_text(path, html(data))
    return path


def markdown(data: ReportData) -> str:
    """The tables of the page, without its pictures."""
    parts = [
        f"# {data.title}",
        data.verdict,
        *(f"- {name}: {value}" for name, value in teacher_facts(data)),
        "## Gap to real images",
        markdown_table(gap_grid(data.rows, data.gaps)),
        *explanation(data),
        *choice_verdicts(data.choices),
    ]
    if has_bootstrap(data.gaps):
        parts += ["## " + BOTH_INTERVALS, markdown_table(bootstrap_grid(data.gaps))]
    if data.contrasts:
        parts += ["## " + AGAINST, markdown_table(contrast_grid(data.contrasts))]
    if sets_grid(data).lines:
        parts += ["## " + SETS, markdown_table(sets_grid(data)), SETS_TEXT]
    if data.leakage:
        parts += ["## " + REVEALED, markdown_table(leakage_grid(data.leakage)), leakage_text(data.leakage)]
    for student, choices in data.choices.items():
        parts += [f"## {CHOSEN}: {student}", markdown_table(choices_grid(choices)), CHOSEN_TEXT]
    for student, layers in data.layers.items():
        parts += [f"## {WORST}: {student}", markdown_table(worst_grid(layers)), GAP_TEXT]
    if data.layer_names:
        parts += ["## BN distance per layer", markdown_table(distance_grid(data))]
    parts += [
        "## Every fit",
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
    """The page."""
    sheets = data.shown_sheets
    return page(
        title=data.title,
        verdict=data.verdict,
        facts=teacher_facts(data),
        heading="Gap to real images",
        grid=gap_grid(data.rows, data.gaps),
        explanation=[*explanation(data), *choice_verdicts(data.choices)],
        figures=figures(data),
        sheets={source: png_data_uri(contact_sheet(pixels)) for source, pixels in sheets.items()},
        sheet_sizes={source: min(len(pixels), MAX_IMAGES) for source, pixels in sheets.items()},
        details=({REVEALED: leakage_grid(data.leakage)} if data.leakage else {})
        | ({AGAINST: contrast_grid(data.contrasts)} if data.contrasts else {})
        | ({BOTH_INTERVALS: bootstrap_grid(data.gaps)} if has_bootstrap(data.gaps) else {})
        | {f"{CHOSEN}: {student}": choices_grid(choices) for student, choices in data.choices.items()}
        | {f"{WORST}: {student}": worst_grid(layers) for student, layers in data.layers.items()}
        | {
            "Every fit": runs_grid(data.rows),
            SETS: sets_grid(data),
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
    main = table[0].main.metric if table else "accuracy"
    metric = words(main)[0].upper() + words(main)[1:]
    drawn = []
    if data.gaps:
        text = (
            f"{metric} with real images minus that with the images of each source"
            f"{unit(main) and ', in '}{unit(main)}. A "
            "shorter bar is better. Thin lines are 95 % intervals. Each panel has an axis of its own."
        )
        drawn.append(("Gap per source", text, gap_figure(table)))
    if any(entry.main.source in data.cost for entry in table):
        text = (
            f"{metric} with each source, and how many teacher passes one of its images took: a teacher pass "
            "is one image forward and backward through the teacher. Thin lines and the grey band are 95 % "
            "intervals. Sources of equal cost stand side by side."
        )
        ceiling = _ceiling(main, data.teacher.get(main))
        drawn.append((f"{metric} against cost", text, cost_figure(table, data.cost, ceiling, data.curves)))
    if data.roc:
        text = (
            "Share of pairs of one person that are accepted, at each share of pairs of two persons that are "
            "accepted by mistake (logarithmic axis). Higher is better. Real images are dashed. Each panel "
            "has an axis of its own."
        )
        drawn.append(("ROC curves", text, roc_figure(data.roc)))
    if data.leakage and table:
        drawn.append((f"{metric} against leakage", FIGURE_TEXT, leakage_figure(table, data.leakage)))
    if any(math.isfinite(v) and v > 0 for values in data.bn_distance.values() for v in values):
        text = (
            "How far the statistics of the images are from those stored in each batch norm layer of the "
            "teacher (logarithmic axis). Real images show how near a source can come."
        )
        drawn.append(("BN distance per layer", text, distance_figure(data.layer_names, data.bn_distance)))
    return [{"title": title, "text": text, "svg": Markup(svg)} for title, text, svg in drawn]


def _ceiling(metric: str, teacher: float | None) -> float | None:
    """What a student like its teacher has, None where that is without end."""
    if against_teacher(metric):
        return 100.0 if unit(metric) == "points" else None
    return teacher


def teacher_facts(data: ReportData) -> list[tuple[str, str]]:
    """Name and value of each fact about the teacher, as text."""
    titles = {"name": "teacher", "weights_sha256": "weights sha256", "num_outputs": "outputs"}
    facts = []
    for key, value in data.teacher.items():
        if isinstance(value, float) or key == "accuracy":
            shown = "not measured" if value is None else f"{number(value)} {symbol(key)}".rstrip()
            facts.append((f"full-precision {words(key)}", shown))
        elif value is not None:
            facts.append((titles.get(key, key.replace("_", " ")), str(value)))
    return facts


def explanation(data: ReportData) -> list[str]:
    """What numbers and intervals mean, with the counts of this report."""
    rows = data.rows
    sets = sorted({len({run.shard_set for run in row.runs}) for row in rows})
    seeds = sorted({len({run.seed for run in row.runs}) for row in rows})
    text = [
        f"Each student was fitted on {_listed(sets)} shard set{_s(sets)} of {_images(rows)}, "
        f"with {_listed(seeds)} seed{_s(seeds)} per set, and scored after its last step. The gap is "
        f"the mean with real images minus the mean with the images of the source, in {_unit(rows)}: above 0, "
        "the source is worse than real images. Recovery puts the source between noise, 0 %, and real images, "
        "100 %. It is left out where these two differ by less than 3 standard errors.",
    ]
    if sets and max(sets) > 1:
        text.append(INTERVALS_OVER_SETS)
    elif data.embeds:
        text.append(embeddings.INTERVALS)
    elif data.contrasts:
        text.append(INTERVALS_OVER_IMAGES)
    elif seeds and max(seeds) > 1:
        text.append(INTERVALS_OVER_SEEDS)
    else:
        text.append("There is one shard set per source, so there is no interval: a difference may be chance.")
    return [*text, embeddings.METRICS, embeddings.REVEALED] if data.embeds else text


def _unit(rows: Sequence[Row]) -> str:
    return unit(rows[0].metric) if rows else "points"


def _listed(numbers: Sequence[int]) -> str:
    return " or ".join(str(n) for n in numbers) or "no"


def _images(rows: Sequence[Row]) -> str:
    """How many images of a source, and of which sources there are more or fewer."""
    counts = {row.source: row.num_images for row in rows}
    usual = counts.get(REAL, next(iter(counts.values()), 0))
    return f"{usual} images per source{other_than(usual, counts)}"


def _s(numbers: Sequence[int]) -> str:
    return "" if list(numbers) == [1] else "s"


def distance_grid(data: ReportData) -> Grid:
    """BN distance of each layer and source."""
    columns = [
        [f"{v:.4g}" if math.isfinite(v) else "" for v in values] for values in data.bn_distance.values()
    ]
    return Grid(("layer", *data.bn_distance), tuple(zip(data.layer_names, *columns, strict=True)), 1)


def sets_grid(data: ReportData) -> Grid:
    """What each source cost and what its first set is like to the teacher; a dash for what is not known."""
    said = tuple(dict.fromkeys(name for figures in data.attention.values() for name in figures))
    lines = tuple(
        (
            source,
            number(data.cost.get(source), 0),
            f"{math.fsum(values) / len(values):.4g}" if (values := data.bn_distance.get(source)) else DASH,
            *(number(finite(data.attention.get(source, {}).get(name)), 3) for name in said),
            number(finite(data.intra_class_distance.get(source)), 3),
        )
        for source in {**data.bn_distance, **data.attention, **data.intra_class_distance}
    )
    titles = (name.replace("_", " ") for name in said)
    return Grid(
        ("source", "teacher passes per image", "BN distance", *titles, "intra-class distance"), lines, 1
    )


def tensors_grid(data: ReportData, student: str) -> Grid:
    """The quantized tensors of one student."""
    lines = tuple(
        (t.name, t.kind, "signed" if t.signed else "unsigned", str(t.bits), str(t.num_scales))
        for t in data.quantized_tensors[student]
    )
    return Grid(("tensor", "kind", "grid", "bits", "scales"), (*lines, *_means(data, student)), 3)


def _means(data: ReportData, student: str) -> Iterator[tuple[str, ...]]:
    """A line for each kind whose rows have several widths."""
    for kind in ("weight", "activation"):
        widths = [t.bits for t in data.quantized_tensors[student] if t.kind == kind]
        if len(set(widths)) > 1:
            yield ("mean of rows", kind, "", f"{math.fsum(widths) / len(widths):.2f}", "")


def _settings(data: ReportData) -> str:
    return json.dumps(data.as_json()["settings"], indent=2, ensure_ascii=False, default=str)
