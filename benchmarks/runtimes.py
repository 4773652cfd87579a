"""What programs make of a student: `python benchmarks/runtimes.py PROGRAM`.

PROGRAM is one of `runtime_tools.RUNTIMES`, in its environment. `ptq` at W8A8 with symmetric weights, fitted
on 64 real images, runs there beside the float network. Its outputs are compared with those of the student
in PyTorch, and both are timed one image at a time, in turns, on one thread. Rows are kept in
benchmarks/results/runtimes.json and are not measured again.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import CIFAR10, RESNET20, TEST, TRAIN, WEIGHTS, Results
from runtime_tools import RUNTIMES, Deployed, Predict
from torch import Tensor

from zsq.contract import FittedStudent, Teacher
from zsq.core.errors import first_line
from zsq.core.runtime import Runtime
from zsq.images.sources import images_for
from zsq.students import create
from zsq.tasks.nesting import named_tensors, plain
from zsq.teacher import load_teacher
from zsq.widths import Bits

DATA = CIFAR10.parent
# Network -> card or name, weights, images to fit, images to compare, and how many of these.
NETWORKS: dict[str, tuple[str, Path | None, Path | str, Path | str, int]] = {
    "resnet20": (RESNET20, WEIGHTS, TRAIN, TEST, 200),
    "carn-m": (
        f"file:{DATA / 'sr/carn_m_x4.toml'}",
        None,
        DATA / "sr/bsd100_lr48_train.npz",
        DATA / "sr/bsd100_lr48_eval.npz",
        20,
    ),
    "fastestdet": (
        f"file:{DATA / 'detector/fastestdet.toml'}",
        None,
        DATA / "detector/calibration80.zip",
        DATA / "detector/eval77.zip",
        20,
    ),
}
NUM_FITTED, TURNS, TIMED = 64, 7, 10
OPTIONS = {"symmetric_weights": True}
MOST_SAID = 300


def a_student(teacher: Teacher, images: Tensor) -> FittedStudent:
    """`ptq` at W8A8, as all programs get it."""
    return create("ptq", teacher.spec, OPTIONS, Runtime(threads=1)).fit(teacher, images, Bits.parse("W8A8"))


@torch.no_grad()
def compared(deployed: Deployed, fitted: FittedStudent, teacher: Teacher, norm: Tensor) -> dict[str, Any]:
    """Outputs of a deployed student beside its own: the largest difference over all outputs in percent of
    the range of each, and the signal-to-noise ratios of both against the teacher, of the worst output."""
    found = [_stacked(deployed.predict, image) for image in norm.split(1)]
    outputs = [torch.cat(parts) for parts in zip(*found, strict=True)]
    exact, own = (_outputs(network, norm) for network in (teacher.network, fitted.network))
    if [each.shape for each in outputs] != [each.shape for each in own]:
        raise ValueError(f"outputs of {[tuple(each.shape) for each in outputs]}")
    triples = list(zip(outputs, own, exact, strict=True))
    return {
        "largest_percent": round(max(_largest(there, here) for there, here, _ in triples), 3),
        "sqnr": round(min(_decibels(there, floats) for there, _, floats in triples), 2),
        "sqnr_student": round(min(_decibels(here, floats) for _, here, floats in triples), 2),
    }


def _stacked(predict: Predict, image: Tensor) -> list[Tensor]:
    return [each.clone() for each in predict(image.contiguous())]


def _outputs(network: torch.nn.Module, norm: Tensor) -> list[Tensor]:
    found = [[each for _, each in named_tensors(plain(network(image)))] for image in norm.split(1)]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def _largest(there: Tensor, here: Tensor) -> float:
    return 100 * ((there - here).abs().max() / (here.max() - here.min())).item()


def _decibels(values: Tensor, exact: Tensor) -> float:
    return 10 * (exact.square().mean() / (values - exact).square().mean()).log10().item()


def timed(quantized: Deployed, floats: Deployed, norm: Tensor) -> dict[str, float]:
    """Milliseconds per image, the median of turns in which both stand side by side, and how many times
    faster the student is, the median of the turns' ratios."""
    images = [image.contiguous() for image in norm[:TIMED].split(1)]
    turns: list[tuple[float, ...]] = []
    for _ in range(TURNS + 1):
        turns.append(tuple(_milliseconds(each.predict, images) for each in (quantized, floats)))
    # The first turn warms up.
    own, of_float = zip(*turns[1:], strict=True)
    ratios = [slow / fast for fast, slow in turns[1:]]
    return {
        "milliseconds": round(statistics.median(own), 3),
        "milliseconds_float": round(statistics.median(of_float), 3),
        "times_faster": round(statistics.median(ratios), 2),
    }


def _milliseconds(predict: Predict, images: list[Tensor]) -> float:
    start = time.perf_counter()
    for image in images:
        predict(image)
    return 1000 * (time.perf_counter() - start) / len(images)


def row_of(program: str, network: str) -> dict[str, Any]:
    """One row; where the program fails, what it said."""
    name, weights, train, test, count = NETWORKS[network]
    deploy, packages = RUNTIMES[program]
    teacher = load_teacher(name, weights)
    fitted = a_student(teacher, images_for(teacher, str(train), limit=NUM_FITTED).pixels)
    norm = teacher.spec.pixels_to_norm(images_for(teacher, str(test), limit=count).pixels)
    row: dict[str, Any] = {"versions": {package: metadata.version(package) for package in packages}}
    with tempfile.TemporaryDirectory() as folder:
        # Whatever a program raises is what there is to say of it.
        try:
            quantized, floats = deploy(fitted, teacher, Path(folder))
            row |= compared(quantized, fitted, teacher, norm)
            sizes = {"bytes": quantized.file_bytes, "bytes_float": floats.file_bytes}
            return row | sizes | timed(quantized, floats, norm)
        except Exception as error:
            return row | {"failed": _said(error)[:MOST_SAID]}


def _said(error: BaseException) -> str:
    """What an error says, and the one that it stands for."""
    cause = f", from {_said(error.__cause__)}" if error.__cause__ is not None else ""
    return f"{type(error).__name__}: {first_line(error)}{cause}"


def main(
    program: Annotated[str, typer.Argument(help="A name of runtime_tools.RUNTIMES.")],
    network: Annotated[str | None, typer.Option(help="One of the networks alone.")] = None,
) -> None:
    """Measure what is missing of one program's rows."""
    torch.set_num_threads(1)
    results = Results("runtimes", "OMP_NUM_THREADS=1 python benchmarks/runtimes.py PROGRAM")
    for name in [network] if network else NETWORKS:
        facts = {"program": program, "network": name}
        if not results.has(facts):
            results.add(facts | row_of(program, name), order=lambda row: (row["network"], row["program"]))


if __name__ == "__main__":
    typer.run(main)
