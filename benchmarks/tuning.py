"""Learning rates, batch norm and views of trained students, measured on training images alone:
`python benchmarks/tuning.py [--budget-hours H]`.

On the CIFAR-10 ResNet-20 of ZSQ_DATA: students of training images, or of as many synthetic ones, by their
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
from zsq.contract import Teacher
from zsq.core.runtime import Runtime
from zsq.images.sources import load_images
from zsq.measure.evaluate import logits_of
from zsq.students import create
from zsq.tasks.classify import agreement
from zsq.widths import Bits

FIRST_LAST = 8
HELD_OUT, SETS = 4000, 2
# Of learning rates: images per set, and passes of DSG for them.
COUNT, PASSES = 512, 250
RATES = {
    ("lsq-kd", "W4A4"): (1e-3, 5e-4, 2.5e-4),
    ("lsq-kd", "W2A4"): (1e-3, 5e-4),
    ("kd", "W4A4"): (1e-3, 5e-4),
}
# Of batch norm: bits -> learning rate, and passes of dgh for the images; one set.
NORMS = {"W2A4": 1e-3, "W3A3": 1e-3, "W4A4": 5e-4}
NORMS_PASSES = 100
# Of views: images per set, and passes of dgh for them.
VIEWS_COUNT, VIEWS_PASSES = 2048, 100
VIEWS_OPTIONS = {"learning_rate": 1e-3, "iterations": 640, "batch_norm": "frozen"}
VIEWS: dict[str, dict[str, float]] = {
    "none": {},
    "mixup": {"mixup": 1.0},
    "gain": {"gain": 0.2},
    "cutmix": {"cutmix": 1.0},
    "mixup and gain": {"mixup": 1.0, "gain": 0.2},
}


def main(
    threads: Threads = None,
    budget_hours: BudgetHours = None,
) -> None:
    """Measure the trials that are missing."""
    budget = Budget(budget_hours)
    results = Results("tuning", "python benchmarks/tuning.py")
    missing = [asked for asked in (*rate_trials(), *norm_trials(), *view_trials()) if not results.has(asked)]
    if not missing:
        return
    teacher = load_resnet20()
    pixels = training_images(teacher.spec).pixels
    shuffled = pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(77))]
    runtime = Runtime.resolve(threads=threads, compile="on")
    with runtime.in_force():
        bench = Bench(teacher, shuffled, runtime)
        for asked in missing:
            if budget.spent():
                break
            results.add(asked | bench.measured(asked))


class Bench:
    """The images that students are fitted and measured on."""

    def __init__(self, teacher: Teacher, shuffled_NCHW: Tensor, runtime: Runtime) -> None:
        """The last of the shuffled training images are held out."""
        self.teacher, self.runtime = teacher, runtime
        self.real, self.held_out = shuffled_NCHW[:-HELD_OUT], shuffled_NCHW[-HELD_OUT:]
        self.expected = logits_of(teacher, self.held_out, runtime)

    def measured(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Agreement of one fit where a seed is asked for, else of all sets and their mean."""
        if "seed" in asked:
            images = self.images(asked["source"], asked["seed"], VIEWS_COUNT, VIEWS_PASSES)
            return {"agreement": self.agreement(asked, images, VIEWS_OPTIONS | VIEWS[asked["views"]])}
        if "batch_norm" in asked:
            images = self.images(asked["source"], 0, COUNT, NORMS_PASSES, sets=1)
            options = {"learning_rate": NORMS[asked["bits"]], "batch_norm": asked["batch_norm"]}
            return {"agreement": self.agreement(asked | {"seed": 0}, images, options)}
        rate = {"learning_rate": asked["learning_rate"], "batch_norm": "frozen"}
        sets = (self.images(asked["source"], index, COUNT, PASSES) for index in range(SETS))
        found = [self.agreement(asked | {"seed": seed}, images, rate) for seed, images in enumerate(sets)]
        return {"agreement": found, "mean": statistics.mean(found)}

    def agreement(self, asked: dict[str, Any], images_NCHW: Tensor, options: dict[str, Any]) -> float:
        """In points, of one fit."""
        student = create(asked["student"], self.teacher.spec, options, self.runtime)
        bits, seed = Bits.parse(asked["bits"]), asked["seed"]
        fitted = student.fit(self.teacher, images_NCHW, bits, first_last=FIRST_LAST, seed=seed)
        return agreement(logits_of(fitted, self.held_out, self.runtime), self.expected)

    def images(self, source: str, index: int, count: int, passes: int, sets: int = SETS) -> Tensor:
        """Set `index` of `count` images; those of a method are kept in outputs/, `sets` in one folder."""
        chosen = slice(index * count, (index + 1) * count)
        if source == "real":
            return self.real[chosen]
        folder = synthetic(
            source,
            Path("outputs") / f"tuning-{source}-{sets * count}",
            count=sets * count,
            iterations=passes,
            threads=self.runtime.threads,
        )
        return load_images(str(folder), self.teacher.spec).pixels[chosen]


def rate_trials() -> Sequence[dict[str, Any]]:
    """Learning rates, in order; each on all sets."""
    return [
        {"student": name, "bits": bits, "source": source, "learning_rate": rate}
        for source in ("real", "dsg")
        for (name, bits), rates in RATES.items()
        for rate in rates
    ]


def norm_trials() -> Sequence[dict[str, Any]]:
    """What batch norm does, in order."""
    return [
        {"student": "lsq-kd", "bits": bits, "source": source, "batch_norm": norms}
        for bits in NORMS
        for source in ("dgh", "real")
        for norms in ("frozen", "train")
    ]


def view_trials() -> Sequence[dict[str, Any]]:
    """Views, in order; a call that is stopped leaves all of them on as many sets as it can."""
    return [
        {
            "student": "lsq-kd",
            "bits": "W2A4",
            "source": source,
            "images": VIEWS_COUNT,
            "iterations": VIEWS_OPTIONS["iterations"],
            "views": views,
            "seed": seed,
        }
        for source in ("real", "dgh")
        for seed in range(SETS)
        for views in VIEWS
    ]


if __name__ == "__main__":
    typer.run(main)
