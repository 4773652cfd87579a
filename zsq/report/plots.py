"""The report's figures, each an SVG element."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from zsq.measure.confidence import Interval
from zsq.measure.protocol import NOISE, REAL
from zsq.report.svg import GREY, INK, as_svg, empty_figure, legend_columns, looks
from zsq.report.tables import Entry, number, ordered_sources
from zsq.tasks.metrics import metric_range, symbol, unit
from zsq.tasks.verification import ROC_FARS

# Where noise needs an axis this many times longer than the rest, it is cut: the rest would not be readable.
CUT_RATIO = 4.0
# Least range of an axis in points, so that differences of hundredths do not fill a figure.
LEAST_POINTS = 1.0
MAX_NAMED_LAYERS = 30


@as_svg
def gap_figure(table: Sequence[Entry]) -> Figure:
    """Bars of the gap with intervals, one panel per student and bits."""
    bars = [entry for entry in table if entry.gap is not None]
    panels = panels_of(bars)
    figure = empty_figure(0.28 * len(bars) + 0.74 * len(panels) + 0.3)
    figure.set_layout_engine("constrained", h_pad=0.1)
    ratios = [len(panel) + 0.6 for panel in panels.values()]
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=ratios)[:, 0]
    look = looks(entry.main.source for entry in table)
    for ax, (title, panel) in zip(axes, panels.items(), strict=True):
        ax.set_title(title)
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.set_yticks(range(len(panel)), [entry.main.source for entry in panel])
        ax.set_ylim(len(panel) - 0.4, -0.6)
        low, high = _axis([(entry.main.source, *_reach(entry)) for entry in panel])
        least, most = metric_range(panel[0].main.metric)
        for height, entry in enumerate(panel):
            _gap_bar(ax, height, entry, look[entry.main.source][0], high)
        ax.set_xlim(low - 0.05 * (high - low), high + 0.3 * (high - low))
        _end_axis(ax, "x", (least - most, most - least))
    main = bars[0].main.metric
    figure.supxlabel(_label(f"{main}: real images minus source", unit(main)), fontsize="medium")
    return figure


def _label(what: str, measured_in: str) -> str:
    """Of an axis, with its unit if there is one."""
    return f"{what}, {measured_in}" if measured_in else what


def _reach(entry: Entry) -> Interval:
    """Range that a bar and its interval cover, zero included."""
    assert entry.gap is not None
    low, high = entry.gap.ci95 or (entry.gap.gap, entry.gap.gap)
    return min(low, 0.0), max(high, 0.0)


def _axis(reaches: Sequence[tuple[str, float, float]]) -> Interval:
    """Range of an axis for all (source, low, high); noise is left out where it would fill the axis alone."""

    def bounds(chosen: Sequence[tuple[str, float, float]]) -> Interval:
        low, high = min(reach[1] for reach in chosen), max(reach[2] for reach in chosen)
        return low, max(high, low + LEAST_POINTS)

    every = bounds(reaches)
    own = [reach for reach in reaches if reach[0] != NOISE]
    if not own:
        return every
    kept = bounds(own)
    return kept if every[1] - every[0] > CUT_RATIO * (kept[1] - kept[0]) else every


def _end_axis(ax: Axes, which: Literal["x", "y"], limits: Interval) -> None:
    """Line and ticks of an axis no further than values can be; what is beyond is room for marks and text."""
    axis, (low, high) = (ax.xaxis, ax.get_xlim()) if which == "x" else (ax.yaxis, ax.get_ylim())
    low, high = max(low, limits[0]), min(high, limits[1])
    ax.spines["bottom" if which == "x" else "left"].set_bounds(low, high)
    axis.set_ticks([tick for tick in axis.get_majorticklocs() if low <= tick <= high])


def _gap_bar(ax: Axes, height: int, entry: Entry, colour: str, high: float) -> None:
    assert entry.gap is not None
    value, bounds = entry.gap.gap, entry.gap.ci95
    is_cut = value > high
    ax.barh(height, min(value, high), height=0.62, color=colour, alpha=0.85, linewidth=0)
    if bounds is not None and not is_cut:
        ax.plot(bounds, (height, height), color=INK, linewidth=1.1, marker="|", markersize=7)
    end = high if is_cut else _reach(entry)[1]
    text = f"\u25b8 {number(value)} (bar cut)" if is_cut else number(value)
    ax.annotate(text, (end, height), (5, 0), textcoords="offset points", va="center")


@as_svg
def cost_figure(
    table: Sequence[Entry],
    cost: Mapping[str, float],
    teacher_accuracy: float | None,
    curves: Mapping[str, str] | None = None,
) -> Figure:
    """Accuracy against teacher passes per image, one panel per student and bits; real images are a line, and
    so are the sources of one of `curves`: source -> its curve's name."""
    panels = panels_of([entry for entry in table if entry.main.source in cost or entry.main.source == REAL])
    columns = min(2, len(panels))
    num_rows = math.ceil(len(panels) / columns)
    figure = empty_figure(2.5 * num_rows + 0.5)
    axes = figure.subplots(num_rows, columns, sharex=True, squeeze=False).ravel()
    name = {entry.main.source: (curves or {}).get(entry.main.source, entry.main.source) for entry in table}
    look = looks(name.values())
    for index, (title, panel) in enumerate(panels.items()):
        ax = axes[index]
        ax.set_title(title)
        _cost_panel(ax, panel, cost, name, look, teacher_accuracy)
        ax.tick_params(labelbottom=index >= len(panels) - columns)
        if index % columns == 0:
            ax.set_ylabel(_label(panel[0].main.metric, symbol(panel[0].main.metric)))
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    figure.supxlabel("teacher passes per image", fontsize="medium")
    named: dict[str, Artist] = {}
    for ax in axes:
        handles, names = ax.get_legend_handles_labels()
        named |= dict(zip(names, handles, strict=True))
    figure.legend(list(named.values()), list(named), loc="outside upper left", ncols=legend_columns(named, 6))
    return figure


def _cost_panel(
    ax: Axes,
    panel: Sequence[Entry],
    cost: Mapping[str, float],
    name: Mapping[str, str],
    look: Mapping[str, tuple[str, str]],
    teacher_accuracy: float | None,
) -> None:
    """One student's panel: lines for teacher and real images, a point per source, lines through curves."""
    reaches = [(e.main.source, *(e.main.ci95 or (e.main.mean, e.main.mean))) for e in panel]
    if teacher_accuracy is not None:
        ax.axhline(teacher_accuracy, color=GREY, linewidth=1.0, linestyle=":", label="teacher")
        reaches.append((REAL, teacher_accuracy, teacher_accuracy))
    low, high = _axis(reaches)
    most = metric_range(panel[0].main.metric)[1]
    low, high = min(low, most - (high - low)), min(high, most)
    span = high - low
    place = _places(ax, cost)
    points: dict[str, list[tuple[float, float]]] = {}
    for entry in panel:
        row, label = entry.main, name[entry.main.source]
        colour, marker = look[label]
        low_95, high_95 = row.ci95 or (row.mean, row.mean)
        if row.source == REAL:
            ax.axhline(row.mean, color=colour, linewidth=1.2, linestyle="--", label=REAL)
            ax.axhspan(low_95, high_95, color=GREY, alpha=0.2, linewidth=0)
            continue
        x = place(cost[row.source], label == row.source)
        if row.mean < low:
            ax.plot(x, low - 0.12 * span, color=colour, marker="v", linestyle="none", label=label)
            text = f"{row.source} {number(row.mean)}, below"
            ax.annotate(text, (x, low - 0.12 * span), (8, 0), textcoords="offset points", va="center")
        else:
            errors = [[row.mean - low_95], [high_95 - row.mean]]
            points.setdefault(label, []).append((x, row.mean))
            ax.errorbar(x, row.mean, errors, color=colour, fmt=marker, capsize=3, label=label)
    for label, curve in points.items():
        ax.plot(*zip(*sorted(curve), strict=True), color=look[label][0], linewidth=1.0)
    ax.set_ylim(low - 0.22 * span, high + 0.12 * span)
    _end_axis(ax, "y", metric_range(panel[0].main.metric))


def _places(ax: Axes, cost: Mapping[str, float]) -> Callable[[float, bool], float]:
    """Scale the axis of costs; a function from a source's cost, and whether it stands alone, to its place.

    Sources of equal cost stand side by side: their points would hide each other.
    """
    positive = [value for value in cost.values() if value > 0]
    is_wide = bool(positive) and max(positive) > 20 * min(positive)
    if is_wide:
        ax.set_xscale("symlog", linthresh=min(positive))
        ax.xaxis.set_major_formatter("{x:g}")
    drawn: Counter[float] = Counter()

    def place(value: float, alone: bool) -> float:
        if not alone:
            return value
        drawn[value] += 1
        return value + (drawn[value] - 1) * 0.03 * (value if is_wide else max([1.0, *positive]))

    return place


@as_svg
def roc_figure(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """True against false accept rate on a logarithmic axis, one panel per student and bits."""
    sources = ordered_sources(source for tars in curves.values() for source in tars)
    look = looks(sources)
    columns = min(3, len(curves))
    num_rows = math.ceil(len(curves) / columns)
    figure = empty_figure(2.6 * num_rows + 0.5)
    axes = figure.subplots(num_rows, columns, sharex=True, squeeze=False).ravel()
    for ax, (title, tars) in zip(axes, curves.items(), strict=False):
        ax.set_title(title.replace(" ", "\n"), fontsize="small")
        ax.set_xscale("log")
        for source in sources:
            style = "--" if source == REAL else "-"
            ax.plot(ROC_FARS, tars.get(source, [math.nan] * len(ROC_FARS)), style, color=look[source][0])
        ax.grid(color=GREY, alpha=0.25, linewidth=0.6)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        _end_axis(ax, "y", (0.0, 100.0))
    for ax in axes[len(curves) :]:
        ax.set_visible(False)
    figure.supxlabel("false accept rate", fontsize="medium")
    figure.supylabel("true accept rate, %", fontsize="medium")
    figure.legend(axes[0].get_lines(), sources, loc="outside upper left", ncols=legend_columns(sources, 6))
    return figure


@as_svg
def distance_figure(layers: Sequence[str], distances: Mapping[str, Sequence[float]]) -> Figure:
    """BN distance per layer, one line per source, on a logarithmic axis."""
    sources = ordered_sources(distances)
    look = looks(sources)
    figure = empty_figure(3.8 if len(layers) <= MAX_NAMED_LAYERS else 3.2)
    ax = figure.subplots()
    for source in sources:
        colour, marker = look[source]
        values = [value if value > 0 else math.nan for value in distances[source]]
        style = "--" if source == REAL else "-"
        ax.plot(values, style, color=colour, marker=marker, markersize=4, linewidth=1.3, label=source)
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 30 * low else (1.0,)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel("BN distance")
    if len(layers) <= MAX_NAMED_LAYERS:
        ax.set_xticks(range(len(layers)), layers, rotation=90, fontsize=7.5)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("BN layer, in the order of the network")
    ax.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    figure.legend(loc="outside upper left", ncols=legend_columns(sources, 6))
    return figure


def panels_of(table: Sequence[Entry]) -> dict[str, list[Entry]]:
    """'student bits' -> its entries in the table's order."""
    panels: dict[str, list[Entry]] = {}
    for entry in table:
        panels.setdefault(f"{entry.main.student} {entry.main.bits}", []).append(entry)
    return panels
