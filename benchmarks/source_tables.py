"""Tables of `search.py` and `moments.py`, for `tables.py`."""

from __future__ import annotations

import statistics
from typing import Any

from common import Results

from zsq.report.tables import Grid


def sources_table(name: str) -> Grid:
    """Agreement by source: the mean over sets, and each."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in Results("sources").rows():
        if row["experiment"] == name:
            options = ", ".join(f"{key} {value}" for key, value in row["options"].items())
            found.setdefault((f"{row['source']} {options}".strip(), f"{row['passes']}"), []).append(row)
    lines = []
    for (source, passes), rows in found.items():
        agreements = [row["agreement"] for row in sorted(rows, key=lambda row: row["set"])]
        each = ", ".join(f"{agreement:.2f}" for agreement in agreements)
        lines.append((source, passes, f"{statistics.mean(agreements):.2f}", each))
    lines.sort(key=lambda line: -float(line[2]))
    return Grid(("source", "passes", "agreement", "each set"), tuple(lines), 1)


def moments_table() -> Grid:
    """Errors of mean and standard deviation by where they come from."""
    lines = []
    for row in Results("moments").read()["rows"]:
        error = row["mean_error"]
        lines.append(
            (row["statistics"], "> 1000" if error > 1000 else f"{error:.2f}", f"{row['log_std_error']:.2f}")
        )
    return Grid(("statistics of", "mean", "standard deviation"), tuple(lines), 1)
