"""What a teacher's passes cost: operations for static rules, seconds for the estimate printed beforehand."""

from __future__ import annotations

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from zsq.contract import Teacher
from zsq.core.runtime import Runtime

# What compiling gains and costs on a CPU: benchmarks/throughput.py, ResNet-20 and ResNet-18.
COMPILED_SPEEDUP = {"bf16": 2.0, "fp32": 1.4}
COMPILE_SECONDS = 60.0

# A forward and an input-gradient pass with statistics, in forward passes: measured 2.7 to 3.2 on ResNet-20
# and ResNet-18.
FORWARDS_PER_ITERATION = 3.0


def forward_gflops(teacher: Teacher) -> float:
    """10^9 floating-point operations of one image's forward pass; a multiply-add counts as two."""
    device = next(teacher.network.parameters()).device
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        teacher.logits(torch.zeros(1, *teacher.spec.shape, device=device))
    return counter.get_total_flops() / 1e9


@torch.no_grad()
def seconds_per_image_iteration(teacher: Teacher, batch: int) -> float:
    """Time of one image's forward and backward pass here and now, from one forward pass; an estimate only."""
    device = next(teacher.network.parameters()).device
    images = torch.zeros(min(batch, 64), *teacher.spec.shape, device=device)
    teacher.logits(images[:1])
    start = time.perf_counter()
    teacher.logits(images).sum().cpu()
    return FORWARDS_PER_ITERATION * (time.perf_counter() - start) / len(images)


def estimated_seconds(teacher: Teacher, batch: int, passes: int, runtime: Runtime) -> float:
    """Seconds of `passes` forward and backward passes of one image each; from one timed forward pass, so an
    order of magnitude: nothing is decided by it."""
    seconds = seconds_per_image_iteration(teacher, batch) * passes
    if not runtime.compile:
        return seconds
    return COMPILE_SECONDS + seconds / COMPILED_SPEEDUP[runtime.precision]
