"""Tables of `tuning.py`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from common import Results

from zsq.report.tables import DASH, Grid, number


def tuning() -> Grid:
    """Agreement by learning rate; bold is the best of a line."""
    rows = [row for row in Results("tuning").rows() if "learning_rate" in row]
    rates = sorted({row["learning_rate"] for row in rows}, reverse=True)
    means = {
        (row["student"], row["bits"], row["source"], row["learning_rate"]): f"{row['mean']:.1f}"
        for row in rows
    }
    lines = []
    names = sorted(
        {key[:3] for key in means},
        key=lambda name: (name[0] == "kd", name[1] == "W2A4", name[2] == "dsg"),
    )
    for name in names:
        cells = [means.get((*name, rate), DASH) for rate in rates]
        best = max((cell for cell in cells if cell != DASH), key=float)
        marked = [f"**{cell}**" if cell == best and cells.count(best) == 1 else cell for cell in cells]
        lines.append((f"`{name[0]}`", *name[1:], *marked))
    return Grid(("student", "bits", "images", *(_power(rate) for rate in rates)), tuple(lines), 3)


def tuning_norms() -> Grid:
    """Agreement with batch norm frozen and trained, and the difference; a line per width and source."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for row in Results("tuning").rows():
        if "batch_norm" in row:
            found.setdefault((f"`{row['student']}`", row["bits"], row["source"]), {})[row["batch_norm"]] = (
                row["agreement"]
            )
    lines = tuple(
        (*name, number(both["frozen"]), number(both["train"]), number(both["train"] - both["frozen"]))
        for name, both in found.items()
        if len(both) == 2
    )
    return Grid(("student", "bits", "images", "frozen", "train", "gain"), lines, 3)


def tuning_views() -> Grid:
    """Mean agreement over fits by view; a column per view that was measured."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in Results("tuning").rows():
        if "views" in row:
            found.setdefault(row["source"], {}).setdefault(row["views"], []).append(row["agreement"])
    views = tuple(dict.fromkeys(view for cells in found.values() for view in cells))
    lines = tuple(
        (source, str(min(map(len, cells.values()))), *(_mean(cells.get(view)) for view in views))
        for source, cells in found.items()
    )
    return Grid(("images", "fits", *views), lines, 1)


def _mean(values: Sequence[float] | None) -> str:
    return f"{statistics.mean(values):.2f}" if values else DASH


def _power(rate: float) -> str:
    exponent = math.floor(math.log10(rate))
    return f"{rate / 10**exponent:.3g}e{exponent}"
