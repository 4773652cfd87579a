"""Show a committed table: `python benchmarks/show.py NAME` prints it as markdown and draws docs/NAME.svg."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from zsq.gap import Gap, Row, Run
from zsq.report.plots import gap_figure
from zsq.report.tables import Grid, entries, gap_grid, markdown_table

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"


def main(name: Annotated[str, typer.Argument(help="Name of a file in benchmarks/results.")]) -> None:
    """Print and draw one table."""
    table = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    rows = [row_of(row) for row in table["rows"]]
    gaps = [Gap(**gap) for gap in table["gaps"]]
    grid = gap_grid(rows, gaps)
    # Number of images, sets and seconds end each line; they stand beside the table in the text.
    lines = tuple(line[:-3] for line in grid.lines)
    typer.echo(markdown_table(Grid(grid.header[:-3], lines, grid.num_left)))
    DOCS.mkdir(exist_ok=True)
    figure = gap_figure(entries(rows, gaps)).replace("<svg ", '<svg style="background:#fff;color:#000" ', 1)
    (DOCS / f"{name}.svg").write_text(figure, encoding="utf-8")


def row_of(values: dict[str, Any]) -> Row:
    """A row as `report.json` holds it."""
    return Row(**(values | {"runs": tuple(Run(**run) for run in values["runs"])}))


if __name__ == "__main__":
    typer.run(main)
