"""How figures look, and how they become part of the page.

Text and lines are drawn in a stand-in colour that becomes `currentColor`, so a figure follows the page from
light to dark.
"""

from __future__ import annotations

import functools
import io
import re
import zlib
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec

import matplotlib
from matplotlib.figure import Figure

from zsq.measure.protocol import NOISE, REAL
from zsq.report.tables import ordered_sources

INK = "#010203"
GREY = "#808080"
# Okabe and Ito's colours without black and yellow: told apart by colour-blind readers, and mid-tones that
# hold on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "D", "^", "v", "P")
WIDTH_INCHES = 7.0
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "zsq",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}

Arguments = ParamSpec("Arguments")


def as_svg(draw: Callable[Arguments, Figure]) -> Callable[Arguments, str]:
    """`draw`, giving an SVG element in the report's style in place of a Figure; no pyplot, no display."""

    @functools.wraps(draw)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> str:
        buffer = io.StringIO()
        with matplotlib.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return _inline(buffer.getvalue())

    return drawn


def empty_figure(height_inches: float) -> Figure:
    """An empty figure as wide as the page."""
    return Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")


def looks(sources: Iterable[str]) -> dict[str, tuple[str, str]]:
    """source -> (colour, marker), of up to 36 sources no two alike; noise is grey, real is ink."""
    own = [source for source in ordered_sources(sources) if source not in (REAL, NOISE)]
    number = len(COLOURS)
    cycle = {
        source: (COLOURS[i % number], MARKERS[(i + i // number) % len(MARKERS)])
        for i, source in enumerate(own)
    }
    return cycle | {REAL: (INK, "*"), NOISE: (GREY, "X")}


def legend_columns(names: Iterable[str], most: int) -> int:
    """How many columns of these names stand side by side."""
    return max(1, min(most, int(WIDTH_INCHES / (0.5 + 0.065 * max(map(len, names))))))


def _inline(document: str) -> str:
    """The <svg> element alone, scaling with the page, its ids unlike those of any other figure."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    prefix = f"f{zlib.crc32(svg.encode()):08x}-"
    svg = svg.replace(' id="', f' id="{prefix}')
    svg = svg.replace("url(#", f"url(#{prefix}").replace('href="#', f'href="#{prefix}')
    svg = re.sub(r'^<svg([^>]*?) (?:width|height)="[^"]*"([^>]*?) (?:width|height)="[^"]*"', r"<svg\1\2", svg)
    return svg.replace(INK, "currentColor")
