"""What a folder holds, and what a teacher is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zsq.api.given import RuntimeGiven, check_read, images_given, path_of, runtime_given, teacher_of
from zsq.config import (
    DEFAULT_COUNT,
    IMAGES,
    INSPECT,
    OFFLINE,
    Images,
    ImagesConfig,
    InspectConfig,
    validated,
)
from zsq.core.errors import ImagesError, MismatchError
from zsq.core.modes import usual_modes
from zsq.core.progress import Reporter, reporter_or_silent
from zsq.core.records import valid
from zsq.core.runtime import Runtime
from zsq.core.wording import quantity
from zsq.images.imageset import said
from zsq.images.sources import check_shape, images_for
from zsq.runfolder import file_out
from zsq.teacher import load_teacher

if TYPE_CHECKING:
    from zsq.measure.layernoise import StudentNoise


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
    from zsq.shards.manifest import holds_shards

    if is_student(folder):
        return student_lines(folder)
    if not holds_shards(folder):
        raise ImagesError(
            f"{folder} {_what_is_not(Path(folder))}", "a run folder, or a folder with a saved student"
        )
    return shard_lines(folder)


def _what_is_not(path: Path) -> str:
    if path.is_dir():
        return "holds no shards and no student"
    return "is a file" if path.exists() else "does not exist"


@usual_modes()
def inspect_teacher(
    teacher: str | Path,
    *,
    weights: str | Path | None = None,
    images: str | Path | None = None,
    count: int = DEFAULT_COUNT,
    fit: str | None = IMAGES.fit,
    class_names: str | Path | None = IMAGES.class_names,
    offline: bool = OFFLINE,
    runtime: RuntimeGiven = None,
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
    from zsq.catalogue import FITTED_AT, suited_lines, suited_methods, suited_students, timed_pass
    from zsq.measure.teacherfacts import teacher_facts

    check_read(images_given(fit, class_names), "--images", images)
    count, told = valid(Images, count, "count"), reporter_or_silent(reporter)
    config = runtime_given(runtime)
    resolved = Runtime.resolve(**config.model_dump())
    loaded = load_teacher(teacher, path_of(weights), offline=offline).to(resolved.device)
    asked = validated(ImagesConfig, images_given(fit, class_names), "inspect")
    labelled = None if images is None else images_for(loaded, images, asked, labelled=True)
    for line in said(*([labelled] if labelled else [])):
        told.say(line)
    facts = teacher_facts(loaded, resolved, labelled)
    seconds = timed_pass(loaded)
    number = quantity(count, "image")
    methods = suited_lines(
        f"methods that suit it, and about how long each takes here to make {number}:",
        suited_methods(loaded, count, config, seconds),
    )
    students = suited_lines(
        f"students that suit it, and about how long each takes here to be fitted on {number} at {FITTED_AT}:",
        suited_students(loaded, count, config, seconds),
    )
    return [*facts.lines(), *methods, *students]


@usual_modes()
def inspect_student(
    folder: str | Path,
    images: str | Path,
    *,
    teacher: str | Path | None = None,
    weights: str | Path | None = None,
    count: int = INSPECT.count,
    layers: int | None = INSPECT.layers,
    html: str | Path | None = None,
    fit: str | None = IMAGES.fit,
    class_names: str | Path | None = IMAGES.class_names,
    offline: bool = OFFLINE,
    runtime: RuntimeGiven = None,
    reporter: Reporter | None = None,
) -> StudentNoise:
    """Which layer of a saved student hurts: signal-to-noise ratios of every quantized layer, worst first.

    Args:
        images: unlabelled, of any source; the first `count` are used.
        teacher, weights: the network that the student was fitted to; without, the one that it names.
        layers: measure only so many layers at the network's output.
        html: write a page with a figure there.
        fit, class_names: as in `quantize`.

    Raises:
        MismatchError: another teacher, or a student whose layers do not stand for the teacher's.
        ZsqError: one class per cause, see `zsq.core.errors`.

    Example:
        >>> train = "embedded:digits:train"
        >>> done = zsq.quantize("embedded:digits", train, "ptq", "W4A4", count=32, out="student")
        >>> noise = zsq.inspect_student("student", train, count=16)
        >>> len(noise.layers), noise.layers[0].both < noise.layers[-1].both
        (10, True)
    """
    from zsq.measure.layernoise import layer_noise
    from zsq.report.layers import write_layers_page
    from zsq.saved.saving import read_student

    told = reporter_or_silent(reporter)
    page = None if html is None else file_out(html, "--html")
    given = images_given(fit, class_names) | {"count": count, "layers": layers}
    asked = validated(InspectConfig, given, "inspect")
    record, fitted = read_student(folder)
    resolved = Runtime.resolve(**runtime_given(runtime).model_dump())
    name = teacher_of(teacher or record.teacher.name)
    loaded = load_teacher(name, path_of(weights), offline=offline).to(resolved.device)
    if loaded.weights_sha256 != record.teacher.weights_sha256:
        found = f"teacher {name} with weights {loaded.weights_sha256[:16]}"
        wanted = f"{record.teacher.weights_sha256[:16]}, which the student was fitted to"
        raise MismatchError(found, wanted, "--weights FILE")
    check_shape(str(folder), fitted.spec.shape, loaded.spec, "takes")
    shown = images_for(loaded, images, asked, limit=asked.count)
    for line in said(shown):
        told.say(line)
    noise = layer_noise(fitted, loaded, shown.pixels, resolved, layers=asked.layers, reporter=told)
    if page is not None:
        write_layers_page(noise, page)
    return noise
