"""sha256 of what every method and student makes on the embedded teachers: one thread, float32, few steps.

    python benchmarks/hashes.py record                # of this working tree, as JSON on standard output
    python benchmarks/hashes.py compare main~5 HEAD   # of two commits; exit code 1 where they differ

The hashes belong to one kind of processor and one version of torch: compare two commits on one machine.
Of a method all shard files count; of a student its tensor file, the record beside it (without the version of
zsq and how the student was made) and its outputs on the test images.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import typer
from commits import REPOSITORY, checked_out, run_in

RUNTIME = ("--precision", "fp32", "--compile", "off", "--threads", "1", "--device", "cpu")
IMAGES, STEPS = 8, 6
# Of a student's record: what changes without a change of the student.
NOT_HASHED = ("zsq_version", "made")

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__)


@app.command()
def record(tree: Annotated[Path, typer.Option(help="Checkout to record.")] = REPOSITORY) -> None:
    """Print the hashes of one checkout, which must be the one that is imported."""
    import zsq

    # A checkout without the link to its methods has them beside the package.
    zsq.__path__.append(str(tree))
    assert Path(zsq.__file__).parents[1] == tree.resolve(), f"{zsq.__file__} is not of {tree}"
    with tempfile.TemporaryDirectory() as folder:
        typer.echo(json.dumps(all_hashes(Path(folder)), indent=1))


@app.command()
def compare(before: str, after: str) -> None:
    """Say which hashes of two commits differ."""
    old, new = (hashes_of(commit) for commit in (before, after))
    names = [*old, *(name for name in new if name not in old)]
    differing = [name for name in names if old.get(name) != new.get(name)]
    for name in differing:
        typer.echo(f"{name}: {str(old.get(name))[:16]} -> {str(new.get(name))[:16]}")
    typer.echo(f"{len(names) - len(differing)} of {len(names)} hashes are the same")
    raise typer.Exit(1 if differing else 0)


def hashes_of(commit: str) -> dict[str, str]:
    """What `record` prints in a checkout of `commit`."""
    with checked_out(commit) as tree:
        found: dict[str, str] = json.loads(run_in(tree, __file__, ("record", "--tree", str(tree))))
    return found


def all_hashes(folder: Path) -> dict[str, str]:
    """Name -> sha256 of all methods' shards, and of all students' files and outputs."""
    from zsq.generators import METHODS
    from zsq.students import STUDENTS

    found: dict[str, str] = {}
    for method, cls in METHODS.items():
        found |= {f"{method} {name}": value for name, value in shard_hashes(method, cls, folder).items()}
    for student, kind in STUDENTS.items():
        found |= {f"{student} {name}": value for name, value in student_hashes(student, kind, folder).items()}
    return found


def shard_hashes(method: str, cls: Any, folder: Path) -> dict[str, str]:
    """Of the shard files of one small run."""
    out = folder / method
    real = ("--real", "embedded:digits:train") if cls.facts.needs_real else ()
    # Facts of early commits say nothing of boxes and attention.
    detects = getattr(cls.facts, "needs_boxes", False)
    attends = getattr(cls.facts, "needs_attention", False)
    teacher = "embedded:digits-vit" if attends else "embedded:digits"
    teacher = "embedded:digits-detector" if detects else teacher
    run(
        *("generate", "--teacher", teacher, "--method", method, "--out", out, *real),
        *("--count", IMAGES, "--batch", IMAGES // 2, "--shard-size", IMAGES // 2, "--iterations", STEPS),
    )
    return {path.name: sha256(path.read_bytes()) for path in sorted((out / "shards").iterdir())}


def student_hashes(student: str, kind: Any, folder: Path) -> dict[str, str]:
    """Of the files and the outputs of one student at W4A4."""
    import torch

    import zsq

    out = folder / f"student-{student}"
    teacher = "embedded:digits-features" if student == "quantface" else "embedded:digits"
    # Facts of early commits say nothing of LayerNorms.
    if getattr(kind.facts, "needs_layer_norm", False):
        teacher = "embedded:digits-vit"
    wanted = {"iterations": STEPS, "teacher_iterations": STEPS, "batch": 32}
    options = [f"{key}={value}" for key, value in wanted.items() if key in kind.options_class.model_fields]
    run(
        *("quantize", "--teacher", teacher, "--images", "embedded:digits:train", "--count", 64),
        *("--student", student, "--bits", "W4A4", "--first-last", 8, "--out", out),
        *(part for option in options for part in ("--set", option)),
    )
    said = json.loads((out / "student.json").read_text())
    kept = {key: value for key, value in said.items() if key not in NOT_HASHED}
    fitted = zsq.load_student(out)
    pixels = zsq.load_images("embedded:digits:test", fitted.spec).pixels
    with torch.no_grad():
        outputs = fitted.logits(fitted.spec.pixels_to_standard(pixels))
    return {
        "tensors": sha256((out / "student.safetensors").read_bytes()),
        "record": sha256(json.dumps(kept, sort_keys=True).encode()),
        "outputs": sha256(outputs.contiguous().numpy().tobytes()),
    }


def run(*arguments: object) -> None:
    """`zsq ARGUMENTS` in this process, silent unless it fails."""
    from zsq.cli import main

    with mock.patch.object(sys, "argv", ["zsq", *map(str, arguments), *RUNTIME]), leaving_well(), quiet():
        main()


@contextmanager
def leaving_well() -> Any:
    """Passes an exit with status 0 and no other."""
    try:
        yield
    except SystemExit as leaving:
        assert not leaving.code, f"zsq {' '.join(sys.argv[1:])} left with {leaving.code}"


@contextmanager
def quiet() -> Any:
    """Standard output and error of the block go nowhere."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    app()
