"""`zsq quantize`."""

from __future__ import annotations

from typing import Annotated

import typer

from zsq.cli.options import (
    ClassNames,
    Compile,
    Device,
    Effort,
    Evaluation,
    FirstLast,
    FitPhotos,
    Method,
    Offline,
    Passes,
    Precision,
    Seed,
    Teacher,
    Threads,
    Weights,
    Widths,
    asked,
    setting,
)
from zsq.config import IMAGES, OFFLINE, QUANTIZE, RUNTIME


def quantize(
    context: typer.Context,
    teacher: Teacher,
    bits: Annotated[
        list[str],
        typer.Option(help="Bits of weights and activations, as in W4A4. Can be given again."),
    ],
    images: Annotated[
        str | None,
        typer.Option(
            metavar="SRC",
            help="Images to calibrate or train with: the folder of a run, another folder, .zip or "
            ".npz. Without it, they are made first.",
        ),
    ] = QUANTIZE.images,
    student: Annotated[
        str | None,
        typer.Option(
            help="How to quantize; see `zsq list students`. A,B: B starts from the result of A. "
            "Without it, what is best at these bits."
        ),
    ] = QUANTIZE.student,
    method: Method = QUANTIZE.method,
    effort: Effort = QUANTIZE.effort,
    weights: Weights = QUANTIZE.weights,
    first_last: FirstLast = QUANTIZE.first_last,
    widths: Widths = None,
    seed: Seed = QUANTIZE.seed,
    eval: Evaluation = QUANTIZE.eval,
    count: Annotated[
        int | None, typer.Option(help="Use only this many images, or make so many.")
    ] = QUANTIZE.count,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Save the student here: a folder, or NAME.safetensors (NAME.json comes with it). "
            "Without it, outputs/TEACHER-BITS where images are made, else nowhere.",
        ),
    ] = None,
    onnx: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write the student as ONNX (W8A8 or W4A8 only).")
    ] = None,
    pt2: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Also write the student as a program of PyTorch, for converters (W8A8 or W4A8, weights "
            "without a zero point).",
        ),
    ] = None,
    passes: Passes = None,
    fit: FitPhotos = IMAGES.fit,
    class_names: ClassNames = IMAGES.class_names,
    set_: Annotated[list[str] | None, setting("the student")] = None,
    offline: Offline = OFFLINE,
    precision: Precision = RUNTIME.precision,
    compile: Compile = RUNTIME.compile,
    threads: Threads = RUNTIME.threads,
    device: Device = RUNTIME.device,
) -> None:
    """Fit a student on images, and say how well it does.

    Without --images, the images are made first.
    """
    from zsq import api

    values = asked(context)
    result = api.quantize(**values)
    if images is not None and not result.files:
        values["reporter"].say("the student is not kept: --out FOLDER would keep it")
    for each in (result, *result.others):
        for tensor in each.fitted.tensors:
            scales = "per tensor" if tensor.num_scales == 1 else f"{tensor.num_scales} scales"
            typer.echo(f"{tensor.name}: {tensor.kind}, {tensor.bits} bits, {scales}")
        typer.echo(each.cost.summary())
        for path in each.files:
            typer.echo(path)
        for line in each.lines():
            typer.echo(line)
