"""Show a committed table: `python benchmarks/show.py NAME` prints it as markdown and draws docs/NAME.svg, and
docs/NAME-cost.svg where sources differ in cost; of embedding teachers docs/NAME-roc.svg."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from common import DOCS, Results

from zsq.measure.gap import Gap, Row, Run
from zsq.report.build import sets_grid
from zsq.report.data import ReportData
from zsq.report.plots import cost_figure, gap_figure, roc_figure
from zsq.report.tables import Grid, entries, gap_grid, markdown_table


def main(name: Annotated[str, typer.Argument(help="Name of a file in benchmarks/results.")]) -> None:
    """Print and draw one table."""
    table = Results(name).read()
    rows = [row_of(row) for row in table["rows"]]
    gaps = [Gap(**gap) for gap in table["gaps"]]
    grid = gap_grid(rows, gaps)
    # Number of images, sets and seconds end each line; they stand beside the table in the text.
    lines = tuple(line[:-3] for line in grid.lines)
    typer.echo(markdown_table(Grid(grid.header[:-3], lines, grid.num_left)))
    data = report_data(table, rows, gaps)
    if data.layer_names:
        typer.echo()
        typer.echo(markdown_table(sets_grid(data)))
    shown = entries(rows, gaps)
    draw(name, gap_figure(shown))
    if data.roc:
        draw(f"{name}-roc", roc_figure(data.roc))
    elif len({cost for cost in data.cost.values() if cost}) > 1:
        figure = cost_figure(shown, data.cost, data.teacher["accuracy"], data.curves)
        draw(f"{name}-cost", figure)


def draw(name: str, figure: str) -> None:
    """Write docs/NAME.svg, on white."""
    DOCS.mkdir(exist_ok=True)
    figure = figure.replace("<svg ", '<svg style="background:#fff;color:#000" ', 1)
    (DOCS / f"{name}.svg").write_text(figure, encoding="utf-8")


def report_data(table: dict[str, Any], rows: list[Row], gaps: list[Gap]) -> ReportData:
    """What a committed table keeps of its report."""
    return ReportData(
        title=table["title"],
        teacher=table["teacher"],
        settings=table["settings"],
        rows=rows,
        gaps=gaps,
        layer_names=table["bn_distance"]["layers"],
        bn_distance=table["bn_distance"]["sources"],
        intra_class_distance=table.get("intra_class_distance", {}),
        cost=table["cost"],
        roc=table.get("roc", {}),
    )


def row_of(values: dict[str, Any]) -> Row:
    """A row as `report.json` holds it."""
    return Row(**(values | {"runs": tuple(Run(**run) for run in values["runs"])}))


if __name__ == "__main__":
    typer.run(main)
