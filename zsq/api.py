"""The Python API; each function is what the command of the same name does.

What draws or computes reports is imported where it is used: `generate` starts in half the time without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zsq.config import (
    AUDIT_RUNTIME,
    DEFAULT_COUNT,
    GAP,
    GENERATE,
    IMAGES,
    OFFLINE,
    QUANTIZE,
    RUNTIME,
    VERIFY,
    GapConfig,
    GenerateConfig,
    ImagesConfig,
    QuantizeConfig,
    RuntimeConfig,
    load_recipe,
    validated,
)
from zsq.core.effort import Effort
from zsq.core.files import output_path
from zsq.core.progress import Reporter
from zsq.core.runtime import Runtime
from zsq.images.sources import fitted_of, images_for, said
from zsq.measure.quantize import Quantized, quantize_images
from zsq.runfolder import latest_folder, next_folder
from zsq.synthesis import synthesize
from zsq.teacher import load_teacher

if TYPE_CHECKING:
    from zsq.exports.exporting import Comparison
    from zsq.measure.audits import Audit
    from zsq.report.data import ReportData

OUTPUTS = Path("outputs")


def generate(
    teacher: str,
    method: str,
    *,
    weights: str | Path | None = None,
    count: int | None = GENERATE.count,
    batch: int | None = GENERATE.batch,
    shard_size: int = GENERATE.shard_size,
    seed: int = GENERATE.seed,
    out: str | Path | None = None,
    iterations: int | None = GENERATE.iterations,
    effort: Effort | None = GENERATE.effort,
    real: str | None = GENERATE.real,
    set: Mapping[str, Any] | None = None,
    resume: bool = False,
    offline: bool = OFFLINE,
    runtime: RuntimeConfig | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Make calibration images from a teacher; the run's folder, with `shards/` and `manifest.json`.

    Args:
        teacher: a name as in `zsq list teachers`, such as a torchvision model's or `timm:NAME`; `hf:FOLDER`;
            or `file:card.toml`.
        count: number of images, 1024 if None. With `resume` a larger one extends the set, and None is what
            the set has.
        batch: images optimised together, the method's own if None.
        iterations: steps; what is tied to them scales along.
        effort: iterations where `iterations` is None; `standard` if None and the network takes 64 px or more,
            else `published`.
        set: overrides of the method's options.
        out: the run's folder, by default the first free `outputs/TEACHER-METHOD`.
        offline: refuse a teacher whose own weights are not on this machine, rather than download them.

    Raises:
        ZsqError: one class per cause, see `zsq.core.errors`.

    Example:
        >>> folder = zsq.generate("embedded:digits", "dgh", count=8, iterations=5, out="digits-dgh")
        >>> item = zsq.ShardDataset(folder)[0]
        >>> item["pixels"].shape, item["label"]
        (torch.Size([1, 32, 32]), -1)
    """
    values = {
        "teacher": teacher,
        "weights": None if weights is None else str(weights),
        "method": method,
        "count": count,
        "batch": batch,
        "shard_size": shard_size,
        "seed": seed,
        "iterations": iterations,
        "effort": effort,
        "real": real,
        "set": dict(set or {}),
        "offline": offline,
        "runtime": runtime or RUNTIME,
    }
    config = validated(GenerateConfig, values, "generate")
    folder = _folder(out, f"{_plain_name(teacher)}-{method}", resume)
    return synthesize.generate(config, folder, resume=resume, reporter=reporter)


def quantize(
    teacher: str,
    images: str | Path,
    student: str,
    bits: str,
    *,
    weights: str | Path | None = None,
    first_last: int | None = QUANTIZE.first_last,
    seed: int = QUANTIZE.seed,
    eval: str | None = QUANTIZE.eval,
    count: int | None = QUANTIZE.count,
    out: str | Path | None = None,
    onnx: str | Path | None = None,
    passes: Sequence[str] = QUANTIZE.passes,
    fit: str | None = IMAGES.fit,
    class_names: str | Path | None = IMAGES.class_names,
    set: Mapping[str, Any] | None = None,
    offline: bool = OFFLINE,
    runtime: RuntimeConfig | None = None,
    reporter: Reporter | None = None,
) -> Quantized:
    """Fit one student on unlabelled images of any source; score it where `eval` names labelled images.

    Args:
        passes: analytic passes around the fit, in order, such as `["fold", "equalize", "correct-bias"]`.
        out: write the student there for `load_student`: NAME.safetensors, or a folder.
        onnx: write a W8A8 or W4A8 student there as an ONNX file; `eval` then gives its `onnx_accuracy` too.
        fit: how photos of another size are brought to the teacher's: `crop`, `stretch` or `refuse`; None: as
            its own preprocessing does.
        class_names: where class folders are named otherwise than the teacher's classes: a file with their
            names in order, one a line, or `by-order`.
        offline: as in `generate`.

    Raises:
        ZsqError: one class per cause, see `zsq.core.errors`.

    Example:
        >>> train, test = "embedded:digits:train", "embedded:digits:test"
        >>> result = zsq.quantize("embedded:digits", train, "ptq", "W8A8", count=64, eval=test)
        >>> result.metrics["accuracy"] > 98
        True
        >>> result.cost.summary()
        '2,310,624 multiply-adds, ... weight bytes (float 186,048)'
    """
    values = {
        "teacher": teacher,
        "images": str(images),
        "student": student,
        "bits": bits,
        "weights": None if weights is None else str(weights),
        "first_last": first_last,
        "seed": seed,
        "eval": eval,
        "count": count,
        "passes": tuple(passes),
        **_images(fit, class_names),
        "set": dict(set or {}),
        "offline": offline,
        "runtime": runtime or RUNTIME,
    }
    config = validated(QuantizeConfig, values, "quantize")
    return quantize_images(
        config,
        None if out is None else output_path(out),
        None if onnx is None else output_path(onnx, "--onnx"),
        reporter or Reporter(quiet=True),
    )


def measure_gap(
    teacher: str,
    shards: Sequence[str | Path],
    real: str,
    eval: str,
    students: Sequence[str],
    bits: Sequence[str],
    out: str | Path,
    *,
    weights: str | Path | None = None,
    seeds: int = GAP.seeds,
    count: int | None = GAP.count,
    first_last: int | None = GAP.first_last,
    passes: Sequence[str] = GAP.passes,
    fit: str | None = IMAGES.fit,
    class_names: str | Path | None = IMAGES.class_names,
    set: Mapping[str, Any] | None = None,
    show_real: bool = GAP.show_real,
    resume: bool = False,
    offline: bool = OFFLINE,
    runtime: RuntimeConfig | None = None,
    reporter: Reporter | None = None,
) -> ReportData:
    """Fit every student on real images and on every shard set, and report the gap in `out`.

    Shard sets of one source are replicates. `set` has keys STUDENT.OPTION; `passes` surround every student;
    `fit` and `class_names` are as in `quantize`.

    Raises:
        ZsqError: one class per cause, see `zsq.core.errors`.

    Example:
        >>> shards = zsq.generate("embedded:digits", "noise", count=64, out="noise")
        >>> train, test = "embedded:digits:train", "embedded:digits:test"
        >>> data = zsq.measure_gap(
        ...     "embedded:digits", [shards], real=train, eval=test, students=["ptq"], bits=["W8A8"], out="gap"
        ... )
        >>> sorted({row.source for row in data.rows})
        ['noise', 'real']
    """
    from zsq.workflow import run_gap

    values = {
        "teacher": teacher,
        "shards": tuple(str(folder) for folder in shards),
        "real": real,
        "eval": eval,
        "students": tuple(students),
        "bits": tuple(bits),
        "weights": None if weights is None else str(weights),
        "seeds": seeds,
        "count": count,
        "first_last": first_last,
        "passes": tuple(passes),
        **_images(fit, class_names),
        "set": dict(set or {}),
        "show_real": show_real,
        "offline": offline,
        "runtime": runtime or RUNTIME,
    }
    return run_gap(validated(GapConfig, values, "gap"), output_path(out), resume=resume, reporter=reporter)


def run(
    recipe: str,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    budget_hours: float | None = None,
    fit: str | None = IMAGES.fit,
    class_names: str | Path | None = IMAGES.class_names,
    offline: bool = OFFLINE,
    runtime: RuntimeConfig | None = None,
    reporter: Reporter | None = None,
) -> tuple[ReportData, Path]:
    """Run a recipe by its name or path; the report's data and the run's folder.

    `fit` and `class_names` are as in `quantize`, in place of the recipe's own.

    Raises:
        ZsqError: one class per cause, see `zsq.core.errors`.

    Example:
        >>> from pathlib import Path
        >>> written = Path("small.toml").write_text('''
        ... title = "Noise against real images"
        ... real = "embedded:digits:train"
        ... eval = "embedded:digits:test"
        ... teacher = { name = "embedded:digits" }
        ... generate = { count = 64 }
        ... sources = [{ method = "noise" }]
        ... students = [{ name = "ptq", bits = ["W4A4"] }]
        ... ''')
        >>> data, folder = zsq.run("small.toml", out="small")
        >>> (folder / "report.html").exists()
        True
    """
    from zsq.workflow import run_recipe

    asked = validated(ImagesConfig, _images(fit, class_names), "run")
    loaded = load_recipe(recipe).reading_images(asked)
    if offline:
        loaded = loaded.model_copy(update={"offline": True})
    if runtime is not None:
        given = runtime.model_dump(exclude_defaults=True)
        loaded = loaded.model_copy(update={"runtime": loaded.runtime.model_copy(update=given)})
    folder = _folder(out, _plain_name(recipe), resume)
    return run_recipe(loaded, folder, resume=resume, budget_hours=budget_hours, reporter=reporter), folder


def verify_export(
    folder: str | Path,
    export: str | Path,
    *,
    teacher: str | None = None,
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

    loaded = None if teacher is None else load_teacher(teacher, _path(weights), offline=offline)
    return run(Path(folder), Path(export), loaded, tolerance)


def audit(
    teacher: str,
    shards: str | Path,
    train: str,
    holdout: str,
    out: str | Path | None = None,
    *,
    weights: str | Path | None = None,
    fit: str | None = IMAGES.fit,
    class_names: str | Path | None = IMAGES.class_names,
    offline: bool = OFFLINE,
    runtime: RuntimeConfig | None = None,
    reporter: Reporter | None = None,
) -> Audit:
    """What a shard set may reveal of the owner's images; figures and indices alone go to `out`, as JSON.

    Args:
        train: images the teacher was trained on. holdout: images of the same kind that it was not. Labels of
            an embedding teacher's images are identities, which intervals are then over.
        fit, class_names: as in `quantize`.

    Raises:
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
    from zsq.measure.audits import audit_images, audit_json
    from zsq.tasks.embed import Embed

    target = None if out is None else output_path(out)
    resolved = Runtime.resolve(**(runtime or AUDIT_RUNTIME).model_dump())
    loaded = load_teacher(teacher, _path(weights), offline=offline).to(resolved.device)
    asked = validated(ImagesConfig, _images(fit, class_names), "audit")
    own, seen, unseen = (images_for(loaded, source, asked) for source in (shards, train, holdout))
    for line in said(own, seen, unseen):
        (reporter or Reporter(quiet=True)).say(line)
    labelled = isinstance(loaded.task, Embed) and all(bool((s.labels >= 0).all()) for s in (seen, unseen))
    identities = (seen.labels, unseen.labels) if labelled else None
    found = audit_images(loaded, own.pixels, seen.pixels, unseen.pixels, resolved, identities)
    if target is not None:
        sources: dict[str, Any] = {"teacher": teacher, "shards": str(shards), "train": train}
        sources |= {"holdout": holdout, **fitted_of(shards=own, train=seen, holdout=unseen)}
        atomic_write_text(target, json.dumps({**sources, **audit_json(found)}, indent=1) + "\n")
    return found


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
    loaded = load_teacher(teacher, _path(weights), offline=offline).to(resolved.device)
    asked = validated(ImagesConfig, _images(fit, class_names), "inspect")
    labelled = None if images is None else images_for(loaded, images, asked, labelled=True)
    for line in said(*([labelled] if labelled else [])):
        (reporter or Reporter(quiet=True)).say(line)
    facts = teacher_facts(loaded, resolved, labelled)
    seconds = timed_pass(loaded)
    methods = suited_lines("methods", suited_methods(loaded, count, config, seconds), count)
    students = suited_lines("students", suited_students(loaded, count, config, seconds), count)
    return [*facts.lines(), *methods, *students]


def _folder(out: str | Path | None, name: str, resume: bool) -> Path:
    if out is not None:
        return output_path(out)
    base = OUTPUTS / name
    return latest_folder(base) if resume else next_folder(base)


def _images(fit: str | None, class_names: str | Path | None) -> dict[str, Any]:
    """The fields of ImagesConfig."""
    return {"fit": fit, "class_names": None if class_names is None else str(class_names)}


def _plain_name(name: str) -> str:
    """A teacher or recipe as a folder is called after it: of a file its name without folders and ending."""
    path = Path(name.removeprefix("file:"))
    return (path.stem if path.suffix == ".toml" else path.name).replace(":", "-")


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
