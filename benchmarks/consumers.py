"""What other quantizers make of synthetic images: `python benchmarks/consumers.py TOOL [--budget-hours H]`.

TOOL is a name of `consumer_tools.TOOLS`, in the environment of `benchmarks/consumers/TOOL.txt` (mct-gptq
shares that of mct).
Finished rows are kept in `benchmarks/results/consumers.json` and are not measured again; shards
are made below `outputs/consumers/` on the first call.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import (
    BudgetHours,
    Results,
    load_resnet20,
    synthetic,
    test_images,
    training_images,
)
from consumer_tools import TOOLS, Predict
from torchvision.models import mobilenet_v2

from zsq.adapters.loader import Images
from zsq.bench import Budget
from zsq.contract import Teacher
from zsq.images.sources import ImageSet
from zsq.widths import Bits

METHODS = ("noise", "dgh", "deepinversion")
COUNT, ITERATIONS, BATCH = 256, 250, 250


def main(
    tool: Annotated[str, typer.Argument(help="A name of consumer_tools.TOOLS.")],
    budget_hours: BudgetHours = None,
    sets: Annotated[int, typer.Option(help="Sets of each source.")] = 3,
    shards: Annotated[Path, typer.Option(help="Where shards are made or found.")] = Path("outputs/consumers"),
) -> None:
    """Measure what is missing of one tool's rows."""
    torch.set_num_threads(1)
    budget = Budget(budget_hours)
    teacher = load_resnet20()
    evaluation = test_images(teacher.spec)
    # Each row states its versions: the tools' environments differ.
    results = Results("consumers", "OMP_NUM_THREADS=1 python benchmarks/consumers.py TOOL", timed=False)
    for network, bits, source, number in _plan(tool, sets):
        row = {"tool": tool, "network": network, "bits": bits, "source": source, "set": number}
        if not results.has(row) and not budget.spent():
            images = _images(source, number, teacher, shards)
            results.add(row | _measure(tool, network, bits, images, teacher, evaluation))


def _plan(tool: str, sets: int) -> Iterator[tuple[str, str, str, int]]:
    """Everything at 8 bits first; the network with random weights shows only that the tool takes it."""
    for bits in TOOLS[tool][2]:
        for source in ("real", *METHODS):
            for number in range(sets):
                yield "resnet20", bits, source, number
    if "W8A8" in TOOLS[tool][2]:
        yield "mobilenet_v2", "W8A8", "noise", 0


def _images(source: str, number: int, teacher: Teacher, folder: Path) -> Images:
    """Set `number` of a source; sets of real images have none in common, others have a seed each."""
    if source == "real":
        return training_images(teacher.spec).disjoint_sets(number + 1, COUNT, 0)[number]
    out = folder / f"{source}-{number}"
    return synthetic(source, out, count=COUNT, iterations=ITERATIONS, seed=number)


def _measure(
    tool: str, name: str, bits: str, images: Images, teacher: Teacher, evaluation: ImageSet
) -> dict[str, Any]:
    quantize, packages, _ = TOOLS[tool]
    network = teacher.network if name == "resnet20" else _random_mobilenet(teacher.num_outputs or 10)
    start = time.perf_counter()
    predict = quantize(network, teacher.spec, images, Bits.parse(bits))
    seconds = time.perf_counter() - start
    accuracy: float | None = None
    agreement: float | None = None
    if name == "resnet20":
        classes = _classes(predict, teacher, evaluation)
        accuracy = _percent(classes == evaluation.labels)
        agreement = _percent(classes == _classes(network, teacher, evaluation))
    else:
        # Logits of random weights hardly differ between classes: all there is to see is that it runs.
        _classes(predict, teacher, evaluation.subset(range(BATCH)))
    return {
        "versions": {package: metadata.version(package) for package in packages},
        "num_images": COUNT,
        "accuracy": accuracy,
        "agreement": agreement,
        "quantize_seconds": round(seconds, 1),
    }


def _percent(hits: torch.Tensor) -> float:
    return round(100 * float(hits.double().mean()), 2)


def _random_mobilenet(num_classes: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mobilenet_v2(num_classes=num_classes).eval().requires_grad_(False)


@torch.no_grad()
def _classes(predict: Predict | torch.nn.Module, teacher: Teacher, evaluation: ImageSet) -> torch.Tensor:
    parts = evaluation.pixels.split(BATCH)
    return torch.cat([predict(teacher.spec.pixels_to_norm(part)).argmax(1) for part in parts])


if __name__ == "__main__":
    typer.run(main)
