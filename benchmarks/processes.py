"""The same bytes and the time saved with several processes: `python benchmarks/processes.py`.

Makes one set with 1, 2 and 4 processes of one thread each, in float32 as it is and compiled in bfloat16, and
compares the hashes of all shards; keeps benchmarks/results/processes.json.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from common import Results

from zsq.core.errors import ShardError
from zsq.shards.manifest import read_manifest

RUNTIMES = {
    "eager fp32": ("--precision", "fp32", "--compile", "off"),
    "compiled bf16": ("--precision", "bf16", "--compile", "on"),
}


def main(
    teacher: Annotated[str, typer.Option(help="Teacher.")] = "embedded:digits",
    method: Annotated[str, typer.Option(help="Method.")] = "deepinversion",
    iterations: Annotated[int, typer.Option(help="Passes.")] = 40,
    count: Annotated[int, typer.Option(help="Images.")] = 512,
) -> None:
    """Measure and compare.

    Raises:
        ShardError: two process counts gave different shards.
    """
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
                raise ShardError(f"{name}: the shards depend on the number of processes")
            typer.echo(f"{name}: the same {len(hashes[0])} shards")
    Results("processes", "python benchmarks/processes.py").write(rows=rows)


if __name__ == "__main__":
    typer.run(main)
