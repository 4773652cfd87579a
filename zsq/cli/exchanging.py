"""`zsq export` and `zsq import`: files of other programs."""

from __future__ import annotations

from typing import Annotated

import typer

from zsq.cli.options import RunFolder, parse_numbers
from zsq.config import EXPORT, IMPORT
from zsq.core.wording import one_of, quantity
from zsq.exports.formats import FORMATS
from zsq.exports.tools import TOOLS


def export(
    folder: RunFolder,
    out: Annotated[str, typer.Option(metavar="PATH", help="New folder for the files and EXPORT.json.")],
    to: Annotated[str | None, typer.Option(help=f"Format: {one_of(FORMATS)}.")] = EXPORT.to,
    for_: Annotated[
        str | None,
        typer.Option("--for", metavar="TOOL", help=f"Everything as this tool takes it: {one_of(TOOLS)}."),
    ] = EXPORT.tool,
    each: Annotated[
        str | None, typer.Option(help="With --to files, the file of an image: png, npy or raw.")
    ] = EXPORT.each,
    layout: Annotated[
        str | None, typer.Option(help="nchw or nhwc. Without it, nhwc for npz and nchw for the others.")
    ] = EXPORT.layout,
    range: Annotated[
        str | None,
        typer.Option(
            help="Values: uint8 (0..255, also without it), unit (0..1), or norm (as the network takes them)."
        ),
    ] = EXPORT.range,
    card: Annotated[
        bool,
        typer.Option("--card", help="Also a dataset card: README.md with a picture of the first images."),
    ] = EXPORT.card,
) -> None:
    """Write the images of a run as files for other tools."""
    from zsq.exports.exporting import export as write

    record = write(folder, to, out, tool=for_, each=each, layout=layout, range=range, card=card)
    typer.echo(f"{quantity(record.num_images, 'image')}, {'; '.join(record.applied)}")
    typer.echo(record.values_line)
    for line in record.use:
        typer.echo(f"    {line}")
    if record.tool is not None:
        tool = TOOLS[record.tool]
        run = "run here" if tool.run_here else "not run here"
        after = "after" if tool.read == "its page" else f"after {tool.read}, not its page"
        typer.echo(f"{record.tool}, version {tool.version}, {run}, {after} {tool.page}")
        typer.echo(f"    {tool.hand_over(record.image)}")
    typer.echo(out)


def import_(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Images that another program made.")],
    out: Annotated[str, typer.Option(metavar="PATH", help="New folder for the run.")],
    name: Annotated[str, typer.Option(help="What tables call these images.")] = IMPORT.name,
    mean: Annotated[
        str | None,
        typer.Option(help="For float values: the mean that was subtracted, one number or one,per,channel."),
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="For float values: the std they were divided by, likewise.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="nchw or nhwc. Without it, nhwc for npz and nchw for tensors.")
    ] = IMPORT.layout,
) -> None:
    """Make a shard set of images that come from elsewhere."""
    from zsq.imports.importing import import_images

    moments = {"mean": parse_numbers("--mean", mean), "std": parse_numbers("--std", std)}
    done = import_images(source, out, name=name, layout=layout, **moments)
    if done.clamped:
        typer.echo(f"{done.clamped:.2%} of the values were outside of 0..255 and are clamped", err=True)
    typer.echo(f"{quantity(done.num_images, 'image')}, {done.num_labelled} with a label: {out}")
