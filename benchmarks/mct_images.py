"""Images of model-compression-toolkit beside ours: `python benchmarks/mct_images.py generate`, then `gap`.

`generate` runs in the tool's environment (`benchmarks/consumers/mct.txt`): 256 images of its own data
generation, 250 passes each, imported as the shard set `outputs/mct-images/mct`. `gap` runs anywhere: the same
number of our images at the same number of passes, and one gap table of both at W4A4 and W2A4 in
`benchmarks/results/mct-images.json`; finished fits are kept in `outputs/mct-images/gap`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from common import RESNET20, TEST, TRAIN, WEIGHTS, Results, load_resnet20, synthetic
from torch import Tensor

import zsq
from zsq.config import RuntimeConfig
from zsq.core.progress import Reporter
from zsq.imports.importing import Imported

COUNT, ITERATIONS, SEED = 256, 250, 0
OURS = ("deepinversion", "noise")
RUNTIME = RuntimeConfig(threads=1)

app = typer.Typer(add_completion=False)
Out = Annotated[Path, typer.Option(help="Folder of all shard sets and of the gap run.")]


@app.command()
def generate(out: Out = Path("outputs/mct-images"), iterations: int = ITERATIONS, count: int = COUNT) -> None:
    """Make the tool's images with its defaults, and import them."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    images = images_of_the_tool(count, iterations, SEED)
    seconds = time.perf_counter() - start
    out.mkdir(parents=True, exist_ok=True)
    saved = out / "mct.pt"
    torch.save(images, saved)
    done = as_shards(saved, out / "mct")
    typer.echo(f"{done.num_images} images in {seconds:.0f} s, {done.clamped:.2%} of the values clamped")


def images_of_the_tool(count: int, iterations: int, seed: int) -> list[Tensor]:
    """Its defaults for ResNet-20; each image as the network takes it."""
    import model_compression_toolkit as mct

    teacher, tool = load_resnet20(), mct.data_generation
    # The tool draws from the global generator and has no seed of its own.
    torch.manual_seed(seed)
    images = tool.pytorch_data_generation_experimental(
        model=teacher.network,
        n_images=count,
        output_image_size=teacher.spec.size[0],
        data_generation_config=tool.get_pytorch_data_generation_config(n_iter=iterations),
    )
    return [image.detach().cpu() for image in images]


def as_shards(saved: Path, out: Path) -> Imported:
    """The shard set in `out` of what the tool made."""
    # Its own normalisation, which its default names after torchvision, is this teacher's too.
    spec = load_resnet20().spec
    return zsq.import_images(saved, out, name="mct", mean=spec.mean, std=spec.std)


@app.command()
def gap(out: Out = Path("outputs/mct-images"), seeds: int = 1) -> None:
    """Measure both under the protocol, or continue."""
    ours = [synthetic(method, out / method, count=COUNT, iterations=ITERATIONS) for method in OURS]
    data = zsq.measure_gap(
        RESNET20,
        [out / "mct", *ours],
        real=TRAIN,
        eval=TEST,
        students=["lsq-kd"],
        bits=["W4A4", "W2A4"],
        out=out / "gap",
        weights=WEIGHTS,
        seeds=seeds,
        first_last=8,
        set={"lsq-kd.batch_norm": "frozen"},
        resume=True,
        runtime=RUNTIME,
        reporter=Reporter(),
    )
    table = {key: data.as_json()[key] for key in ("title", "teacher", "settings", "rows", "gaps")}
    command = "python benchmarks/mct_images.py generate; python benchmarks/mct_images.py gap"
    Results("mct-images", command, timed=False).write(**table)


if __name__ == "__main__":
    app()
