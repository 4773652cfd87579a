"""Is an export the run it was made from, and what does a set reveal."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zsq.api.given import RuntimeGiven, images_given, path_of, runtime_given, teacher_of
from zsq.config import (
    AUDIT_RUNTIME,
    IMAGES,
    OFFLINE,
    VERIFY,
    ImagesConfig,
    validated,
)
from zsq.core.errors import OptionError
from zsq.core.files import input_path
from zsq.core.modes import usual_modes
from zsq.core.progress import Reporter, reporter_or_silent
from zsq.core.records import valid
from zsq.core.runtime import Runtime
from zsq.images.imageset import photo_fits_of, said
from zsq.images.shared import check_known_membership, warn_of_seen
from zsq.images.sources import images_for
from zsq.runfolder import file_out
from zsq.teacher import load_teacher

if TYPE_CHECKING:
    from zsq.exports.exporting import Comparison
    from zsq.measure.audits import Audit


@usual_modes()
def verify_export(
    folder: str | Path,
    export: str | Path,
    *,
    teacher: str | Path | None = None,
    weights: str | Path | None = None,
    tolerance: float = VERIFY.tolerance,
    offline: bool = OFFLINE,
) -> Comparison:
    """Check that an export shows the pixels and labels of a run, whatever its layout and range.

    Args:
        teacher: compare its logits on the exported images with the stored ones too, within `tolerance`.

    Raises:
        ZsqError: the first difference, or one class per cause, see `zsq.core.errors`.

    Example:
        >>> folder = zsq.generate("embedded:digits", "noise", count=8, out="noise")
        >>> record = zsq.export(folder, "npy", "arrays")
        >>> zsq.verify_export(folder, "arrays").num_images
        8
    """
    from zsq.exports.exporting import verify_export as run

    tolerance = valid(float, tolerance, "tolerance")
    if not 0 <= tolerance < math.inf:
        raise OptionError(f"tolerance {tolerance:g}", "0 or more")
    given = {"weights": weights is not None, "tolerance": tolerance != VERIFY.tolerance, "offline": offline}
    unused = next((name for name, is_given in given.items() if is_given), None)
    if teacher is None and unused is not None:
        raise OptionError(f"{unused} without teacher", "a teacher, whose logits are compared")
    loaded = None if teacher is None else load_teacher(teacher, path_of(weights), offline=offline)
    return run(input_path(folder, "folder"), input_path(export, "export"), loaded, tolerance)


@usual_modes()
def audit(
    teacher: str | Path,
    shards: str | Path,
    train: str | Path,
    holdout: str | Path,
    out: str | Path | None = None,
    *,
    weights: str | Path | None = None,
    fit: str | None = IMAGES.fit,
    class_names: str | Path | None = IMAGES.class_names,
    offline: bool = OFFLINE,
    runtime: RuntimeGiven = None,
    reporter: Reporter | None = None,
) -> Audit:
    """What a shard set may reveal of the owner's images; figures and indices alone go to `out`, as JSON.
    As `audit.json` in the run's folder they stand in its dataset card too.

    Args:
        train: images the teacher was trained on. holdout: images of the same kind that it was not. Labels of
            an embedding teacher's images are identities, which intervals are then over.
        fit, class_names: as in `quantize`.

    Warns of images that two of the three sets have in common.

    Raises:
        MismatchError: training and held-out images that are the same ones.
        ZsqError: one class per cause, see `zsq.core.errors`.

    Example:
        >>> folder = zsq.generate("embedded:digits", "noise", count=8, out="noise")
        >>> train, test = "embedded:digits:train", "embedded:digits:test"
        >>> found = zsq.audit("embedded:digits", folder, train, test, "audit.json")
        >>> found.num_synthetic, found.named
        (8, [])
    """
    import json

    from zsq.core.files import atomic_write_text
    from zsq.datasetcard.audited import AUDIT_NAME
    from zsq.datasetcard.writing import write_run_card
    from zsq.measure.audits import audit_images, audit_json, identities_of
    from zsq.shards.manifest import read_manifest

    told = reporter_or_silent(reporter)
    teacher, target = teacher_of(teacher), None if out is None else file_out(out)
    resolved = Runtime.resolve(**runtime_given(runtime, AUDIT_RUNTIME).model_dump())
    loaded = load_teacher(teacher, path_of(weights), offline=offline).to(resolved.device)
    asked = validated(ImagesConfig, images_given(fit, class_names), "audit")
    own, seen, unseen = (images_for(loaded, source, asked) for source in (shards, train, holdout))
    for line in said(own, seen, unseen):
        told.say(line)
    check_known_membership(seen, unseen)
    warn_of_seen(own, unseen)
    identities = identities_of(loaded, seen, unseen)
    found = audit_images(loaded, own.pixels, seen.pixels, unseen.pixels, resolved, identities)
    if target is not None:
        sources: dict[str, Any] = {"teacher": teacher, "shards": str(shards), "train": str(train)}
        sources |= {"holdout": str(holdout), **photo_fits_of(shards=own, train=seen, holdout=unseen)}
        run = _run_of(shards)
        digest = {} if run is None else {"shards_sha256": read_manifest(run).shards_sha256}
        atomic_write_text(target, json.dumps({**sources, **digest, **audit_json(found)}, indent=1) + "\n")
        if run is not None and target.absolute() == (run / AUDIT_NAME).absolute():
            write_run_card(run, read_manifest(run))
    return found


def _run_of(shards: str | Path) -> Path | None:
    """The folder of the finished run that `shards` is, None where it is another source of images."""
    from zsq.shards.manifest import MANIFEST_NAME, find_shards, holds_shards

    run = find_shards(shards).run if holds_shards(shards) else None
    return run if run is not None and (run / MANIFEST_NAME).exists() else None
