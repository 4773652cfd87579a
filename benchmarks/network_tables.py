"""Tables of networks of other tasks and libraries, for `tables.py`."""

from __future__ import annotations

import json
import math
from typing import Any

from common import Results, option_texts

from zsq.measure.protocol import REAL
from zsq.report.tables import DASH, Grid, number

FITTED = ("ptq", "repq")


def super_resolution() -> Grid:
    """CARN-M's students by source."""
    columns = ("psnr", "ssim", "sqnr", "sqnr_centred")
    rows = sorted(
        Results("super-resolution").rows(),
        key=lambda row: (
            row["student"] != "ptq",
            row["bits"] != "W8A8",
            row["bits"] != "W4A8",
            -row["count"],
        ),
    )
    lines = (
        (
            row["student"],
            row["bits"],
            str(row["count"]),
            row["source"],
            *(number(row[name]) for name in columns),
        )
        for row in rows
    )
    return Grid(("student", "bits", "images", "source", *columns), tuple(lines), 4)


def detector() -> Grid:
    """FastestDet's students by source, with what agreement is less than on real photos."""
    found = Results("detector").read()

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return row["student"], row["bits"], json.dumps(row["options"]), row["source"]

    against_real = {key(each): each for each in found["contrasts"] if each["less"] == REAL}
    fits = [key(row)[:-1] for row in found["rows"]]
    lines = []
    for row in sorted(found["rows"], key=lambda row: fits.index(key(row)[:-1])):
        less = against_real.get(key(row))
        interval = DASH if less is None else "[{}, {}]".format(*map(number, less["agreement_ap_ci95"]))
        figures = (
            number(row["agreement_ap"]),
            DASH if less is None else number(less["agreement_ap"]),
            interval,
        )
        options = ", ".join(option_texts(row["options"])) or DASH
        lines.append((row["student"], row["bits"], options, row["source"], *figures, number(row["map"])))
    header = ("student", "bits", "options", "source", "agreement_ap", "less real", "95 %", "map")
    return Grid(header, tuple(lines), 4)


def zoo() -> Grid:
    """How many networks got how far."""
    steps = ("captured", "placed", "fitted", "saved")
    rows = Results("zoo").rows()
    groups = {
        "torchvision": [row for row in rows if not row["network"].startswith("timm:")],
        "timm": [row for row in rows if row["network"].startswith("timm:")],
    }
    lines = []
    for student in ("ptq", "genie-m"):
        for library, own in groups.items():
            tried = [row for row in own if row["student"] == student]
            close = sum(row.get("sqnr", -math.inf) >= 15 for row in tried)
            counts = (sum(step in row for row in tried) for step in steps)
            lines.append((student, library, str(len(tried)), *map(str, counts), str(close)))
    return Grid(("student", "library", "tried", *steps, "15 dB or more"), tuple(lines), 2)


def library_transformers() -> Grid:
    """What works with each network, and the peak of memory; a dash for what is not measured yet."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in Results("library-transformers").rows():
        found.setdefault(row["network"], {})[row["step"]] = row
    lines = []
    for network, steps in found.items():
        made = [step for step in steps.values() if "iterations" in step]
        methods = f"{len(made)}, {max(step['peak_mb'] for step in made)} MB" if made else DASH
        adapter, units = steps.get("adapter"), steps.get("units")
        fits = ("refused" if "why" in steps.get(name, {}) else _peak(steps.get(name)) for name in FITTED)
        lines.append(
            (
                network,
                DASH if adapter is None else f"{adapter['attentions']}",
                DASH if adapter is None else f"{adapter['difference']:.1e}",
                DASH if units is None else f"{units['units']} ({len(units['rounded_only'])})",
                _peak(steps.get("built")),
                methods,
                *fits,
            )
        )
    header = ("network", "attentions", "difference", "units", "built", "methods", "`ptq`", "`repq`")
    return Grid(header, tuple(lines), 1)


def _peak(step: dict[str, Any] | None) -> str:
    return DASH if step is None else f"{step['peak_mb']} MB"
