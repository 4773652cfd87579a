"""Tables of what leaves: networks that tools take, which layer hurts, and programs that run students."""

from __future__ import annotations

from typing import Any

from common import Results

from zsq.report.tables import DASH, Grid


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


def taken_grid() -> Grid:
    """Which networks with random weights each tool takes."""
    rows = [row for row in Results("consumers").rows() if row["network"] in RANDOM_NETWORKS]
    found = {(row["tool"], row["network"]): "no" if "failed" in row else "yes" for row in rows}
    lines = tuple(
        (tool, *(found.get((tool, network), DASH) for network in RANDOM_NETWORKS))
        for tool in sorted({row["tool"] for row in rows})
    )
    return Grid(("tool", *RANDOM_NETWORKS), lines, 3)


RANDOM_NETWORKS = ("mobilenet_v2", "deit_tiny")


def runtimes_grid() -> Grid:
    """What programs make of a student; where one fails, nothing but dashes."""
    lines = tuple(
        (
            row["network"],
            row["program"],
            *(_cells(row) if "sqnr" in row else (DASH,) * (len(RUNTIMES_HEADER) - 2)),
        )
        for row in Results("runtimes").rows()
    )
    return Grid(RUNTIMES_HEADER, lines, 2)


RUNTIMES_HEADER = (
    *("network", "program", "largest difference", "dB", "dB in PyTorch"),
    *("file", "float file", "ms", "float ms", "float ms / ms"),
)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['largest_percent']:.2f} %",
        *(f"{row[name]:.1f}" for name in ("sqnr", "sqnr_student")),
        *(f"{row[name] / 1000:,.0f} kB" for name in ("bytes", "bytes_float")),
        *(f"{row[name]:.2f}" for name in ("milliseconds", "milliseconds_float", "times_faster")),
    )
