"""Which torchvision classifiers each student takes: `python benchmarks/zoo.py [--students S] [--networks N]`.

Every PTQ student of the table, or those named, is fitted on every classifier with random weights, ten
classes, tiny images and two iterations at W4A4, then saved and loaded. What is measured is that it works, or
why it does not, which is summed up in the end. Finished rows are kept in `benchmarks/results/zoo.json` and
are not measured again.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Annotated, Any

import torch
import torchvision
import typer
from common import BudgetHours, Results
from torch import Tensor, nn

import zsq
from zsq.bench import Budget
from zsq.contract import FittedStudent, Teacher
from zsq.core.errors import ZsqError
from zsq.core.imagespec import ImageSpec
from zsq.core.runtime import Runtime
from zsq.fitting.training import TrainingOptions
from zsq.graph import capture
from zsq.saved.cost import student_cost
from zsq.students import STUDENTS, create
from zsq.teacher.load import build_without_global_rng
from zsq.teacher.torchvision_models import torchvision_names
from zsq.widths import Bits

PTQ = [name for name, kind in STUDENTS.items() if not issubclass(kind.options_class, TrainingOptions)]
BITS, FIRST_LAST = Bits(4, 4), 8
# What makes a fit short, of the options that a student has.
SHORT = {"iterations": 2, "batch": 4, "teacher_iterations": 2, "weight_observer": "minmax"}
NUM_IMAGES, NUM_CLASSES, SIZES = 8, 10, (64, 96, 128, 224)


def main(
    students: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(PTQ),
    networks: Annotated[str | None, typer.Option(help="Names, separated by commas; all if none.")] = None,
    largest: Annotated[float, typer.Option(help="Leave out networks of more million parameters.")] = 150,
    budget_hours: BudgetHours = None,
) -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    budget = Budget(budget_hours)
    results = Results("zoo", "OMP_NUM_THREADS=1 python benchmarks/zoo.py", timed=False)
    results.write(bits=str(BITS))
    for name in networks.split(",") if networks else torchvision_names():
        missing = [
            student
            for student in students.split(",")
            if not results.has({"network": name, "student": student})
        ]
        if not missing or budget.spent():
            continue
        network = _build(name)
        millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        if millions > largest:
            typer.echo(f"{name} left out: {millions:.0f} million parameters")
            continue
        for student in missing:
            if not budget.spent():
                row = {"network": name, "student": student, **_row(name, network, student)}
                results.add(row, order=lambda each: (each["network"], each["student"]))
    for line in _summary(results.rows()):
        typer.echo(line)


def _summary(all_rows: list[dict[str, Any]]) -> Iterator[str]:
    """How many networks each student takes, and which it does not, by reason."""
    for student in PTQ:
        rows = [row for row in all_rows if row["student"] == student]
        others: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            if row["outcome"] != "works":
                reason = row["why"].replace(row["network"], "NETWORK").split(" (")[0].split(";")[0]
                others[f"{row['outcome']}: {reason}"].append(row["network"])
        yield f"{student}: {len(rows) - sum(map(len, others.values()))} of {len(rows)} networks"
        yield from (f"  {reason}: {', '.join(names)}" for reason, names in others.items())


def _build(name: str) -> nn.Module:
    def build() -> nn.Module:
        torch.manual_seed(0)
        # Auxiliary heads are for training.
        heads = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(name, weights=None, num_classes=NUM_CLASSES, **heads)

    return build_without_global_rng(build).eval()


def _row(name: str, network: nn.Module, student: str) -> dict[str, Any]:
    """`works` with size, cost and seconds, or why not: `refused` in one line of zsq's, or `failed`."""
    started = time.process_time()
    try:
        teacher, pixels = _teacher(name, network)
        capture(network, teacher.example())
        fitted = _fit(student, teacher, pixels)
        _check(fitted, teacher, pixels)
    except ZsqError as error:
        return {"outcome": "refused", "why": str(error)}
    # A benchmark of what fails has to survive it.
    except Exception as error:
        return {"outcome": "failed", "why": f"{type(error).__name__}: {str(error).strip()[:300]}"}
    cost = student_cost(fitted)
    return {
        "outcome": "works",
        "size": teacher.spec.size[0],
        "macs": cost.macs,
        "bit_operations": cost.bit_operations,
        "weight_bytes": cost.weight_bytes,
        "quantized_tensors": len(fitted.tensors),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def _teacher(name: str, network: nn.Module) -> tuple[Teacher, Tensor]:
    """The network at the least size that it takes, and noise for it."""
    for size in SIZES:
        spec = ImageSpec(size=(size, size), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        teacher = Teacher(name, network, spec, NUM_CLASSES, "0" * 64)
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (NUM_IMAGES, *spec.shape), dtype=torch.uint8, generator=generator)
        try:
            with torch.no_grad():
                network(spec.pixels_to_norm(pixels))
        # Too small for its pooling or its position table.
        except (RuntimeError, AssertionError):
            continue
        return teacher, pixels
    raise ValueError(f"takes no image of {SIZES} px")


def _fit(student: str, teacher: Teacher, pixels: Tensor) -> FittedStudent:
    known = STUDENTS[student].options_class.model_fields
    options = {key: value for key, value in SHORT.items() if key in known}
    fitted = create(student, teacher.spec, options, Runtime())
    return fitted.fit(teacher, pixels, BITS, first_last=FIRST_LAST)


@torch.no_grad()
def _check(fitted: FittedStudent, teacher: Teacher, pixels: Tensor) -> None:
    """Finite logits, and the same after saving and loading."""
    norm = teacher.spec.pixels_to_norm(pixels[:2])
    logits = fitted.network(norm)
    if not bool(logits.isfinite().all()):
        raise ValueError("logits are not finite")
    with tempfile.TemporaryDirectory() as folder:
        zsq.save_student(fitted, teacher, folder)
        if not torch.equal(zsq.load_student(folder).network(norm), logits):
            raise ValueError("the loaded student gives other logits")


if __name__ == "__main__":
    typer.run(main)
