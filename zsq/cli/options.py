"""Options that several commands have, each stated once, and how what was typed reaches the API.

Paths are text here: as Path, an empty one would be the current folder.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

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
Method = Annotated[
    str | None,
    typer.Option(
        help="How to make the images; see `zsq list methods`. Without it, what is best for the teacher."
    ),
]
Effort = Annotated[
    str | None,
    typer.Option(help="How long images are worked on: quick, standard or published."),
]
Seed = Annotated[int, typer.Option(help="The seed of all random numbers.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that is in the folder.")]
Precision = Annotated[str, typer.Option(help="Number format: auto, fp32 or bf16.")]
Compile = Annotated[str, typer.Option(help="Compile with torch: auto, on or off. Pays in long runs.")]
Jobs = Annotated[
    int | None,
    typer.Option(help="Processes that share the work. Each has 1 thread, unless --threads says more."),
]
Threads = Annotated[int | None, typer.Option(help="Number of CPU threads per process.")]
Device = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda or cuda:N.")]
FirstLast = Annotated[
    int | None, typer.Option(help="Bits of the first and last layer. Without it, the student decides.")
]
Widths = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Bits of single rows: a CSV file with the header row,bits."),
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
# Required where it stands without a default.
Evaluation = Annotated[
    str | None,
    typer.Option(metavar="SRC", help="Labelled images to measure accuracy with: a folder, .zip or .npz."),
]
RunFolder = Annotated[str, typer.Argument(metavar="DIR", help="Folder of a run.")]


def asked(context: typer.Context, *left_out: str) -> dict[str, Any]:
    """A command's options as the API function of its name takes them: those of the runtime as one, pairs and
    lists parsed; without those `left_out`, which the API does not know."""
    from zsq.config import AuditRuntime, RuntimeConfig, parse_set, validated
    from zsq.core.interrupt import can_resume
    from zsq.core.progress import Reporter

    if "resume" in context.params:
        can_resume()
    values = {name.rstrip("_"): value for name, value in context.params.items() if name not in left_out}
    computing = {name: values.pop(name) for name in RuntimeConfig.model_fields if name in values}
    if computing:
        # Only the audit fixes what the others let one choose.
        model = RuntimeConfig if "precision" in computing else AuditRuntime
        values["runtime"] = validated(model, computing, "runtime")
    if "set" in values:
        values["set"] = parse_set(values["set"] or [])
    if "passes" in values:
        values["passes"] = [name.strip() for name in (values["passes"] or "").split(",") if name.strip()]
    return {**values, "reporter": Reporter()}


def setting(of: str, key: str = "KEY") -> Any:
    """The option `--set`, of a method or a student."""
    return typer.Option("--set", metavar=f"{key}=VALUE", help=f"Set one option of {of}. Can be given again.")


def refuse_typed(context: typer.Context, names: tuple[str, ...], why: str, expected: str) -> None:
    """Refuse the first of the options that was typed; `why` is that another one is there, or is not.

    Raises:
        OptionError: one was.
    """
    from zsq.core.errors import OptionError

    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option, value = f"--{name.replace('_', '-')}", context.params[name]
            given = option if value is True else f"{option} {value}"
            raise OptionError(f"{given} {why}", expected)


def parse_numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """`"0.5,0.25"` -> (0.5, 0.25); None stays None.

    Raises:
        OptionError: anything but numbers.
    """
    from zsq.core.errors import OptionError

    try:
        return None if text is None else tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise OptionError(f"{option} {text}", "numbers, as in 0.485,0.456,0.406") from None
