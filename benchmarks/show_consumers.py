"""Print `benchmarks/results/consumers.json` as markdown: a line per tool and bits, a column per source."""

from __future__ import annotations

import typer
from common import Results

from zsq.report.tables import Grid, markdown_table

SOURCES = ("real", "deepinversion", "dsg", "noise")


def main() -> None:
    """Accuracy of ResNet-20, with the distance to real images in brackets."""
    rows = [row for row in Results("consumers").rows() if row["accuracy"]]
    found = {(row["tool"], row["bits"], row["source"]): row["accuracy"] for row in rows}
    lines = []
    shown = dict.fromkeys((row["tool"], row["bits"]) for row in rows)
    for tool, bits in sorted(shown, key=lambda key: (key[0], key[1] != "W8A8")):
        real = found[tool, bits, "real"]
        cells = (_cell(found.get((tool, bits, source)), real, source) for source in SOURCES)
        lines.append((tool, bits, *cells))
    typer.echo(markdown_table(Grid(("tool", "bits", *SOURCES), tuple(lines), 2)))


def _cell(accuracy: float | None, real: float, source: str) -> str:
    if accuracy is None:
        return ""
    return f"{accuracy:.2f}" + ("" if source == "real" else f" ({real - accuracy:+.2f})")


if __name__ == "__main__":
    typer.run(main)
