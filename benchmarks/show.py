"""Show results that are kept: `python benchmarks/show.py NAME` prints the tables made of them as markdown.

Of a recipe it draws docs/NAME.svg, docs/NAME-cost.svg where sources differ in cost, docs/NAME-roc.svg of
embedding teachers, and docs/NAME-leakage.svg where sets were audited; of `throughput`, a bar per contender.
"""

from __future__ import annotations

import statistics
from typing import Annotated, Any

import typer
from common import DOCS, Results
from tables import TABLES, measured

from zsq.report.leakage import leakage_figure
from zsq.report.plots import cost_figure, gap_figure, roc_figure
from zsq.report.svg import INK, as_svg, empty_figure
from zsq.report.tables import entries, gap_grid, markdown_table


def main(name: Annotated[str, typer.Argument(help="Name of a file in benchmarks/results.")]) -> None:
    """Print and draw one file's tables.

    Raises:
        BadParameter: no such file, or nothing is made of it.
    """
    kept = Results(name).read()
    made = [table for key, table in TABLES.items() if key == name or key.startswith(f"{name}-")]
    if not kept or not (made or "gaps" in kept):
        raise typer.BadParameter(f"no table is made of {name}; expected one of {', '.join(TABLES)}")
    for table in made:
        typer.echo(markdown_table(table()) + "\n")
    if "gaps" in kept:
        if not made:
            found = measured(name)
            typer.echo(markdown_table(gap_grid(found.rows, found.gaps)))
        draw_recipe(name)
    elif name.startswith("throughput"):
        draw(name, rates_figure(kept["rows"]))


def draw_recipe(name: str) -> None:
    """The figures of one recipe."""
    found = measured(name)
    shown = entries(found.rows, found.gaps)
    draw(name, gap_figure(shown))
    if found.data.leakage:
        draw(f"{name}-leakage", leakage_figure(shown, found.data.leakage))
    if found.data.roc:
        draw(f"{name}-roc", roc_figure(found.data.roc))
    elif len({cost for cost in found.data.cost.values() if cost}) > 1:
        draw(
            f"{name}-cost",
            cost_figure(shown, found.data.cost, found.data.teacher["accuracy"], found.data.curves),
        )


def draw(name: str, figure: str) -> None:
    """Write docs/NAME.svg, on white."""
    DOCS.mkdir(exist_ok=True)
    figure = figure.replace("<svg ", '<svg style="background:#fff;color:#000" ', 1)
    (DOCS / f"{name}.svg").write_text(figure, encoding="utf-8")


@as_svg
def rates_figure(rows: dict[str, Any]) -> Any:
    """One panel per network with a bar per contender."""
    figure = empty_figure(1.75 * len(rows))
    for ax, row in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows.values(), strict=True):
        rate = {key: statistics.median(values) for key, values in row["rates"].items()}
        ax.set_title(f"{row['network']}, batch {row['batch']}, {row['precision']}")
        ax.barh(
            list(rate), list(rate.values()), color=["#0072b2" if "zsq" in key else "#808080" for key in rate]
        )
        for height, value in enumerate(rate.values()):
            ax.annotate(f"{value:.3g}", (value, height), (4, 0), textcoords="offset points", va="center")
        ax.invert_yaxis()
        ax.tick_params(colors=INK)
    figure.supxlabel("image-iterations per second", fontsize="medium")
    return figure


if __name__ == "__main__":
    typer.run(main)
