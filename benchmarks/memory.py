"""Peak memory of writing many images: `python benchmarks/memory.py`; keeps benchmarks/results/memory.json."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from common import Results

import zsq


def peak_mb() -> float:
    """Of this process so far, in 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main(count: Annotated[int, typer.Option(help="Images of noise, 32 px.")] = 100_000) -> None:
    """Write noise images of the digits teacher and compare with the memory that one image takes."""
    with tempfile.TemporaryDirectory() as folder:
        zsq.generate("embedded:digits", "noise", count=1, out=Path(folder, "one"))
        before = peak_mb()
        zsq.generate("embedded:digits", "noise", count=count, out=Path(folder, "many"))
        after = peak_mb()
    typer.echo(f"{count} images: {after - before:.0f} MB over the {before:.0f} MB of one image")
    results = Results("memory", f"python benchmarks/memory.py --count {count}")
    results.write(images=count, peak_mb_of_one_image=round(before), peak_mb=round(after))


if __name__ == "__main__":
    typer.run(main)
