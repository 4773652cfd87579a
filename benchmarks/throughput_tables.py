"""Tables of `throughput.py`, for `tables.py`."""

from __future__ import annotations

import statistics
from typing import Any

from common import Results
from throughput import NETWORKS

from zsq.report.tables import Grid, number


def _rates(row: dict[str, Any]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in row["rates"].items()}


def throughput() -> Grid:
    """Every contender on every network, and the time of a whole job."""
    lines = []
    for name, row in Results("throughput").read()["rows"].items():
        _, _, images, passes = NETWORKS[name]
        rate = _rates(row)
        whole = {
            key: images * passes / value + (row["cold_start_seconds"] if key == "zsq" else 0)
            for key, value in rate.items()
        }
        for key, values in row["rates"].items():
            label = f"{key} ({row['precision']})" if key in ("zsq", "convolutions") else key
            spread = f"{min(values):.4g} to {max(values):.4g}"
            job, faster = f"{whole[key] / 60:.1f} min", f"{whole[key] / whole['zsq']:.2f}x"
            lines.append(
                (name, label, f"{rate[key]:.4g}", spread, f"{rate['zsq'] / rate[key]:.2f}x", job, faster)
            )
    speeds = "image-iterations/s", "in each round", "step: zsq is faster"
    header = ("network", "contender", *speeds, "job, cold start", "job: zsq is faster")
    return Grid(header, tuple(lines), 2)


def cold_starts() -> Grid:
    """How long compiling takes."""
    lines = tuple(
        (name, f"{row['cold_start_seconds']:.0f} s", f"{row['warm_start_seconds']:.0f} s")
        for name, row in Results("throughput").read()["rows"].items()
    )
    return Grid(("network", "first step, first run", "from the cache"), lines, 1)


def speed() -> Grid:
    """Against other ways to make images, in short."""
    names = {"resnet20": "CIFAR ResNet-20", "resnet18": "ResNet-18", "mobilenet_v2": "MobileNetV2"}
    lines = []
    for name, row in Results("throughput").read()["rows"].items():
        batch, size, _, _ = NETWORKS[name]
        rate = _rates(row)
        cells = (number(rate[key], 0 if rate[key] >= 100 else 1) for key in ("zsq", "mct", "textbook"))
        lines.append((f"{names[name]}, {size} px, batch {batch}", *cells))
    return Grid(("network", "zsq", "model-compression-toolkit", "plain loop"), tuple(lines), 1)


def fit_speed() -> Grid:
    """Fits of two commits in turns."""
    lines = tuple(
        (
            row["network"],
            row["student"],
            *(number(statistics.median(row[when]), 1) for when in ("before", "after")),
            f"{row['ratio']:.2f}x",
        )
        for row in Results("fit-speed").read()["rows"]
    )
    return Grid(("network", "student", "s before", "s after", "faster"), lines, 2)
