"""Tables of students on their way out: which layer hurts, and programs that run them."""

from __future__ import annotations

from typing import Any

from common import Results

from zsq.report.tables import Grid


def inspect_grid() -> Grid:
    """What the return of one layer to 8 bits gains."""
    lines: list[tuple[str, ...]] = []
    before: dict[str, Any] = {}
    for row in Results("inspect").rows():
        if row["layer"] is None:
            before = row
            continue
        lines.append(
            (
                row["network"],
                row["bits"],
                f"{row['place']} of {row['layers']}",
                f"`{row['layer']}`",
                f"{row['both']:.1f}",
                *(f"{row[metric] - before[metric]:+.2f}" for metric in ("sqnr", "agreement")),
            )
        )
    header = ("network", "bits", "place", "layer", "`both`", "dB gained", "agreement gained")
    return Grid(header, tuple(lines), 4)
