"""Peak memory, kept in benchmarks/results/memory.json.

`python benchmarks/memory.py images`: of writing many images. `python benchmarks/memory.py network`: of
capturing a network and of fitting genie-m to it.
"""

from __future__ import annotations

import json
import resource
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import torchvision
import typer
from common import Results, run_again

import zsq
from zsq.contract import Teacher
from zsq.core.imagespec import ImageSpec
from zsq.core.runtime import Runtime
from zsq.graph import capture
from zsq.students import create
from zsq.widths import Bits

SIDE, NUM_IMAGES = 224, 16
app = typer.Typer()


def peak_mb() -> float:
    """Of this process so far, in 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


@app.command()
def images(count: Annotated[int, typer.Option(help="Images of noise, 32 px.")] = 100_000) -> None:
    """Write noise images of the digits teacher and compare with the memory that one image takes."""
    with tempfile.TemporaryDirectory() as folder:
        zsq.generate("embedded:digits", "noise", count=1, out=Path(folder, "one"))
        before = peak_mb()
        zsq.generate("embedded:digits", "noise", count=count, out=Path(folder, "many"))
        after = peak_mb()
    typer.echo(f"{count} images: {after - before:.0f} MB over the {before:.0f} MB of one image")
    results = Results("memory", f"python benchmarks/memory.py images --count {count}")
    results.write(images=count, peak_mb_of_one_image=round(before), peak_mb=round(after))


@app.command()
def network(name: Annotated[str, typer.Option(help="A classifier of torchvision.")] = "densenet121") -> None:
    """Capture a network, and fit genie-m to it with few steps, each in a process of its own."""
    found = {step: run_again(__file__, "step", name, step) for step in ("built", "captured", "fitted")}
    typer.echo(json.dumps(found))
    results = Results("memory")
    results.write(networks=results.read().get("networks", {}) | {name: found})


@app.command(hidden=True)
def step(name: str, last: str) -> None:
    """Go as far as `last` and print the peak."""
    torch.set_num_threads(1)
    spec = ImageSpec(size=(SIDE, SIDE), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    built = torchvision.models.get_model(name, weights=None)
    teacher = Teacher(name, built, spec, 1000, "0" * 64)
    if last != "built":
        capture(teacher.network, teacher.example())
    if last == "fitted":
        pixels = torch.randint(0, 256, (NUM_IMAGES, *spec.shape), dtype=torch.uint8)
        fitter = create("genie-m", spec, {"iterations": 5, "batch": 8}, Runtime())
        fitter.fit(teacher, pixels, Bits(4, 4))
    typer.echo(json.dumps({"peak_mb": round(peak_mb()), "images": NUM_IMAGES, "side": SIDE}))


if __name__ == "__main__":
    app()
