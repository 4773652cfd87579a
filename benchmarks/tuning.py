"""Learning rates of trained students on training images: `python benchmarks/tuning.py [--budget-hours H]`.

On the CIFAR-10 ResNet-20 of ZSQ_DATA: students of 512 training images, or of as many from DSG, by their
agreement with the teacher on 4000 other training images. No test image is read. Keeps what is finished in
benchmarks/results/tuning.json.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import typer
from common import BudgetHours, Results, Threads, load_resnet20, synthetic, training_images
from torch import Tensor

from zsq.bench import Budget
from zsq.core.imagespec import ImageSpec
from zsq.core.runtime import Runtime
from zsq.images.sources import load_images
from zsq.measure.evaluate import logits_of
from zsq.students import create
from zsq.tasks.classify import agreement
from zsq.widths import Bits

FIRST_LAST = 8
COUNT, HELD_OUT, SETS, PASSES = 512, 4000, 2, 250
RATES = {
    ("lsq-kd", "W4A4"): (1e-3, 5e-4, 2.5e-4),
    ("lsq-kd", "W2A4"): (1e-3, 5e-4),
    ("kd", "W4A4"): (1e-3, 5e-4),
}


def main(
    threads: Threads = None,
    budget_hours: BudgetHours = None,
) -> None:
    """Measure the trials that are missing."""
    budget = Budget(budget_hours)
    results = Results("tuning", "python benchmarks/tuning.py")
    missing = [asked for asked in trials() if not results.has(asked)]
    if not missing:
        return
    teacher = load_resnet20()
    pixels = training_images(teacher.spec).pixels
    shuffled = pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(77))]
    held_out, real = shuffled[-HELD_OUT:], shuffled[: SETS * COUNT].split(COUNT)
    runtime = Runtime.resolve(threads=threads, compile="on")
    sets = {"real": real}
    if any(asked["source"] == "dsg" for asked in missing):
        sets["dsg"] = dsg_sets(teacher.spec, threads)
    with runtime.threads_set():
        expected = logits_of(teacher, held_out, runtime)
        for asked in missing:
            if budget.spent():
                break
            options = {"learning_rate": asked["learning_rate"]}
            student = create(asked["student"], teacher.spec, options, runtime)
            bits, found = Bits.parse(asked["bits"]), []
            for seed, images in enumerate(sets[asked["source"]]):
                fitted = student.fit(teacher, images, bits, first_last=FIRST_LAST, seed=seed)
                found.append(agreement(logits_of(fitted, held_out, runtime), expected))
            results.add(asked | {"agreement": found, "mean": statistics.mean(found)})


def trials() -> list[dict[str, Any]]:
    """What is fitted, in order."""
    return [
        {"student": name, "bits": bits, "source": source, "learning_rate": rate}
        for source in ("real", "dsg")
        for (name, bits), rates in RATES.items()
        for rate in rates
    ]


def dsg_sets(spec: ImageSpec, threads: int | None) -> Sequence[Tensor]:
    """Images of DSG, kept in outputs/."""
    out = Path("outputs") / "tuning-dsg"
    folder = synthetic("dsg", out, count=SETS * COUNT, iterations=PASSES, threads=threads)
    return load_images(str(folder), spec).pixels.split(COUNT)


if __name__ == "__main__":
    typer.run(main)
