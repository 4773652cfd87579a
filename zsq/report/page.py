"""A self-contained page: style, figures and images inside, nothing fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from zsq.report.tables import Grid


def page(
    *,
    title: str,
    verdict: str,
    facts: Sequence[tuple[str, str]],
    heading: str,
    grid: Grid,
    explanation: Sequence[str],
    figures: Sequence[Mapping[str, Any]],
    details: Mapping[str, Grid],
    sheets: Mapping[str, str] | None = None,
    sheet_sizes: Mapping[str, int] | None = None,
    settings: str | None = None,
) -> str:
    """The HTML.

    Args:
        facts: name and value of what is worth a line.
        heading: of `grid`, the table that stands first.
        figures: title, text and svg (as markup) of each.
        details: tables that are folded away.
        sheets: source -> data URI of a picture of its images; `sheet_sizes`: how many images it shows.
    """
    environment = Environment(
        loader=PackageLoader("zsq", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        verdict=verdict,
        facts=facts,
        heading=heading,
        grid=grid,
        explanation=explanation,
        figures=figures,
        details=details,
        sheets=sheets or {},
        sheet_sizes=sheet_sizes or {},
        settings=settings,
    )
