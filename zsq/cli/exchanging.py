"""`zsq export` and `zsq import`: files of other programs."""

from __future__ import annotations

from typing import Annotated

import typer

from zsq.cli.options import RunFolder, parse_numbers
from zsq.config import EXPORT, IMPORT


def export(
    folder: RunFolder,
    to: Annotated[str, typer.Option(help="Format: imagefolder, npy, npz, raw or webdataset.")],
    out: Annotated[str, typer.Option(metavar="PATH", help="New folder for the files and EXPORT.json.")],
    layout: Annotated[
        str | None, typer.Option(help="nchw or nhwc. Without it, nhwc for npz and nchw for the others.")
    ] = EXPORT.layout,
    range: Annotated[
        str, typer.Option(help="Values: uint8 (0..255), unit (0..1), or norm (as the network takes them).")
    ] = EXPORT.range,
) -> None:
    """Write the images of a run as files for other tools."""
    from zsq.exports.exporting import export as write

    record = write(folder, to, out, layout=layout, range=range)
    typer.echo(f"{record.num_images} images, {'; '.join(record.applied)}")
    for line in record.use:
        typer.echo(f"    {line}")
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
    typer.echo(f"{done.num_images} images, {done.num_labelled} with a label: {out}")
