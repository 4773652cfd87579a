"""The same bytes and the time saved with several processes: `python benchmarks/processes.py images|fits`.

`images` makes one set with 1, 2 and 4 processes of one thread each, in float32 as it is and compiled in
bfloat16, and compares the hashes of all shards. `fits` runs a small recipe with --jobs 1, 2 and 4 and
compares the shards and all rows of the report but their seconds. Keeps benchmarks/results/processes.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from common import Results

from zsq.shards.manifest import read_manifest

RUNTIMES = {
    "eager fp32": ("--precision", "fp32", "--compile", "off"),
    "compiled bf16": ("--precision", "bf16", "--compile", "on"),
}


RECIPE = """
title = "Digits, to be shared"
real = "embedded:digits:train"
eval = "embedded:digits:test"
seeds = 2
teacher = { name = "embedded:digits" }
generate = { count = 128, shard_sets = 1, shard_size = 16, iterations = 20 }
sources = [{ method = "noise" }, { method = "dgh", batch = 16 }]
students = [
    { name = "lsq-kd", bits = ["W4A4", "W2A4"], set = { iterations = 60 } },
    { name = "genie-m", bits = ["W4A4"], set = { iterations = 60 } },
]
runtime = { precision = "fp32", compile = "off" }
"""

app = typer.Typer(add_completion=False)


@app.command()
def fits() -> None:
    """Run a recipe with 1, 2 and 4 processes; end with an error where shards or rows differ."""
    rows, found = [], []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "recipe.toml").write_text(RECIPE, encoding="utf-8")
        for processes in (1, 2, 4):
            out = Path(folder, f"run-{processes}")
            command = [
                *(sys.executable, "-m", "zsq", "run", f"{folder}/recipe.toml"),
                *("--out", str(out), "--jobs", str(processes)),
            ]
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            found.append(made_by(out))
            rows.append({"processes": processes, "fits": 18, "seconds": round(seconds, 1)})
            typer.echo(f"{processes} processes: {seconds:.1f} s")
    if any(each != found[0] for each in found):
        sys.exit("shards or rows depend on the number of processes")
    Results("processes", "python benchmarks/processes.py images|fits").write(fits=rows)


def made_by(out: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Hashes of all shards, and the rows of the report without their seconds."""
    hashes = [entry.sha256 for name in ("noise-0", "dgh-0") for entry in read_manifest(out / name).shards]
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return hashes, [{key: row[key] for key in row if key != "seconds"} for row in report["rows"]]


@app.command()
def images(
    teacher: Annotated[str, typer.Option(help="Teacher.")] = "embedded:digits",
    method: Annotated[str, typer.Option(help="Method.")] = "deepinversion",
    iterations: Annotated[int, typer.Option(help="Passes.")] = 40,
    count: Annotated[int, typer.Option(help="Images.")] = 512,
) -> None:
    """Make a set with 1, 2 and 4 processes; end with an error where shards differ."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, runtime in RUNTIMES.items():
            hashes = []
            for processes in (1, 2, 4):
                out = Path(folder, f"{name}-{processes}".replace(" ", "-"))
                command = [
                    *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)),
                    *("-m", "zsq", "generate", "--teacher", teacher, "--method", method, "--threads", "1"),
                    *("--iterations", str(iterations), "--count", str(count), "--batch", "64"),
                    *("--shard-size", "64", "--out", str(out), *runtime),
                ]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                manifest = read_manifest(out)
                hashes.append([shard.sha256 for shard in manifest.shards])
                rows.append({"runtime": name, "processes": processes, "seconds": manifest.seconds})
                typer.echo(f"{name}, {processes} processes: {manifest.seconds:.1f} s")
            if any(found != hashes[0] for found in hashes):
                sys.exit(f"{name}: the shards depend on the number of processes")
            typer.echo(f"{name}: the same {len(hashes[0])} shards")
    Results("processes", "python benchmarks/processes.py images|fits").write(rows=rows)


if __name__ == "__main__":
    app()
