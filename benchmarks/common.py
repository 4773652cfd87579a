"""What benchmarks share: the network that they measure, and results as JSON that a later call completes."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import zsq
from zsq.config import RuntimeConfig
from zsq.contract import Teacher
from zsq.core.files import atomic_write_text
from zsq.core.imagespec import ImageSpec
from zsq.core.progress import Reporter
from zsq.generators import method_class
from zsq.images.imageset import ImageSet
from zsq.images.sources import images_for, load_images
from zsq.measure.evaluate import Reference, all_scores
from zsq.measure.protocol import REAL
from zsq.shards.manifest import library_versions
from zsq.students import create
from zsq.tasks import Scores
from zsq.teacher import load_teacher
from zsq.widths import Bits

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"

# The network that most of them measure, on the real images of ZSQ_DATA.
CIFAR10 = Path(os.environ.get("ZSQ_DATA", "../shared/data")) / "cifar10_jpeg"
RESNET20, WEIGHTS = "cifar10:resnet20", CIFAR10 / "resnet20.pt"
TRAIN, TEST = str(CIFAR10 / "train20000.zip"), str(CIFAR10 / "test5000.zip")

BudgetHours = Annotated[float | None, typer.Option(help="Begin nothing new after this time.")]
Threads = Annotated[int | None, typer.Option(help="Threads.")]
Jobs = Annotated[int | None, typer.Option(help="Processes that share the fits.")]


def machine() -> dict[str, str]:
    """What measured times depend on: system, processor, libraries."""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        **library_versions(),
    }


def load_resnet20() -> Teacher:
    """The CIFAR-10 ResNet-20 of ZSQ_DATA."""
    return load_teacher(RESNET20, WEIGHTS)


def training_images(spec: ImageSpec) -> ImageSet:
    """All real images that may calibrate."""
    return load_images(TRAIN, spec)


def test_images(spec: ImageSpec) -> ImageSet:
    """The 5000 images that accuracy is measured on."""
    return load_images(TEST, spec)


def synthetic(
    method: str, out: Path, *, count: int, iterations: int, threads: int | None = 1, seed: int = 0
) -> Path:
    """The folder of a method's images for that network, made or continued in `out`."""
    return zsq.generate(
        RESNET20,
        method,
        weights=WEIGHTS,
        count=count,
        iterations=iterations,
        out=out,
        seed=seed,
        resume=True,
        runtime=RuntimeConfig(threads=threads),
        reporter=Reporter(),
    )


def option_texts(options: Mapping[str, Any]) -> list[str]:
    """`learning_rate=5e-05`, ...: what distinguishes fits, short."""
    return [
        f"{name}={value if isinstance(value, str) else format(value, 'g')}" for name, value in options.items()
    ]


def takes_passes(method: str) -> bool:
    """Whether a method has teacher passes at all."""
    return "iterations" in method_class(method).options_class.model_fields


def images_of(
    source: str,
    teacher: Teacher,
    real: Path,
    out: Path,
    *,
    count: int,
    passes: int,
    threads: int | None,
    batch: int | None = None,
) -> ImageSet:
    """The images of `real`, or those of a method, made or continued in a folder of `out`."""
    if source == REAL:
        return images_for(teacher, real, limit=count)
    folder = zsq.generate(
        teacher.name,
        source,
        count=count,
        batch=batch,
        iterations=passes if takes_passes(source) else None,
        out=out / f"{source}-{passes}",
        resume=True,
        runtime=RuntimeConfig(threads=threads),
        reporter=Reporter(),
    )
    return images_for(teacher, folder)


def scored_fit(
    reference: Reference,
    images: ImageSet,
    student: str,
    bits: str,
    options: Mapping[str, Any],
    passes: Sequence[str] = (),
) -> tuple[Scores, int]:
    """What a student measures, and the seconds of its fit; `passes` are analytic ones around it."""
    teacher, runtime = reference.teacher, reference.runtime
    fitter = create(student, teacher.spec, dict(options), runtime, passes=passes)
    start = time.perf_counter()
    total = fitter.log_total(teacher, len(images), Bits.parse(bits))
    with Reporter().job(f"{student} {bits} on {images.source}", total) as log, runtime.in_force():
        fitted = fitter.fit(teacher, images.pixels, Bits.parse(bits), log=log)
    seconds = round(time.perf_counter() - start)
    return all_scores(fitted, reference), seconds


class Results:
    """One file of benchmarks/results, written anew after each finished piece.

    It is read again each time, since another call may be at work on other pieces.
    """

    def __init__(self, name: str, command: str | None = None, *, timed: bool = True) -> None:
        """`command` is what makes the file, and if `timed` it states the machine; without one both stay."""
        self.path = RESULTS / f"{name}.json"
        self.command, self.timed = command, timed

    def read(self) -> dict[str, Any]:
        """What is kept; nothing without a file."""
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    def write(self, **entries: Any) -> None:
        """Put `entries` in place of those of their names."""
        with self._alone():
            self._put(entries, anew=True)

    def _put(self, entries: dict[str, Any], anew: bool = False) -> None:
        made: dict[str, Any] = {"command": self.command} if self.command else {}
        if self.command and self.timed and (anew or not self._elsewhere()):
            made["machine"] = machine()
        atomic_write_text(self.path, json.dumps(self.read() | made | entries, indent=1) + "\n")

    def _elsewhere(self) -> bool:
        """Whether what is kept was timed on another machine than this one."""
        return self.timed and self.read().get("machine", machine()) != machine()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process writes a file of results meanwhile."""
        folder = os.open(RESULTS, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def rows(self) -> list[dict[str, Any]]:
        """The rows that are kept."""
        return self.read().get("rows", [])

    def has(self, facts: Mapping[str, Any]) -> bool:
        """Whether some row has all of these facts."""
        return any(facts.items() <= row.items() for row in self.rows())

    def add(self, row: Mapping[str, Any], order: Callable[[dict[str, Any]], Any] | None = None) -> None:
        """Say and keep one row; `order` sorts all of them.

        The file states one machine. A row that was timed on another one states its own.
        """
        if self._elsewhere():
            row = {**row, "machine": machine()}
        typer.echo(json.dumps(row))
        with self._alone():
            rows = [*self.rows(), dict(row)]
            self._put({"rows": sorted(rows, key=order) if order else rows})

    def once(self, group: str, name: str, measure: Callable[[], Any]) -> Any:
        """The value `name` of a group; measured, said and kept if it is not there.

        Raises:
            BadParameter: the values that are kept were timed on another machine.
        """
        values = self.read().get(group, {})
        if name not in values:
            if self._elsewhere():
                raise typer.BadParameter(
                    f"another machine measured {self.path.name}: move it away, and start anew"
                )
            found = measure()
            typer.echo(f"{name}: {json.dumps(found)}")
            with self._alone():
                self._put({group: self.read().get(group, {}) | {name: found}})
            return found
        return values[name]


def run_again(
    *arguments: str, environment: Mapping[str, str] | None = None, python: str = sys.executable
) -> Any:
    """The JSON that `python ARGUMENTS` prints as its last line, in a process of its own."""
    command = [python, *arguments]
    variables = os.environ | (environment or {})
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=variables).stdout
    return json.loads(printed.splitlines()[-1])
