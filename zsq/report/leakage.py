"""What sets reveal of images whose membership is known, beside how useful they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zsq.measure.audits import SPACES, Audit, Space
from zsq.report.plots import panels_of
from zsq.report.svg import GREY, as_svg, empty_figure, legend_columns, looks
from zsq.report.tables import Entry, Grid, interval, number, ordered_sources
from zsq.tasks.metrics import words

CHANCE = 50.0

TEXT = (
    "Of the first set of each source, against images that the teacher was trained on and others that it was "
    "not. Nearest: the median distance of an image to the nearest of either. Membership: how often a "
    "training image is nearer to the set than one of the others, in percent; 50 is chance, and an interval "
    "that contains 50 shows nothing. Suspects are images that may copy a training image. Found: planted "
    "copies that the audit found, exact and with noise. Real images are training images: handing them out "
    "reveals them all."
)
FIGURE_TEXT = (
    "Further up is more useful, further right reveals more: membership in the teacher's features, where 50 "
    "is chance (dotted), against what a student reaches. Thin lines are 95 % intervals. Sets with planted "
    "copies have no student; a dashed line shows them."
)


def leakage_text(audits: Mapping[str, Audit]) -> str:
    """What the columns are, and over what the intervals were drawn."""
    (over,) = {audit.resampled for audit in audits.values()}
    return f"{TEXT} Intervals are 95 %, of a bootstrap over {over}."


def leakage_grid(audits: Mapping[str, Audit]) -> Grid:
    """One line per source."""
    lines = tuple((source, *_cells(audits[source])) for source in ordered_sources(audits))
    spaces = [
        f"{space}: {what}" for space in SPACES for what in ("nearest in training, others", "membership")
    ]
    return Grid(("source", *spaces, "suspects", "found"), lines, 1)


def _cells(audit: Audit) -> list[str]:
    control = audit.control
    return [
        *(cell for space in SPACES for cell in _space_cells(audit.spaces[space])),
        f"{len(audit.named)} of {audit.num_synthetic}",
        f"{control.named_exact} and {control.named_altered} of {control.planted}",
    ]


def _space_cells(space: Space) -> tuple[str, str]:
    nearest = (space.synthetic_to_train[1], space.synthetic_to_holdout[1])
    return ", ".join(f"{distance:.3g}" for distance in nearest), membership(space)


def membership(space: Space) -> str:
    """In percent, with its interval."""
    return f"{number(space.membership_auc, 1)} {interval(space.membership_ci95, 1)}"


@as_svg
def leakage_figure(table: Sequence[Entry], audits: Mapping[str, Audit]) -> Figure:
    """The students' metric against membership in features, one panel per student and bits."""
    panels = panels_of([entry for entry in table if entry.main.source in audits])
    columns = min(2, len(panels))
    num_rows = math.ceil(len(panels) / columns)
    across = legend_columns(audits, 4)
    figure = empty_figure(3.0 * num_rows + 0.2 * math.ceil(len(audits) / across) + 0.5)
    axes = figure.subplots(num_rows, columns, sharex=True, squeeze=False).ravel()
    look = looks(audits)
    fitted = {entry.main.source for entry in table}
    for ax, (title, panel) in zip(axes, panels.items(), strict=False):
        ax.set_title(title)
        ax.axvline(CHANCE, color=GREY, linewidth=1.0, linestyle=":")
        for source in ordered_sources(audits):
            if source not in fitted:
                auc = audits[source].spaces["features"].membership_auc
                ax.axvline(auc, color=look[source][0], linewidth=1.0, linestyle="--", label=source)
        for entry in panel:
            _point(ax, entry, audits[entry.main.source].spaces["features"], look[entry.main.source])
        ax.set_ylabel(words(panel[0].main.metric))
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    figure.supxlabel("membership in features, % (50: chance)", fontsize="medium")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=across)
    return figure


def _point(ax: Axes, entry: Entry, space: Space, look: tuple[str, str]) -> None:
    row, (colour, marker) = entry.main, look
    low, high = space.membership_ci95
    least, most = row.ci95 or (row.mean, row.mean)
    across = [[max(0.0, space.membership_auc - low)], [max(0.0, high - space.membership_auc)]]
    up = [[max(0.0, row.mean - least)], [max(0.0, most - row.mean)]]
    ax.errorbar(
        space.membership_auc, row.mean, up, across, color=colour, fmt=marker, capsize=2, label=row.source
    )
