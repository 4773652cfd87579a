"""What a million images of 224 px take, by the planner: `python benchmarks/million.py`.

The plan of a run of 1,000,000 images on a ResNet-18 is made as a run makes it, and its units are divided over
processes as they are divided there. Time follows from the speed in benchmarks/results/throughput.json, memory
from the estimate that a run states. No image is made. Keeps benchmarks/results/million.json.
"""

from __future__ import annotations

import statistics
import time

import torchvision
import typer
from common import Results

from zsq.contract import Teacher
from zsq.core.imagespec import ImageSpec
from zsq.engine.estimate import shard_bytes
from zsq.generators import create, default_effort, effort_iterations, method_class
from zsq.plan import Plan
from zsq.report.tables import Grid
from zsq.synthesis.forecast import Memory

COUNT, SHARD_SIZE, METHOD = 1_000_000, 256, "deepinversion"
# (machines, processes on each), of two threads like the measured ones
SPLITS = ((1, 1), (1, 8), (8, 8), (64, 8))


def main() -> None:
    """Plan, divide, and keep the figures."""
    network = torchvision.models.resnet18(weights=None)
    spec = ImageSpec(size=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    teacher = Teacher("resnet18", network, spec, 1000, "0" * 64)
    cls = method_class(METHOD)
    method = create(METHOD, teacher, iterations=effort_iterations(cls, spec, default_effort(spec)))
    batch = cls.default_batch(spec)
    start = time.process_time()
    plan = Plan(COUNT, batch, SHARD_SIZE, 0, cls.grouping(method.options))
    units = plan.units
    planning = time.process_time() - start
    rates = Results("throughput").read()["rows"]["resnet18"]["rates"]["zsq"]
    passes = cls.teacher_passes(method.options, COUNT) // COUNT
    seconds_per_image = passes / statistics.median(rates)
    memory = Memory.of(method, plan).host
    rows = []
    for machines, each in SPLITS:
        processes = machines * each
        # As `synthesize` divides them.
        shares = [sum(unit.num_images for unit in units[rank::processes]) for rank in range(processes)]
        rows.append(
            {
                "machines": machines,
                "processes": processes,
                "largest_share": max(shares),
                "smallest_share": min(shares),
                "hours": round(max(shares) * seconds_per_image / 3600, 1),
                "memory_per_machine_gb": round(each * memory / 1e9, 1),
            }
        )
    disk = shard_bytes(teacher, COUNT)
    Results("million", "python benchmarks/million.py").write(
        count=COUNT, method=METHOD, passes=passes, batch=batch, shards=plan.num_shards,
        planning_seconds=round(planning, 1), disk_gb=round(disk / 1e9, 1), rows=rows,
    )  # fmt: skip


def million_grid() -> Grid:
    """One line per division."""
    rows = Results("million").read()["rows"]
    lines = tuple(
        (
            str(row["machines"]),
            str(row["processes"]),
            f"{row['smallest_share']:,} to {row['largest_share']:,}",
            f"{row['hours']:,.0f}" if row["hours"] >= 10 else f"{row['hours']:.1f}",
            f"{row['memory_per_machine_gb']:.1f}",
        )
        for row in rows
    )
    header = ("machines", "processes", "images of a process", "hours", "GB of memory per machine")
    return Grid(header, lines, 0)


if __name__ == "__main__":
    typer.run(main)
