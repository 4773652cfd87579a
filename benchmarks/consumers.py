"""What other quantizers make of synthetic images: `python benchmarks/consumers.py TOOL [--budget-hours H]`.

TOOL is a name of `consumer_tools.TOOLS`, in the environment of `benchmarks/consumers/TOOL.txt`; what stands
behind a dash is another way to quantize with the same tool, in the same environment.
Finished rows are kept in `benchmarks/results/consumers.json` and are not measured again; shards
are made below `outputs/consumers/` on the first call.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
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
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from zsq.adapters.loader import Images
from zsq.bench import Budget
from zsq.contract import Teacher
from zsq.core.errors import first_line
from zsq.core.imagespec import ImageSpec
from zsq.images.imageset import ImageSet
from zsq.widths import Bits

METHODS = ("noise", "dgh", "deepinversion")
COUNT, ITERATIONS, BATCH = 256, 250, 250
MOST_SAID = 300


def _deit_tiny(num_classes: int) -> nn.Module:
    import timm

    return timm.create_model("deit_tiny_patch16_224", num_classes=num_classes, img_size=32, patch_size=4)


# Networks with random weights: a maker from the number of classes, for images of 32 pixels.
TRAINED = "resnet20"
RANDOM: dict[str, Callable[[int], nn.Module]] = {
    "mobilenet_v2": lambda num_classes: mobilenet_v2(num_classes=num_classes),
    "deit_tiny": _deit_tiny,
}


class Evaluation:
    """The images that accuracy is measured on, and the classes that the network itself gives them."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher, self.images = teacher, test_images(teacher.spec)
        self.own = self.classes(teacher.network)

    @torch.no_grad()
    def classes(self, predict: Predict | nn.Module) -> Tensor:
        """One class for each image."""
        parts = self.images.pixels.split(BATCH)
        return torch.cat([predict(self.teacher.spec.pixels_to_norm(part)).argmax(1) for part in parts])


def main(
    tool: Annotated[str, typer.Argument(help="A name of consumer_tools.TOOLS.")],
    budget_hours: BudgetHours = None,
    sets: Annotated[int, typer.Option(help="Sets of each source.")] = 3,
    network: Annotated[str | None, typer.Option(help="One of the networks alone.")] = None,
    shards: Annotated[Path, typer.Option(help="Where shards are made or found.")] = Path("outputs/consumers"),
) -> None:
    """Measure what is missing of one tool's rows."""
    torch.set_num_threads(1)
    budget = Budget(budget_hours)
    teacher = load_resnet20()
    evaluation = Evaluation(teacher)
    # Each row states its versions: the tools' environments differ.
    results = Results("consumers", "OMP_NUM_THREADS=1 python benchmarks/consumers.py TOOL", timed=False)
    for name, bits, source, number in _plan(tool, sets):
        row = {"tool": tool, "network": name, "bits": bits, "source": source, "set": number}
        if network in (None, name) and not results.has(row) and not budget.spent():
            images = _images(source, number, teacher, shards)
            found = (
                _measured(tool, bits, images, evaluation)
                if name == TRAINED
                else _taken(tool, _random(name, teacher.num_outputs or 10), bits, images, evaluation)
            )
            versions = {package: metadata.version(package) for package in TOOLS[tool][1]}
            results.add(row | {"versions": versions, "num_images": COUNT} | found)


def _plan(tool: str, sets: int) -> Iterator[tuple[str, str, str, int]]:
    """Networks with random weights show only that the tool takes them; once for each tool."""
    for bits in TOOLS[tool][2]:
        for source in ("real", *METHODS):
            for number in range(sets):
                yield TRAINED, bits, source, number
    if "-" not in tool:
        for name in RANDOM:
            yield name, "W8A8", "noise", 0


def _images(source: str, number: int, teacher: Teacher, folder: Path) -> Images:
    """Set `number` of a source; sets of real images have none in common, others have a seed each."""
    if source == "real":
        return _real(teacher.spec).disjoint_sets(number + 1, COUNT, 0)[number]
    out = folder / f"{source}-{number}"
    return synthetic(source, out, count=COUNT, iterations=ITERATIONS, seed=number)


@functools.cache
def _real(spec: ImageSpec) -> ImageSet:
    return training_images(spec)


def _measured(tool: str, bits: str, images: Images, evaluation: Evaluation) -> dict[str, Any]:
    """What is left of the trained network."""
    network, spec = evaluation.teacher.network, evaluation.teacher.spec
    start = time.perf_counter()
    predict = TOOLS[tool][0](network, spec, images, Bits.parse(bits))
    seconds = time.perf_counter() - start
    classes = evaluation.classes(predict)
    return {
        "accuracy": _percent(classes == evaluation.images.labels),
        "agreement": _percent(classes == evaluation.own),
        "quantize_seconds": round(seconds, 1),
    }


def _taken(
    tool: str, network: nn.Module, bits: str, images: Images, evaluation: Evaluation
) -> dict[str, Any]:
    """Whether the tool takes a network: its logits have the right shape and are numbers. Those of random
    weights hardly differ between classes, so there is no more to see."""
    spec = evaluation.teacher.spec
    norm = spec.pixels_to_norm(evaluation.images.pixels[:BATCH])
    start = time.perf_counter()
    # Whatever a tool raises is what there is to say of it.
    try:
        logits = TOOLS[tool][0](network, spec, images, Bits.parse(bits))(norm)
        if logits.shape != network(norm[:1]).expand(BATCH, -1).shape or not logits.isfinite().all():
            raise ValueError(f"logits of {tuple(logits.shape)}, or not finite")
    except Exception as error:
        return {"accuracy": None, "failed": f"{type(error).__name__}: {first_line(error)}"[:MOST_SAID]}
    return {"accuracy": None, "seconds": round(time.perf_counter() - start, 1)}


def _random(name: str, num_classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RANDOM[name](num_classes).eval().requires_grad_(False)


def _percent(hits: Tensor) -> float:
    return round(100 * float(hits.double().mean()), 2)


if __name__ == "__main__":
    typer.run(main)
