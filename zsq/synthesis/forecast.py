"""What a run will take, before it begins: time, disk, memory; and the refusal of one that cannot fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch

from zsq.contract import Generator
from zsq.core.effort import Effort
from zsq.core.errors import MemoryShortageError
from zsq.core.memory import available_bytes, device_bytes, resident_bytes, sharing
from zsq.core.runtime import Runtime
from zsq.engine.estimate import (
    Work,
    forecast,
    forward_gflops,
    image_bytes,
    score_bytes,
    shard_bytes,
    step_bytes,
)
from zsq.generators import effort_iterations, measured
from zsq.plan import Plan, WorkUnit
from zsq.synthesis.resolved import ResolvedRun


@dataclass(frozen=True)
class Memory:
    """Bytes that one process takes at its peak beyond what it has: of main memory, and of a CUDA device."""

    host: int
    device: int

    @classmethod
    def of(cls, method: Generator, plan: Plan) -> Memory:
        """From the shapes of one image's teacher pass; within about a third."""
        teacher, images = method.teacher, max(unit.num_images for unit in plan.units)
        work = score_bytes(teacher, images)
        if method.teacher_passes(method.options, images):
            work += step_bytes(teacher, plan.batch) + method.network_bytes(plan.batch)
        kept = image_bytes(teacher, images)
        on_cpu = torch.device(method.runtime.device).type == "cpu"
        return cls(kept + work, 0) if on_cpu else cls(kept, work)


def check_memory(job: ResolvedRun, processes: int) -> None:
    """Pass a run that fits, with `processes` of it on this machine.

    Raises:
        MemoryShortageError: it does not.
    """
    needed, device = Memory.of(job.method, job.plan), job.runtime.device
    for what, wanted, free in (
        ("memory", needed.host * processes, available_bytes()),
        (f"memory of {device}", needed.device * sharing(device, processes), device_bytes(device)),
    ):
        if free is not None and wanted > free:
            raise MemoryShortageError(
                f"{job.method.name} on {job.teacher.name} needs about {wanted / 1e9:.1f} GB of {what}",
                f"at most the {free / 1e9:.1f} GB that are free",
                what_to_lower(job),
            )


def what_to_lower(job: ResolvedRun) -> str:
    """The options that decide how much memory a run takes."""
    plan = job.plan
    options = [f"--batch (now {plan.batch})"]
    if plan.batches_per_group is None:
        options.append(f"--count (now {plan.count}: the whole set is made together)")
    else:
        options.append(f"--shard-size (now {plan.shard_size})")
    return f"lower {' or '.join(options)}"


def _extension(plan: Plan) -> str:
    before, added = plan.earlier[-1], plan.count - plan.earlier[-1]
    own = ", a group of their own: statistics of a whole set are those of these alone"
    return (
        f"{before} images stay as they are, {added} are added{own if plan.batches_per_group is None else ''}"
    )


def forecast_lines(job: ResolvedRun, missing: list[WorkUnit]) -> list[str]:
    """What the missing units take: time, disk and memory; for a whole run also what other efforts take and
    what was measured of them. First, of a set that is extended, what happens to it; then the step of values
    that become pixels."""
    lines = [_extension(job.plan)] if job.plan.earlier else []
    lines += [job.teacher.spec.step_line] if job.teacher.spec.step_line else []
    images = sum(unit.num_images for unit in missing)
    passes = job.method.teacher_passes(job.method.options, images)
    per_pass = job.seconds_per_pass if passes else 0.0
    fresh = len(missing) == len(job.plan.units)
    others = _other_efforts(job) if fresh and passes else []
    line = forecast(Work(passes, job.runtime), others, images, per_pass)
    disk = f"{shard_bytes(job.teacher, images) / 1e6:.1f} MB on disk"
    memory = f"{(Memory.of(job.method, job.plan).host + resident_bytes()) / 1e9:.1f} GB memory"
    lines.append(f"{job.method.name}: {line}, {disk}, {memory}")
    if "--effort" in line:
        lines.append(f"{job.method.name}, measured: {measured(type(job.method))}")
    return lines


def _other_efforts(job: ResolvedRun) -> list[Work]:
    """The whole run at the efforts that would give it other iterations."""
    cls, spec, config = type(job.method), job.teacher.spec, job.config
    gflops = forward_gflops(job.teacher)
    found = []
    for effort in get_args(Effort):
        iterations = effort_iterations(cls, spec, effort)
        options = cls.options_class.resolve(cls.name, spec, config.set, iterations, job.plan.batch)
        passes = cls.teacher_passes(options, job.plan.count)
        if passes != cls.teacher_passes(job.method.options, job.plan.count):
            runtime = Runtime.resolve(**config.runtime.model_dump(), total_gflops=gflops * passes)
            found.append(Work(passes, runtime, effort))
    return found
