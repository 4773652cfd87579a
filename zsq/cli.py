"""The command line: joins the parts, holds no logic. Heavy imports happen inside the commands.

A command's parameters are those of the API function that it stands for; `_asked` hands them over. Paths are
text here: as Path, an empty one would be the current folder.
"""

from __future__ import annotations

import io
import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from zsq.config import (
    AUDIT_RUNTIME,
    EXPORT,
    GAP,
    GENERATE,
    IMAGES,
    IMPORT,
    OFFLINE,
    QUANTIZE,
    RUNTIME,
    VERIFY,
)
from zsq.core.errors import ZsqError
from zsq.core.interrupt import INTERRUPTED, one_line_at_interrupt
from zsq.core.memory import is_shortage
from zsq.core.version import __version__

app = typer.Typer(
    help="A trained network goes in, the calibration images that its quantizer needs come out.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# A wrong call. Newer typer has a click of its own inside, so that click's name for it is another class.
CallError: Any = typer.BadParameter.__base__

Teacher = Annotated[
    str,
    typer.Option(help="A name of `zsq list teachers`, hf:FOLDER, or file:CARD.toml for your own network."),
]
Weights = Annotated[
    str | None, typer.Option(metavar="FILE", help="The weights: a safetensors file or a state dict.")
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline", help="Download nothing: refuse a teacher whose weights are not on this machine."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set one option of the method or student. Can be given again."
    ),
]
Seed = Annotated[int, typer.Option(help="The seed of all random numbers.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that is in the folder.")]
Precision = Annotated[str, typer.Option(help="Number format: auto, fp32 or bf16.")]
Compile = Annotated[str, typer.Option(help="Compile with torch: auto, on or off. Pays in long runs.")]
Threads = Annotated[int | None, typer.Option(help="Number of CPU threads per process.")]
Device = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda or cuda:N.")]
FirstLast = Annotated[
    int | None, typer.Option(help="Bits of the first and last layer. Without it, the student decides.")
]


Passes = Annotated[
    str | None,
    typer.Option(metavar="P,P", help="Analytic changes before and after the fit; see `zsq list passes`."),
]
FitPhotos = Annotated[
    str | None,
    typer.Option(
        "--fit",
        help="Photos of another size: refuse, crop or stretch. Without it, as the teacher does.",
    ),
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|by-order",
        help="A file with one class name per line, to map class folders; or by-order.",
    ),
]


@app.command()
def generate(
    context: typer.Context,
    teacher: Teacher,
    method: Annotated[
        str, typer.Option(help="How to make the images. Try dgh first; see `zsq list methods`.")
    ],
    weights: Weights = GENERATE.weights,
    count: Annotated[
        int | None,
        typer.Option(help="Number of images. Without it, 1024, or as many as the resumed run has."),
    ] = GENERATE.count,
    batch: Annotated[
        int | None, typer.Option(help="How many images are made together. Without it, the method decides.")
    ] = GENERATE.batch,
    shard_size: Annotated[
        int, typer.Option(help="Largest number of images in one file.")
    ] = GENERATE.shard_size,
    seed: Seed = GENERATE.seed,
    out: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Folder for the run. Without it, outputs/TEACHER-METHOD."),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(help="Number of optimisation steps. Schedules are scaled to it. Overrides --effort."),
    ] = GENERATE.iterations,
    effort: Annotated[
        str | None,
        typer.Option(help="How long: quick, standard (the default at 64 px and more) or published."),
    ] = GENERATE.effort,
    real: Annotated[
        str | None, typer.Option(metavar="SRC", help="Real images. Only a method that reads some takes them.")
    ] = GENERATE.real,
    set_: Set = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run that is in the folder. A larger --count adds images."
        ),
    ] = False,
    offline: Offline = OFFLINE,
    precision: Precision = RUNTIME.precision,
    compile: Compile = RUNTIME.compile,
    threads: Threads = RUNTIME.threads,
    device: Device = RUNTIME.device,
) -> None:
    """Make calibration images from a teacher and write them as HDF5 shards."""
    from zsq import api

    typer.echo(api.generate(**_asked(context)))


@app.command()
def quantize(
    context: typer.Context,
    teacher: Teacher,
    images: Annotated[str, typer.Option(metavar="SRC", help="The images to calibrate or train with.")],
    student: Annotated[str, typer.Option(help="How to quantize; see `zsq list students`.")],
    bits: Annotated[str, typer.Option(help="Bits of weights and activations, as in W4A4.")],
    weights: Weights = QUANTIZE.weights,
    first_last: FirstLast = QUANTIZE.first_last,
    seed: Seed = QUANTIZE.seed,
    eval: Annotated[
        str | None, typer.Option(metavar="SRC", help="Labelled images to measure accuracy with.")
    ] = QUANTIZE.eval,
    count: Annotated[int | None, typer.Option(help="Use only this many of the images.")] = QUANTIZE.count,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Save the student here: a folder, or NAME.safetensors (NAME.json comes with it).",
        ),
    ] = None,
    onnx: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write the student as ONNX (W8A8 or W4A8 only).")
    ] = None,
    passes: Passes = None,
    fit: FitPhotos = IMAGES.fit,
    class_names: ClassNames = IMAGES.class_names,
    set_: Set = None,
    offline: Offline = OFFLINE,
    precision: Precision = RUNTIME.precision,
    compile: Compile = RUNTIME.compile,
    threads: Threads = RUNTIME.threads,
    device: Device = RUNTIME.device,
) -> None:
    """Fit one student on images of any source and say how well it does."""
    from zsq import api

    result = api.quantize(**_asked(context))
    fitted = result.fitted
    for tensor in fitted.tensors:
        scales = "per tensor" if tensor.num_scales == 1 else f"{tensor.num_scales} scales"
        typer.echo(f"{tensor.name}: {tensor.kind}, {tensor.bits} bits, {scales}")
    typer.echo(result.cost.summary())
    for path in result.files:
        typer.echo(path)
    for line in result.lines():
        typer.echo(line)


@app.command()
def gap(
    context: typer.Context,
    teacher: Teacher,
    shards: Annotated[
        list[str],
        typer.Option(
            metavar="DIR",
            help="Folder of a set. Give it again for more; sets of one method count as repetitions.",
        ),
    ],
    real: Annotated[str, typer.Option(metavar="SRC", help="Real training images to compare with.")],
    eval: Annotated[str, typer.Option(metavar="SRC", help="Labelled images to measure accuracy with.")],
    student: Annotated[list[str], typer.Option(help="A student. Can be given again.")],
    bits: Annotated[
        list[str], typer.Option(help="Bits of weights and activations, as in W4A4. Can be given again.")
    ],
    out: Annotated[str, typer.Option(metavar="PATH", help="Folder for the report.")],
    weights: Weights = GAP.weights,
    seeds: Annotated[
        int, typer.Option(help="How many times each student is fitted, with other random numbers.")
    ] = GAP.seeds,
    count: Annotated[
        int | None, typer.Option(help="Images per set. Without it, as many as the smallest set has.")
    ] = GAP.count,
    first_last: FirstLast = GAP.first_last,
    passes: Passes = None,
    fit: FitPhotos = IMAGES.fit,
    class_names: ClassNames = IMAGES.class_names,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="STUDENT.KEY=VALUE", help="Set one option of a student. Can be given again."
        ),
    ] = None,
    show_real: Annotated[
        bool, typer.Option("--show-real", help="Put real images on the contact sheet.")
    ] = GAP.show_real,
    resume: Resume = False,
    offline: Offline = OFFLINE,
    precision: Precision = RUNTIME.precision,
    compile: Compile = RUNTIME.compile,
    threads: Threads = RUNTIME.threads,
    device: Device = RUNTIME.device,
) -> None:
    """Measure what replacing real images by synthetic ones costs, and report it."""
    from zsq import api

    asked = _asked(context)
    data = api.measure_gap(students=asked.pop("student"), **asked)
    _show(data, out)


@app.command()
def run(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or a TOML file; see `zsq list recipes`.")],
    out: Annotated[
        str | None, typer.Option(metavar="PATH", help="Folder for the run. Without it, outputs/RECIPE.")
    ] = None,
    resume: Resume = False,
    budget_hours: Annotated[
        float | None, typer.Option(help="Start no new work after this many hours.")
    ] = None,
    fit: FitPhotos = IMAGES.fit,
    class_names: ClassNames = IMAGES.class_names,
    offline: Offline = OFFLINE,
    precision: Precision = RUNTIME.precision,
    compile: Compile = RUNTIME.compile,
    threads: Threads = RUNTIME.threads,
    device: Device = RUNTIME.device,
) -> None:
    """Run a recipe: generate, fit students, measure the gap, report."""
    from zsq import api

    data, folder = api.run(**_asked(context))
    _show(data, folder)


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="methods, teachers, timm, students, passes or recipes.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what there is, with its facts."""
    from zsq.catalogue import catalogue

    entries = catalogue(what)
    if as_json:
        typer.echo(json.dumps(entries, indent=1))
        return
    for entry in entries:
        typer.echo(entry["name"])
        for key, value in entry.items():
            for line in value if isinstance(value, list) else [value]:
                if key != "name" and line not in ("", None, False):
                    typer.echo(f"    {key.replace('_', ' ')}: {line}")


@app.command()
def inspect(
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
    from zsq.core.progress import Reporter

    if (folder is None) == (teacher is None):
        found = "neither PATH nor --teacher" if folder is None else f"{folder} and --teacher {teacher}"
        raise OptionError(found, "one of them")
    if folder is not None:
        for option, value in (
            ("--weights", weights),
            ("--images", images),
            ("--fit", fit),
            ("--class-names", class_names),
            ("--offline", offline or None),
        ):
            if value is not None:
                given = option if value is True else f"{option} {value}"
                raise OptionError(f"{given} with {folder}", "it with --teacher alone")
        lines = api.inspect(folder)
    else:
        assert teacher is not None
        lines = api.inspect_teacher(
            teacher,
            weights=weights,
            images=images,
            fit=fit,
            class_names=class_names,
            offline=offline,
            reporter=Reporter(),
        )
    for line in lines:
        typer.echo(line)


@app.command()
def verify(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of a run.")],
    against: Annotated[
        str | None, typer.Option(metavar="EXPORT", help="Also check that this export has the same images.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="With --against: also compare this teacher's logits with the stored ones."),
    ] = None,
    weights: Weights = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest difference of a logit that is allowed.")
    ] = VERIFY.tolerance,
    offline: Offline = OFFLINE,
) -> None:
    """Check every file against its hash and every array against the schema; and an export against both."""
    from zsq.core.errors import OptionError
    from zsq.shards.verify import verify_run

    if teacher is not None and against is None:
        raise OptionError("--teacher without --against", "--against EXPORT", "name the export to compare")
    result = verify_run(folder)
    typer.echo(f"{folder}: {result.num_images} images in {result.num_shards} shards, all intact")
    if against is not None:
        from zsq import api

        same = api.verify_export(
            folder, against, teacher=teacher, weights=weights, tolerance=tolerance, offline=offline
        )
        logits = "" if teacher is None else f", logits within {same.logit_difference:.2g}"
        typer.echo(f"{against} ({same.to}): the same {same.num_images} images and labels{logits}")


@app.command()
def export(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of a run.")],
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


@app.command(name="import")
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
    from zsq.config import parse_numbers
    from zsq.imports.importing import import_images

    moments = {"mean": parse_numbers("--mean", mean), "std": parse_numbers("--std", std)}
    done = import_images(source, out, name=name, layout=layout, **moments)
    if done.clamped:
        typer.echo(f"{done.clamped:.2%} of the values were outside of 0..255 and are clamped", err=True)
    typer.echo(f"{done.num_images} images, {done.num_labelled} with a label: {out}")


@app.command()
def audit(
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
    """Say whether a synthetic set is nearer to the images its teacher was trained on than to others."""
    from zsq import api
    from zsq.config import AuditRuntime
    from zsq.core.progress import Reporter
    from zsq.measure.audits import audit_lines

    runtime = _runtime(AuditRuntime, {"threads": threads, "device": device})
    found = api.audit(
        teacher,
        shards,
        train,
        holdout,
        out,
        weights=weights,
        fit=fit,
        class_names=class_names,
        offline=offline,
        runtime=runtime,
        reporter=Reporter(),
    )
    for line in audit_lines(found):
        typer.echo(line)
    typer.echo(out)


def _asked(context: typer.Context) -> dict[str, Any]:
    """The command's options as the API takes them: those of the runtime as one, pairs and lists parsed."""
    from zsq.config import RuntimeConfig, parse_set
    from zsq.core.progress import Reporter

    values = {name.rstrip("_"): value for name, value in context.params.items()}
    runtime = {name: values.pop(name) for name in RuntimeConfig.model_fields}
    if "set" in values:
        values["set"] = parse_set(values["set"] or [])
    if "passes" in values:
        values["passes"] = [name.strip() for name in (values["passes"] or "").split(",") if name.strip()]
    return {**values, "runtime": _runtime(RuntimeConfig, runtime), "reporter": Reporter()}


def _runtime(model: type[Any], values: dict[str, Any]) -> Any:
    from zsq.config import validated

    return validated(model, values, "runtime")


def _show(data: Any, folder: str | Path) -> None:
    from rich.console import Console

    from zsq.report.tables import gap_table

    typer.echo(data.verdict + "\n")
    Console().print(gap_table(data.rows, data.gaps))
    typer.echo(f"report: {Path(folder) / 'report.html'}")


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of all commands."""


def main() -> None:
    """Entry point: every foreseeable failure is one line on standard error and an exit code."""
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        # File names need not be text of any encoding.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with one_line_at_interrupt():
        try:
            status = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
        except ZsqError as error:
            _leave(str(error), error.exit_code)
        except CallError as error:
            _leave(f"{error.format_message().rstrip('.')}; see `{_help_of(error)}`", error.exit_code)
        except OSError as error:
            _leave(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
        except (MemoryError, RuntimeError) as error:
            if not is_shortage(error):
                raise
            _leave("out of memory; use fewer images or a smaller batch", 1)
        # What typer makes of a Ctrl-C.
        if status == INTERRUPTED:
            raise KeyboardInterrupt
    sys.exit(status)


def _help_of(error: Any) -> str:
    """`zsq generate --help` where the call of that command is wrong."""
    command = error.ctx.info_name if error.ctx is not None and error.ctx.parent is not None else None
    return f"zsq {command} --help" if command else "zsq --help"


def _leave(message: str, status: int) -> NoReturn:
    print(f"zsq: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
