"""`zsq list` and `zsq inspect`: what there is, and what something is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from zsq.cli.options import ClassNames, FitPhotos, Offline, Weights, asked, refuse_typed
from zsq.config import IMAGES, INSPECT, OFFLINE


def list_(
    what: Annotated[str, typer.Argument(help="methods, teachers, timm, students, passes or recipes.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    teacher: Annotated[
        str | None, typer.Option(help="Of methods: say which suit this teacher, the recommended first.")
    ] = None,
    offline: Offline = OFFLINE,
) -> None:
    """List methods, students, teachers, passes or recipes."""
    from zsq.catalogue import catalogue, methods_for
    from zsq.core.errors import OptionError

    for given, option in ((teacher is not None, "--teacher"), (offline, "--offline")):
        if given and (what != "methods" or teacher is None):
            raise OptionError(f"{option} with {what}", "zsq list methods --teacher T")
    if teacher is None:
        entries = catalogue(what)
    else:
        from zsq.teacher import load_teacher

        entries = methods_for(load_teacher(teacher, offline=offline))
    if as_json:
        typer.echo(json.dumps(entries, indent=1))
        return
    for entry in entries:
        typer.echo(entry["name"])
        for key, value in entry.items():
            for line in value if isinstance(value, list) else [value]:
                if key != "name" and line not in ("", None, False):
                    typer.echo(f"    {key.replace('_', ' ')}: {line}")


def inspect(
    context: typer.Context,
    folder: Annotated[
        str | None, typer.Argument(metavar="PATH", help="Folder of a run or of a saved student.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Describe this teacher; or with a student, the one that it was fitted to."),
    ] = None,
    weights: Weights = None,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="SRC",
            help="With a student: images to find out which layers lose the most. With --teacher: labelled "
            "images to measure its accuracy.",
        ),
    ] = None,
    count: Annotated[int, typer.Option(help="With a student: use only so many images.")] = INSPECT.count,
    layers: Annotated[
        int | None,
        typer.Option(help="With a student: test only the N worst layers. Without it, all."),
    ] = INSPECT.layers,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="With a student: also write a page with a figure.")
    ] = None,
    fit: FitPhotos = IMAGES.fit,
    class_names: ClassNames = IMAGES.class_names,
    offline: Offline = OFFLINE,
) -> None:
    """Describe a run, a saved student, or a teacher.

    Of a run: what it holds and where it comes from; its contact sheet is written beside it. Of a student: how
    it was made, and with --images, which of its layers lose the most. Of a teacher: which methods and
    students suit it.
    """
    from zsq import api
    from zsq.core.errors import OptionError

    of_layers = ("count", "layers", "html")
    if folder is not None and images is not None and _is_student(folder):
        from zsq.report.layers import layer_lines

        lines = layer_lines(api.inspect_student(folder, **asked(context, "folder")))
        lines += [] if html is None else [html]
    elif (folder is None) == (teacher is None):
        found = "neither PATH nor --teacher" if folder is None else f"{folder} and --teacher {teacher}"
        raise OptionError(found, "one of them, or a student with --images")
    elif folder is None:
        refuse_typed(context, of_layers, f"with --teacher {teacher}", "it with a student and --images")
        lines = api.inspect_teacher(**asked(context, "folder", *of_layers))
    else:
        wanted = "it with --teacher, or with a student and --images"
        teachers = ("weights", "images", "fit", "class_names", "offline")
        if _is_student(folder) or _is_run(folder):
            refuse_typed(context, (*teachers, *of_layers), f"with {folder}", wanted)
        lines = api.inspect(folder)
    for line in lines:
        typer.echo(line)


def _is_student(path: str) -> bool:
    from zsq.saved.summary import is_student

    return is_student(path)


def _is_run(path: str) -> bool:
    from zsq.shards.manifest import holds_shards

    return holds_shards(path)
