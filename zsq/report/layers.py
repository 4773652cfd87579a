"""Which layer of a student hurts: as a table, as lines, as a figure and as a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from zsq.core.files import atomic_write_text
from zsq.core.wording import quantity
from zsq.measure.layernoise import LayerNoise, StudentNoise, TensorRange
from zsq.report.page import page
from zsq.report.svg import COLOURS, GREY, as_svg, empty_figure
from zsq.report.tables import DASH, Grid, markdown_table, number, ordered_sources

MAX_DRAWN = 40
# Layers of each source that stand side by side in the report of a gap.
SIDE_BY_SIDE = 5

TEXT = (
    "Signal-to-noise ratios against the float network, in dB: lower is worse. Weights, activations, both: of "
    "the network's output with nothing quantized but these of one layer. Own: of the layer's output with it "
    "alone quantized. Up to it: of the same with everything before it quantized too. Worst first."
)
CLIPPED = "Clipped: the share of the values of the weight (W) and the inputs (A) outside of their grids."
TOGETHER = (
    "A student that trains moves all weights together. Alone, a layer of it says little; read the column "
    "'up to it'."
)
GAP_TEXT = (
    "The layers that bring in most noise, worst first: the signal-to-noise ratio of the output in dB with "
    "one layer alone quantized, of the first fit of each source, on evaluation images. A layer that stands "
    "in the column of a source and not in that of real images is where its images mislead."
)


def layer_lines(noise: StudentNoise) -> list[str]:
    """For the terminal, worst first."""
    whole = f"{noise.student}: {number(noise.sqnr, 1)} dB on {quantity(noise.num_images, 'image')}"
    return [whole, *markdown_table(layers_grid(noise.layers)).splitlines(), TEXT, CLIPPED]


def layers_grid(layers: Iterable[LayerNoise]) -> Grid:
    """One line per layer."""
    lines = tuple(
        (
            row.layer,
            *(number(value, 1) for value in (row.both, row.weights, row.activations, row.own, row.up_to)),
            " ".join(_clipped(tensor) for tensor in row.tensors),
        )
        for row in layers
    )
    header = ("layer", "both", "weights", "activations", "own", "up to it", "clipped")
    return Grid(header, lines, 1)


def ranges_grid(layers: Iterable[LayerNoise]) -> Grid:
    """One line per quantized tensor."""
    tensors = {tensor.name: tensor for row in layers for tensor in row.tensors}
    lines = tuple(
        (
            t.name,
            t.kind,
            str(t.bits),
            *(f"{value:.4g}" for value in (t.low, t.high, t.grid_low, t.grid_high)),
            f"{100 * t.clipped:.2g} %",
        )
        for t in tensors.values()
    )
    header = ("tensor", "kind", "bits", "lowest", "highest", "grid from", "grid to", "clipped")
    return Grid(header, lines, 2)


def _clipped(tensor: TensorRange) -> str:
    return f"{'W' if tensor.kind == 'weight' else 'A'} {100 * tensor.clipped:.1f} %"


def worst_grid(noise: Mapping[str, StudentNoise]) -> Grid:
    """Source -> its noise: the worst layers of each source side by side."""
    sources = ordered_sources(noise)
    columns = [_worst(noise[source].layers) for source in sources]
    depth = max((len(column) for column in columns), default=0)
    lines = tuple(
        (str(index + 1), *(column[index] if index < len(column) else DASH for column in columns))
        for index in range(depth)
    )
    return Grid(("", *sources), lines, 1 + len(sources))


def _worst(layers: Sequence[LayerNoise]) -> list[str]:
    return [f"{row.layer} {number(row.both, 1)}" for row in layers[:SIDE_BY_SIDE] if row.both is not None]


@as_svg
def layers_figure(layers: Sequence[LayerNoise]) -> Figure:
    """A line per layer, worst on top: weights, activations, both, and the network up to it."""
    drawn = layers[:MAX_DRAWN]
    figure = empty_figure(1.0 + 0.2 * len(drawn))
    ax = figure.subplots()
    marks = (("weights", "o", 0), ("activations", "s", 1), ("both", "D", 2))
    heights = range(len(drawn))
    for part, marker, colour in marks:
        values = [getattr(row, part) for row in drawn]
        shown = [(value, height) for value, height in zip(values, heights, strict=True) if value is not None]
        if shown:
            x, y = zip(*shown, strict=True)
            ax.plot(x, y, marker, color=COLOURS[colour], markersize=5, label=part)
    ax.plot([row.up_to for row in drawn], heights, "x", color=GREY, markersize=5, label="up to it")
    ax.set_yticks(list(heights), [row.layer for row in drawn], fontsize=7.5)
    ax.set_ylim(len(drawn) - 0.5, -0.5)
    ax.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
    ax.set_xlabel("signal to noise, dB")
    figure.legend(loc="outside upper left", ncols=4)
    return figure


def layers_page(noise: StudentNoise) -> str:
    """The page, self-contained."""
    drawn = f"{min(len(noise.layers), MAX_DRAWN)} of {quantity(len(noise.layers), 'layer')}, worst on top."
    figure = {"title": "Layers", "text": drawn, "svg": Markup(layers_figure(noise.layers))}
    worst = noise.layers[0] if noise.layers else None
    verdict = f"{number(noise.sqnr, 1)} dB with everything quantized."
    if worst is not None and worst.both is not None:
        verdict += f" Worst alone: {worst.layer}, {number(worst.both, 1)} dB."
    return page(
        title=f"Layers of {noise.student}",
        verdict=verdict,
        facts=[("images", str(noise.num_images))],
        heading="Layers, worst first",
        grid=layers_grid(noise.layers),
        explanation=[TEXT, CLIPPED, TOGETHER],
        figures=[figure],
        details={"Ranges": ranges_grid(noise.layers)},
    )


def write_layers_page(noise: StudentNoise, path: Path) -> None:
    """Write `layers_page`.

    Raises:
        StorageError: the disk refused.
    """
    atomic_write_text(path, layers_page(noise))
