"""`zsq list` and `zsq inspect`: what there is, and what something is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from zsq.cli.options import ClassNames, FitPhotos, Offline, Weights, asked
from zsq.config import IMAGES, OFFLINE


def list_(
    what: Annotated[str, typer.Argument(help="methods, teachers, timm, students, passes or recipes.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    teacher: Annotated[
        str | None, typer.Option(help="Of methods: say which suit this teacher, those to try first in front.")
    ] = None,
    offline: Offline = OFFLINE,
) -> None:
    """Show what there is, with its facts."""
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
        str | None, typer.Argument(metavar="[PATH]", help="Folder of a run or of a saved student.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Describe this teacher instead of a folder.")] = None,
    weights: Weights = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="SRC", help="Labelled images to measure the teacher's accuracy with."),
    ] = None,
    fit: FitPhotos = IMAGES.fit,
    class_names: ClassNames = IMAGES.class_names,
    offline: Offline = OFFLINE,
) -> None:
    """Say what a shard folder holds and where it comes from, and write its contact sheet beside it; or what a
    saved student is and how it was made; or what a teacher is and which methods and students suit it."""
    from zsq import api
    from zsq.core.errors import OptionError

    if (folder is None) == (teacher is None):
        found = "neither PATH nor --teacher" if folder is None else f"{folder} and --teacher {teacher}"
        raise OptionError(found, "one of them")
    values = asked(context, "folder")
    if folder is None:
        lines = api.inspect_teacher(**values)
    else:
        for name in ("weights", "images", "fit", "class_names", "offline"):
            if values[name] not in (None, False):
                option = f"--{name.replace('_', '-')}"
                given = option if values[name] is True else f"{option} {values[name]}"
                raise OptionError(f"{given} with {folder}", "it with --teacher alone")
        lines = api.inspect(folder)
    for line in lines:
        typer.echo(line)
