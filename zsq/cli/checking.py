"""`zsq verify` and `zsq audit`: is a set whole, and what does it reveal."""

from __future__ import annotations

from typing import Annotated

import typer

from zsq.cli.options import (
    ClassNames,
    Device,
    FitPhotos,
    Offline,
    RunFolder,
    Teacher,
    Threads,
    Weights,
    asked,
    refuse_typed,
)
from zsq.config import AUDIT_RUNTIME, IMAGES, OFFLINE, VERIFY
from zsq.core.wording import quantity


def verify(
    context: typer.Context,
    folder: RunFolder,
    against: Annotated[
        str | None, typer.Option(metavar="EXPORT", help="Also check that this export has the same images.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="With --against: also compare this teacher's logits with the stored ones."),
    ] = None,
    weights: Weights = None,
    tolerance: Annotated[
        float, typer.Option(help="With --teacher: largest difference of a logit that is allowed.")
    ] = VERIFY.tolerance,
    offline: Offline = OFFLINE,
) -> None:
    """Check the files of a run for damage.

    Every file is compared with its hash, every array with the schema.
    """
    from zsq.shards.verify import verify_run

    of_logits = ("weights", "tolerance", "offline")
    if against is None:
        refuse_typed(context, ("teacher", *of_logits), "without --against", "--against EXPORT")
    elif teacher is None:
        refuse_typed(context, of_logits, "without --teacher", "--teacher T, whose logits are compared")
    result = verify_run(folder)
    typer.echo(
        f"{folder}: {quantity(result.num_images, 'image')} in {quantity(result.num_shards, 'shard')}, "
        "all intact"
    )
    for line in result.seal.lines() if result.seal is not None else ():
        typer.echo(line)
    if against is not None:
        from zsq import api

        same = api.verify_export(
            folder, against, teacher=teacher, weights=weights, tolerance=tolerance, offline=offline
        )
        logits = "" if teacher is None else f", logits within {same.logit_difference:.2g}"
        typer.echo(f"{against} ({same.to}): the same {quantity(same.num_images, 'image')} and labels{logits}")


def audit(
    context: typer.Context,
    teacher: Teacher,
    shards: Annotated[str, typer.Option(metavar="DIR", help="Folder of the synthetic images.")],
    train: Annotated[str, typer.Option(metavar="SRC", help="Your images that the teacher was trained on.")],
    holdout: Annotated[
        str, typer.Option(metavar="SRC", help="Your images of the same kind that it was not trained on.")
    ],
    out: Annotated[str, typer.Option(metavar="PATH", help="JSON file for the results. No image is written.")],
    weights: Weights = None,
    fit: FitPhotos = IMAGES.fit,
    class_names: ClassNames = IMAGES.class_names,
    offline: Offline = OFFLINE,
    threads: Threads = AUDIT_RUNTIME.threads,
    device: Device = AUDIT_RUNTIME.device,
) -> None:
    """Compare synthetic images with those the teacher was trained on.

    Says whether they are nearer to these than to other images of the same kind.
    """
    from zsq import api
    from zsq.measure.audits import audit_lines

    found = api.audit(**asked(context))
    for line in audit_lines(found):
        typer.echo(line)
    typer.echo(out)
