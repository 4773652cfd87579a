"""Transformers of other libraries: `python benchmarks/library_transformers.py run [--only NAMES]`.

Networks of torchvision and timm with random weights, at their own image size. Each step runs in a process of
its own, whose peak memory is kept:

- `built`: the network answers two images.
- `adapter`: how far the outputs of the network whose attention is tapped are from its own.
- `units`: how many units the students that reconstruct learn, and which they only round.
- a method's name: `IMAGES` images in `STEPS` iterations, through shards and manifest.
- `ptq` at W8A8, `repq` at W4A4: fitted on as many images. `why` says in one line what was refused.

Finished rows are kept in `benchmarks/results/library-transformers.json` and are not measured again.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import BudgetHours, Results, run_again
from memory import peak_mb
from zoo import build, draw_constants, settle

from zsq.bench import Budget
from zsq.config import GenerateConfig, RuntimeConfig
from zsq.contract import Teacher
from zsq.core.errors import ZsqError
from zsq.core.imagespec import NATURAL_MEAN, NATURAL_STD, ImageSpec
from zsq.core.progress import Reporter
from zsq.core.runtime import Runtime
from zsq.engine.attention import AttentionTeacher
from zsq.generators import METHODS
from zsq.placement.by_image import view_by_image
from zsq.placement.sites import place
from zsq.placement.units import partition
from zsq.students import create
from zsq.synthesis.synthesize import generate
from zsq.widths import Bits

NETWORKS = ("vit_b_16", "swin_t", "timm:deit_tiny_patch16_224", "timm:levit_128s", "timm:mobilevit_xxs")
READERS = tuple(name for name, method in METHODS.items() if method.facts.needs_attention)
FITS = {"ptq": Bits(8, 8), "repq": Bits(4, 4)}
STEPS_OF_ALL = ("built", "adapter", "units", *READERS, *FITS)
IMAGES, STEPS = 2, 3
app = typer.Typer()


@app.command()
def run(
    only: Annotated[str | None, typer.Option(help="Networks, separated by commas; all if none.")] = None,
    budget_hours: BudgetHours = None,
) -> None:
    """Measure what is missing."""
    budget = Budget(budget_hours)
    command = "OMP_NUM_THREADS=1 python benchmarks/library_transformers.py run"
    results = Results("library-transformers", command, timed=False)
    wanted = [(name, step) for name in (only.split(",") if only else NETWORKS) for step in STEPS_OF_ALL]
    missing = [(n, s) for n, s in wanted if not results.has({"network": n, "step": s})]
    with Reporter().job("library-transformers", len(missing)) as log:
        for name, step in missing:
            if budget.spent():
                break
            row = run_again(__file__, "one", name, step, environment={"OMP_NUM_THREADS": "1"})
            results.add({"network": name, "step": step, **row}, order=_order)
            log.advance(1)


def _order(row: dict[str, Any]) -> Any:
    return NETWORKS.index(row["network"]), STEPS_OF_ALL.index(row["step"])


@app.command(hidden=True)
def one(name: str, step: str) -> None:
    """Do one step and print what it found."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher = _teacher(name)
    started = time.process_time()
    try:
        found = _measured(teacher, step)
    except ZsqError as error:
        found = {"why": str(error)}
    seconds = round(time.process_time() - started, 1)
    typer.echo(json.dumps({**found, "seconds": seconds, "peak_mb": round(peak_mb())}))


def _teacher(name: str) -> Teacher:
    """With random weights, and statistics of batch norm from random images."""
    network, side = build(name)
    draw_constants(network)
    spec = ImageSpec(size=(side, side), mean=NATURAL_MEAN, std=NATURAL_STD)
    teacher = Teacher(name, network, spec, 1000, "0" * 64)
    settle(teacher)
    return teacher


def _measured(teacher: Teacher, step: str) -> dict[str, Any]:
    if step == "built":
        with torch.no_grad():
            return {"outputs": list(teacher.network(teacher.example()).shape)}
    if step == "adapter":
        return _adapter(teacher)
    if step == "units":
        return _units(teacher)
    if step in FITS:
        return _fitted(teacher, step)
    return _made(teacher, step)


@torch.no_grad()
def _adapter(teacher: Teacher) -> dict[str, Any]:
    """The largest difference of an output, and of which size they are."""
    tapped = AttentionTeacher(teacher, ("logits", "weights", "outputs"))
    standard = torch.randn(IMAGES, *teacher.spec.shape, generator=torch.Generator().manual_seed(1))
    own, (ours, _) = teacher.logits(standard), tapped(standard)
    assert isinstance(ours, torch.Tensor)
    return {
        "difference": (own - ours).abs().max().item(),
        "largest_output": round(own.abs().max().item(), 3),
        "attentions": len(tapped.blocks),
    }


def _units(teacher: Teacher) -> dict[str, Any]:
    """How many units there are, and those without a first axis of images."""
    placement = place(teacher.network, teacher.example(), Bits(8, 8), fold=False)
    view_by_image(placement, teacher.example()[:1])
    units = partition(placement, "block", teacher.example()[:1])
    return {"units": len(units), "rounded_only": [unit.name for unit in units if not unit.by_image]}


def _made(teacher: Teacher, method: str) -> dict[str, Any]:
    runtime = RuntimeConfig(compile="off")
    config = GenerateConfig(
        teacher=teacher.name, method=method, count=IMAGES, iterations=STEPS, set={}, runtime=runtime
    )
    with tempfile.TemporaryDirectory() as folder:
        generate(config, Path(folder, "run"), teacher=teacher)
    return {"images": IMAGES, "iterations": STEPS}


@torch.no_grad()
def _fitted(teacher: Teacher, student: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (IMAGES, *teacher.spec.shape), generator=generator, dtype=torch.uint8)
    bits = FITS[student]
    fitted = create(student, teacher.spec, {}, Runtime()).fit(teacher, pixels, bits)
    return {"bits": str(bits), "quantizers": len(fitted.tensors)}


if __name__ == "__main__":
    app()
