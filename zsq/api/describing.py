"""What a folder holds, and what a teacher is."""

from __future__ import annotations

from pathlib import Path

from zsq.api.given import images_given, path_of
from zsq.config import (
    DEFAULT_COUNT,
    IMAGES,
    OFFLINE,
    RUNTIME,
    ImagesConfig,
    RuntimeConfig,
    validated,
)
from zsq.core.progress import Reporter
from zsq.core.runtime import Runtime
from zsq.images.sources import images_for, said
from zsq.teacher import load_teacher


def inspect(folder: str | Path) -> list[str]:
    """What a run's shards hold, as lines; writes `contact_sheet.png` into the run's folder. Of a saved
    student: what it is and how it was made.

    Raises:
        ImagesError, ShardError, StudentFileError: nothing of both, or damaged files.

    Example:
        >>> folder = zsq.generate("embedded:digits", "noise", count=8, out="noise")
        >>> print(zsq.inspect(folder)[0])
        8 images of 1x32x32, without labels
    """
    from zsq.report.shardfacts import shard_lines
    from zsq.saved.summary import is_student, student_lines

    if is_student(folder):
        return student_lines(folder)
    return shard_lines(folder)


def inspect_teacher(
    teacher: str,
    *,
    weights: str | Path | None = None,
    images: str | None = None,
    count: int = DEFAULT_COUNT,
    fit: str | None = IMAGES.fit,
    class_names: str | Path | None = IMAGES.class_names,
    offline: bool = OFFLINE,
    runtime: RuntimeConfig | None = None,
    reporter: Reporter | None = None,
) -> list[str]:
    """What a teacher is, as lines: its network and images, how sure it is of noise, and which methods and
    students suit it, with the time that each would take here.

    Args:
        images: labelled images; its accuracy on them shows whether mean, std and class order are right.
        count: number of images that the times are of.
        fit, class_names: as in `quantize`.

    Raises:
        ZsqError: one class per cause, see `zsq.core.errors`.

    Example:
        >>> print(zsq.inspect_teacher("embedded:digits")[0])
        teacher embedded:digits: 47,050 parameters, 9 batch norm layers, 10 classes
    """
    from zsq.catalogue import suited_lines, suited_methods, suited_students, timed_pass
    from zsq.measure.teacherfacts import teacher_facts

    config = runtime or RUNTIME
    resolved = Runtime.resolve(**config.model_dump())
    loaded = load_teacher(teacher, path_of(weights), offline=offline).to(resolved.device)
    asked = validated(ImagesConfig, images_given(fit, class_names), "inspect")
    labelled = None if images is None else images_for(loaded, images, asked, labelled=True)
    for line in said(*([labelled] if labelled else [])):
        (reporter or Reporter(quiet=True)).say(line)
    facts = teacher_facts(loaded, resolved, labelled)
    seconds = timed_pass(loaded)
    methods = suited_lines("methods", suited_methods(loaded, count, config, seconds), count)
    students = suited_lines("students", suited_students(loaded, count, config, seconds), count)
    return [*facts.lines(), *methods, *students]
