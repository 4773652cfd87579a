"""What compiling and bfloat16 change: `python benchmarks/precision.py [--budget-hours H]`.

On the CIFAR-10 ResNet-20 of ZSQ_DATA: the gradient of one step, DeepInversion's losses over the last passes,
and the accuracy of students fitted on the images, each compiled with bfloat16 convolutions against uncompiled
float32. Keeps what is finished in benchmarks/results/precision.json.
"""

from __future__ import annotations

import itertools
import statistics
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from common import BudgetHours, Results, Threads, load_resnet20, test_images
from torch import Tensor

from zsq.bench import Budget
from zsq.contract import Silent, StepLog, Student, Teacher
from zsq.core.runtime import Runtime
from zsq.engine.invert import LOG_EVERY
from zsq.engine.objectives import TeacherPass, bn_alignment, cross_entropy
from zsq.engine.statistics import Alignment, TappedTeacher
from zsq.generators import create as create_method
from zsq.measure.confidence import mean_interval
from zsq.measure.evaluate import Reference, score_student, score_teacher
from zsq.plan import Group
from zsq.students import create as create_student
from zsq.widths import Bits

COUNT, PASSES, SETS = 256, 250, 3
# Adam's constant rate makes a last iterate swing: losses are means over the last passes, of several sets.
LOSS_COUNT, LOSS_SETS, LAST_PASSES = 64, 8, 100
BITS = ("W4A4", "W2A4")
PLAIN = "uncompiled fp32"
FAST = "compiled bf16"


def runtimes(threads: int | None) -> dict[str, Runtime]:
    """The two ways to compute; both are named, whatever this processor would choose by itself."""
    return {
        PLAIN: Runtime(threads=threads),
        FAST: Runtime(precision="bf16", compile=True, threads=threads),
    }


def gradient(teacher: Teacher, runtime: Runtime) -> Tensor:
    """Of DeepInversion's CE and BN terms at Gaussian images."""
    tapped = TappedTeacher(teacher)
    images = torch.randn(64, *teacher.spec.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = F.one_hot(torch.arange(64) % 10, 10).float()

    def loss_of(images: Tensor) -> Tensor:
        with runtime.autocast():
            logits, layers = tapped(images)
        forward = TeacherPass(images, logits, layers, targets)
        bn = bn_alignment(Alignment("batch", moment="var", distance="norm"))
        return cross_entropy(forward) + 10 * bn(forward)

    runtime.compiled(loss_of)(images).backward()
    assert images.grad is not None
    return images.grad


def compared(plain: Tensor, fast: Tensor) -> dict[str, float]:
    """Cosine and relative error of the two gradients."""
    return {
        "cosine": F.cosine_similarity(plain.flatten(), fast.flatten(), 0).item(),
        "relative_error": ((fast - plain).norm() / plain.norm()).item(),
    }


class LossLog:
    """Keeps the losses that a run reports."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def advance(self, amount: int, **values: float) -> None:
        """One report."""
        self.rows.append(values)

    def last(self, reports: int) -> dict[str, float]:
        """Each term's mean over the last reports."""
        return {term: statistics.mean(row[term] for row in self.rows[-reports:]) for term in self.rows[-1]}


def synthetic(teacher: Teacher, runtime: Runtime, number: int, count: int, log: StepLog) -> Tensor:
    """Pixels of one set of `count` images."""
    method = create_method("deepinversion", teacher, iterations=PASSES, runtime=runtime)
    made = method.synthesize(Group(0, number, 0, (count,)), log)
    return teacher.spec.standard_to_pixels(made.standard_NCHW)


def final_losses(teacher: Teacher, runtime: Runtime, number: int) -> dict[str, float]:
    """Of one small set, each term's mean over the last passes."""
    log = LossLog()
    synthetic(teacher, runtime, number, LOSS_COUNT, log)
    return log.last(LAST_PASSES // LOG_EVERY)


def interval(differences: list[float]) -> dict[str, Any]:
    """Mean difference and its 95 % interval over sets."""
    return {
        "mean": statistics.mean(differences),
        "ci95": mean_interval(np.array(differences)),
        "n": len(differences),
    }


def main(
    budget_hours: BudgetHours = None,
    threads: Threads = None,
) -> None:
    """Measure what is missing and keep it."""
    budget = Budget(budget_hours)
    teacher = load_resnet20()
    test = test_images(teacher.spec)
    results = Results("precision", "python benchmarks/precision.py")
    ways = runtimes(threads)
    with ways[PLAIN].in_force():
        if "gradient" not in results.read():
            results.write(gradient=compared(*(gradient(teacher, ways[way]) for way in (PLAIN, FAST))))
        reference = score_teacher(teacher, test, ways[PLAIN])
        for number, way in itertools.product(range(LOSS_SETS), ways):
            if not budget.spent():
                measure = partial(final_losses, teacher, ways[way], number)
                results.once("losses", f"set {number}, {way}", measure)
        for number, way in itertools.product(range(SETS), ways):
            if not budget.spent():
                one_set(results, teacher, reference, ways, way, number)
    results.write(**summary(results.read()))


def one_set(
    results: Results,
    teacher: Teacher,
    reference: Reference,
    ways: dict[str, Runtime],
    way: str,
    number: int,
) -> None:
    """Make one set and fit what is missing on it: its images by the fast student, plain images by both."""
    fitters = [FAST, PLAIN] if way == PLAIN else [FAST]
    keys = {
        (fitter, bits): f"set {number}, images {way}, student {fitter}, {bits}"
        for fitter in fitters
        for bits in BITS
    }
    if set(keys.values()) <= results.read().get("fits", {}).keys():
        return
    pixels = synthetic(teacher, ways[way], number, COUNT, Silent())
    for (fitter, bits), key in keys.items():
        # Rate and batch norm of the kept fits.
        options = {"learning_rate": 1e-3, "batch_norm": "frozen"}
        student = create_student("lsq-kd", teacher.spec, options, ways[fitter])

        def accuracy(student: Student = student, bits: str = bits) -> float:
            fitted = student.fit(teacher, pixels, Bits.parse(bits), first_last=8)
            return score_student(fitted, reference)["accuracy"]

        results.once("fits", key, accuracy)


def summary(kept: dict[str, Any]) -> dict[str, Any]:
    """Fast minus plain over the finished sets: losses in per cent of the plain mean, accuracies in points."""
    fits, losses = kept.get("fits", {}), kept.get("losses", {})
    found: dict[str, Any] = {}
    pairs = [
        (losses[f"set {n}, {PLAIN}"], losses[f"set {n}, {FAST}"])
        for n in range(LOSS_SETS)
        if f"set {n}, {FAST}" in losses
    ]
    if len(pairs) > 1:
        for term in pairs[0][0]:
            level = statistics.mean(plain[term] for plain, _ in pairs)
            found[f"{term} in %"] = interval(
                [100 * (fast[term] - plain[term]) / level for plain, fast in pairs]
            )
    for what, fast_key, plain_key in (
        ("images", f"images {FAST}, student {FAST}", f"images {PLAIN}, student {FAST}"),
        ("student", f"images {PLAIN}, student {FAST}", f"images {PLAIN}, student {PLAIN}"),
    ):
        for bits in BITS:
            differences = [
                fits[f"set {n}, {fast_key}, {bits}"] - fits[f"set {n}, {plain_key}, {bits}"]
                for n in range(SETS)
                if f"set {n}, {fast_key}, {bits}" in fits and f"set {n}, {plain_key}, {bits}" in fits
            ]
            if len(differences) > 1:
                found[f"{what} {bits}"] = interval(differences)
    return found


if __name__ == "__main__":
    typer.run(main)
