"""Speed on a GPU, in under ten minutes: `make bench-gpu`, or `python benchmarks/gpu.py`.

Image-iterations a second at the table's batch and at the largest that fits, one fit of `lsq-kd` and of
`genie-m` on a ResNet-20 with random weights, which takes the same time, and the peak memory of each. Keeps
benchmarks/results/gpu.json. A rate is the median of three rounds, the contenders taking turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import torch
import typer
from common import Results
from throughput import Steps, convolution_steps, network_of, textbook_steps, zsq_steps

from zsq.contract import Teacher
from zsq.core.memory import is_shortage
from zsq.core.runtime import Runtime
from zsq.students import create
from zsq.teacher.cifar_resnet import CIFAR_SPEC
from zsq.widths import Bits

BATCHES = {"resnet20": 256, "resnet18": 64, "mobilenet_v2": 64}
ROUNDS = 3
# Doubled from the table's batch while it fits.
DOUBLINGS = 6
FITS = {"lsq-kd": 640, "genie-m": 200}
FIT_IMAGES = 512


def main(
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the command: nothing is kept.")] = "cuda",
    steps: Annotated[int, typer.Option(help="Steps of a round.", min=1)] = 20,
) -> None:
    """Measure and keep everything.

    Raises:
        BadParameter: there is no CUDA device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device that torch can use; --device cpu tries the command")
    rows = [row for name, batch in BATCHES.items() for row in throughput(name, batch, device, steps)]
    fits = [fit(name, iterations, device) for name, iterations in FITS.items()]
    if device == "cuda":
        card = torch.cuda.get_device_name()
        Results("gpu", "python benchmarks/gpu.py").write(card=card, rows=rows, fits=fits)


def contenders(name: str, batch: int, device: str) -> dict[str, Callable[[], Steps]]:
    """What is compared on one network."""
    return {
        "zsq, compiled bf16": partial(zsq_steps, name, True, batch),
        "zsq, uncompiled fp32": partial(zsq_steps, name, False, batch),
        "textbook, fp32": partial(textbook_steps, name, batch, device),
        "convolutions, bf16, one graph": partial(convolution_steps, name, batch, device),
    }


def throughput(name: str, batch: int, device: str, steps: int) -> list[dict[str, Any]]:
    """A row per contender at the table's batch, and one of uncompiled zsq at the largest that fits."""
    ready = {label: make() for label, make in contenders(name, batch, device).items()}
    first = {label: timed(run, 2, device)[0] for label, run in ready.items()}
    found: dict[str, list[tuple[float, int]]] = {label: [] for label in ready}
    for _ in range(ROUNDS):
        for label, run in ready.items():
            found[label].append(rate(run, batch, device, steps))
    rows: list[dict[str, Any]] = [
        {
            "network": name, "contender": label, "batch": batch, "first_seconds": round(first[label], 1),
            "rates": [round(each, 1) for each, _ in rates], "peak_bytes": max(peak for _, peak in rates),
        }
        for label, rates in found.items()
    ]  # fmt: skip
    if device == "cuda":
        del ready
        rows.append(largest(name, batch, device, steps))
    for row in rows:
        typer.echo(
            f"{name} {row['contender']}, batch {row['batch']}: {statistics.median(row['rates']):.0f}/s"
        )
    return rows


def largest(name: str, batch: int, device: str, steps: int) -> dict[str, Any]:
    """Uncompiled zsq at the largest of the doubled batches that fits."""
    row: dict[str, Any] = {}
    for doubling in range(DOUBLINGS):
        size = batch * 2**doubling
        try:
            run = zsq_steps(name, False, size)
            run(2)
            each, peak = rate(run, size, device, steps)
        except (MemoryError, RuntimeError) as error:
            if not is_shortage(error):
                raise
            break
        label = "zsq, uncompiled fp32, largest batch"
        row = {
            "network": name,
            "contender": label,
            "batch": size,
            "rates": [round(each, 1)],
            "peak_bytes": peak,
        }
        torch.cuda.empty_cache()
    return row


def rate(run: Steps, batch: int, device: str, steps: int) -> tuple[float, int]:
    """Image-iterations a second, without what surrounds the steps, and the peak of the device's memory."""
    one, _ = timed(run, 1, device)
    many, peak = timed(run, steps + 1, device)
    return batch * steps / max(many - one, 1e-9), peak


def timed(run: Callable[[int], Any], count: int, device: str) -> tuple[float, int]:
    """Seconds and peak bytes."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    run(count)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() if device == "cuda" else 0


def fit(name: str, iterations: int, device: str) -> dict[str, Any]:
    """One fit, compiling included where the student compiles."""
    runtime = Runtime.resolve(device=device)
    teacher = Teacher("resnet20", network_of("resnet20"), CIFAR_SPEC, 10, "0" * 64).to(device)
    images = FIT_IMAGES if device == "cuda" else 32
    pixels = torch.randint(256, (images, *CIFAR_SPEC.shape), dtype=torch.uint8)
    student = create(name, CIFAR_SPEC, {"iterations": iterations if device == "cuda" else 2}, runtime)

    def run(count: int) -> None:
        with runtime.in_force():
            student.fit(teacher, pixels, Bits(2, 4), first_last=8)

    seconds, peak = timed(run, 1, device)
    typer.echo(f"{name}, {student.options.iterations} iterations: {seconds:.1f} s")
    return {
        "student": name, "bits": "W2A4", "iterations": student.options.iterations, "images": images,
        "seconds": round(seconds, 1), "peak_bytes": peak,
    }  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
