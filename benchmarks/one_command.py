"""What `zsq quantize --teacher T --bits B` announces, takes and reaches: `python benchmarks/one_command.py`.

Each row is one call in a process and with a compile cache of its own, so as a user meets it the first time.
`announced_seconds` is what it says before the work, `taken_seconds` what the whole call took. torchvision's
networks get random weights: their rows are of time alone. ResNet-20 is scored, and so is the same student on
as many real training images, in disjoint sets.

Rows are kept in benchmarks/results/one-command.json; finished ones are not measured again.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import torchvision
import typer
from common import RESNET20, TEST, WEIGHTS, BudgetHours, Results, load_resnet20, run_again, training_images

import zsq
from zsq.bench import Budget
from zsq.config import QuantizeConfig, RuntimeConfig
from zsq.core.progress import Reporter, duration
from zsq.core.runtime import Runtime
from zsq.measure.protocol import REAL
from zsq.measure.quantize import Places, Preparation, quantized
from zsq.report.tables import DASH, Grid, number
from zsq.request.defaults import TABLE, choose
from zsq.teacher.load import build_without_global_rng
from zsq.widths import FLOAT_BITS, Bits

MADE = "made"
UNITS = {"h": 3600, "min": 60, "s": 1}


class Heard(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        """Nothing yet."""
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        """See `Reporter`."""
        self.lines.append(line)
        super().say(line)


def seconds_of(text: str) -> int:
    """`41 min 5 s` -> 2465."""
    return sum(int(number) * UNITS[unit] for number, unit in re.findall(r"(\d+) (h|min|s)\b", text))


def made(teacher: str, bits: str, number: int, threads: int) -> dict[str, Any]:
    """One call, with seed `number`."""
    reporter, start = Heard(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        scored = teacher == RESNET20
        result = zsq.quantize(
            teacher,
            bits=bits,
            weights=WEIGHTS if scored else _random_weights(teacher, Path(folder)),
            eval=TEST if scored else None,
            seed=number,
            out=Path(folder) / "student",
            runtime=RuntimeConfig(threads=threads),
            reporter=reporter,
        )
    taken = time.perf_counter() - start
    (announced,) = (found[1] for line in reporter.lines if (found := re.match(r"about (.*) in all", line)))
    return {
        "announced_seconds": seconds_of(announced),
        "taken_seconds": round(taken),
        "announced": next(line for line in reporter.lines if "by default" in line),
        **({"accuracy": round(result.metrics["accuracy"], 2)} if scored else {}),
    }


def _random_weights(name: str, folder: Path) -> Path:
    network = build_without_global_rng(torchvision.models.get_model, name=name, weights=None)
    torch.save(network.state_dict(), folder / "random.pt")
    return folder / "random.pt"


def real(bits: str, number: int, num_sets: int, threads: int) -> dict[str, Any]:
    """The default student of ResNet-20 on one of the disjoint sets of real images."""
    teacher, runtime = load_resnet20(), Runtime(threads=threads)
    chosen = choose(teacher, Bits.parse(bits))
    config = QuantizeConfig(
        teacher=RESNET20, student=chosen.student, bits=bits, eval=TEST, set=dict(chosen.options), seed=number
    )
    chosen_set = training_images(teacher.spec).disjoint_sets(num_sets, chosen.count, 0)[number]
    start = time.perf_counter()
    result = quantized(Preparation.of(config, teacher, runtime, Places()), chosen_set, Reporter())
    return {
        "taken_seconds": round(time.perf_counter() - start),
        "accuracy": round(result.metrics["accuracy"], 2),
    }


def main(
    only: Annotated[str | None, typer.Option(help="Teachers, separated by commas; all if none.")] = None,
    bits: Annotated[str, typer.Option(help="Widths, separated by commas.")] = "W8A8,W4A4",
    sets: Annotated[int, typer.Option(help="Sets of ResNet-20, real and made.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads.")] = 2,
    budget_hours: BudgetHours = None,
    one: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure what is missing."""
    if one is not None:
        teacher, width, source, number = one.split()
        measure = made(teacher, width, int(number), threads) if source == MADE else None
        typer.echo(json.dumps(measure or real(width, int(number), sets, threads)))
        return
    results, budget = Results("one-command", "python benchmarks/one_command.py"), Budget(budget_hours)
    for row in _cases(only, bits, sets):
        if budget.spent():
            break
        if not results.has(row):
            again = (__file__, "--one", " ".join(map(str, row.values())), "--sets", str(sets))
            with tempfile.TemporaryDirectory() as cache:
                found = run_again(*again, "--threads", str(threads), environment={"XDG_CACHE_HOME": cache})
            results.add({**row, "threads": threads, **found}, order=_order)


def _cases(only: str | None, bits: str, sets: int) -> list[dict[str, Any]]:
    teachers = only.split(",") if only else [RESNET20, "resnet18", "mobilenet_v2"]
    return [
        {"teacher": teacher, "bits": width, "source": source, "set": number}
        for teacher in teachers
        for width in bits.split(",")
        for source in ((MADE, REAL) if teacher == RESNET20 else (MADE,))
        for number in range(sets if teacher == RESNET20 else 1)
    ]


def _order(row: dict[str, Any]) -> Any:
    return row["teacher"], -Bits.parse(row["bits"]).weights, row["source"], row["set"]


def defaults_grid() -> Grid:
    """What a request gets, row by row."""
    header = ("network", "bits", "method", "images", "passes", "student")
    lines = []
    for row in TABLE:
        size = f"{row.side} px and more" if row.side else "any"
        size += "" if math.isinf(row.gflops) else f", at most {row.gflops:g} GFLOPs"
        bits = f"{row.bits} and more" if row.bits > 1 else "any"
        bits += f", activations at most {row.activations}" if row.activations < FLOAT_BITS else ""
        options = " ".join(f"{key}={value}" for key, value in row.options.items())
        lines.append(
            (
                size,
                bits,
                f"`{row.method}`",
                str(row.count),
                DASH if row.iterations is None else str(row.iterations),
                f"`{'` or `'.join(row.students)}`{f', {options}' if options else ''}",
            )
        )
    return Grid(header, tuple(lines), 3)


def calls_grid() -> Grid:
    """Announced and taken time of whole calls; accuracy, where it is measured, beside real images."""
    kept = Results("one-command").read()
    rows = [{"machine": kept["machine"], **row} for row in kept["rows"]]
    header = (
        "teacher",
        "bits",
        "processor",
        "announced",
        "taken",
        "taken / announced",
        "accuracy",
        "on real images",
    )
    lines = []
    for call in dict.fromkeys(map(_call, rows)):
        own = [row for row in rows if _call(row) == call]
        made = [row for row in own if row["source"] != REAL]
        announced, taken = (
            statistics.mean(row[key] for row in made) for key in ("announced_seconds", "taken_seconds")
        )
        scores = (
            [row["accuracy"] for row in own if (row["source"] == REAL) == is_real and "accuracy" in row]
            for is_real in (False, True)
        )
        lines.append(
            (
                *(*call, duration(announced), duration(taken), f"{taken / announced:.2f}"),
                *(number(statistics.mean(each)) if each else DASH for each in scores),
            )
        )
    return Grid(header, tuple(lines), 3)


def _call(row: dict[str, Any]) -> tuple[str, str, str]:
    """Teacher, bits and processor."""
    return row["teacher"], row["bits"], row["machine"]["vector_instructions"]


if __name__ == "__main__":
    typer.run(main)
