"""What a run costs: operations for static rules; seconds and bytes for what is said beforehand."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from zsq.contract import Student, Teacher
from zsq.core.imagespec import ImageSpec
from zsq.core.progress import duration
from zsq.core.runtime import Runtime, one_thread
from zsq.core.wording import quantity
from zsq.engine.chunked import even_size, images_in_memory
from zsq.engine.executed import blank, executed, images_at_once, layer_values
from zsq.engine.outputs import tensors
from zsq.engine.scoring import SCORE_BATCH
from zsq.widths import Bits

# What compiling gains and costs on a CPU: benchmarks/throughput.py, ResNet-20 and ResNet-18.
COMPILED_SPEEDUP = {"bf16": 2.0, "fp32": 1.4}
COMPILE_SECONDS = 60.0

# A forward and an input-gradient pass with statistics, in forward passes: measured 2.7 to 3.2 on ResNet-20
# and ResNet-18.
FORWARDS_PER_ITERATION = 3.0

# A training step of a student per image, in teacher passes of synthesis: ResNet-20.
STEP_COST = 1.7

# Forward passes of each image in a fit: ranges of activations, and what enters the units.
FORWARDS_PER_FIT = 10

# A forward pass of a student, in those of its teacher: ptq at W4A4 on ResNet-20.
FORWARDS_PER_SCORE = 1.7

# Of a value that a layer puts out, over a step: some are kept for the backward pass, some are not. Measured 3
# to 6 on ResNet-18 and MobileNetV2.
STEP_BYTES_PER_VALUE = 5

# Shorter than this nobody looks for a shorter run.
WORTH_CHOOSING_SECONDS = 60.0


def step_bytes(teacher: Teacher, batch: int) -> int:
    """Memory of one step of `batch` images at its peak, about: what the teacher's layers keep for the
    backward pass."""
    images = blank(teacher.network, teacher.spec)
    values = layer_values(teacher.network, teacher.spec.standard_to_norm(images))
    at_once = even_size(batch, images_in_memory(values))
    return STEP_BYTES_PER_VALUE * at_once * values


def training_bytes(network: nn.Module, inputs: Sequence[Tensor], batch: int) -> int:
    """Memory of one training step of a network, about: what its layers keep, and its weights with gradient
    and two moments. `inputs` are those of any number of images."""
    values = layer_values(network, *inputs) // len(inputs[0])
    weights = sum(parameter.numel() for parameter in network.parameters())
    return STEP_BYTES_PER_VALUE * batch * values + 4 * 4 * weights


def score_bytes(teacher: Teacher, images: int) -> int:
    """Memory of scoring finished images, about: three of the largest outputs of a layer, in float32."""
    network, spec = teacher.network, teacher.spec
    calls = executed(network, lambda: network(spec.standard_to_norm(blank(network, spec))))
    at_once = images_at_once(network, spec, min(images, SCORE_BATCH))
    return 3 * 4 * at_once * max(call.num_values for call in calls)


def image_bytes(teacher: Teacher, images: int) -> int:
    """Main memory of `images` that are made before the first of them is stored: about four float32 copies, or
    pixels with gradient and two moments."""
    return 4 * 4 * images * math.prod(teacher.spec.shape)


def shard_bytes(teacher: Teacher, images: int) -> int:
    """Of `images` on disk, about: pixels, outputs, and what is said of each."""
    return images * (math.prod(teacher.spec.shape) + 4 * (teacher.num_outputs or 0) + 64)


def forward_gflops(teacher: Teacher) -> float:
    """10^9 floating-point operations of one image's forward pass; a multiply-add counts as two."""
    return network_gflops(teacher.network, teacher.spec)


def network_gflops(network: nn.Module, spec: ImageSpec) -> float:
    """As `forward_gflops`, of any network that takes images of `spec` in its norm space."""
    counter = FlopCounterMode(display=False)
    with one_thread, counter, torch.no_grad():
        network(spec.standard_to_norm(blank(network, spec)))
    return counter.get_total_flops() / 1e9


@torch.no_grad()
def seconds_per_image_iteration(teacher: Teacher, batch: int) -> float:
    """Time of one image's forward and backward pass here and now, from the faster of two forward passes; an
    estimate only."""
    device = blank(teacher.network, teacher.spec).device
    at_once = images_at_once(teacher.network, teacher.spec, min(batch, 64))
    images = torch.zeros(at_once, *teacher.spec.shape, device=device)
    teacher.logits(images[:1])
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        for output in tensors(teacher.logits(images)):
            output.sum().cpu()
        seconds.append(time.perf_counter() - start)
    return FORWARDS_PER_ITERATION * min(seconds) / len(images)


def fit_passes(student: Student, teacher: Teacher, num_images: int, bits: Bits) -> float:
    """Teacher passes that a fit of `student` at `bits` takes as long as, about."""
    looks = FORWARDS_PER_FIT * num_images / FORWARDS_PER_ITERATION if bits.quantize() else 0.0
    return STEP_COST * student.training_work(teacher, num_images, bits) + looks


def score_passes(num_images: int) -> float:
    """Teacher passes that scoring a student on so many images takes as long as, about."""
    return FORWARDS_PER_SCORE * num_images / FORWARDS_PER_ITERATION


def job_seconds(seconds_per_pass: float, passes: int, runtime: Runtime) -> float:
    """Seconds of `passes` forward and backward passes of one image each; from one timed forward pass, so an
    order of magnitude: nothing is decided by it."""
    seconds = seconds_per_pass * passes
    if not runtime.compile or not passes:
        return seconds
    return COMPILE_SECONDS + seconds / COMPILED_SPEEDUP[runtime.precision]


def estimated_seconds(teacher: Teacher, batch: int, passes: int, runtime: Runtime) -> float:
    """`job_seconds` on this machine."""
    return job_seconds(seconds_per_image_iteration(teacher, batch), passes, runtime)


@dataclass(frozen=True)
class Work:
    """Teacher passes of a run, and how they are computed; `effort` is its name where it has one."""

    passes: int
    runtime: Runtime
    effort: str = ""


def forecast(work: Work, others: Sequence[Work], images: int, seconds_per_pass: float) -> str:
    """`1024 images x 300 teacher passes, about 1 h 5 min compiled in one process (--effort quick, 30 passes:
    7 min 30 s; published, 1000: 3 h 40 min)`.

    Without a pass there is no time: that of drawing images is not known.

    Args:
        others: the same images at other efforts, named where the work takes a minute or longer.
    """
    if not work.passes:
        return f"{quantity(images, 'image')}, no teacher passes"
    seconds = job_seconds(seconds_per_pass, work.passes, work.runtime)
    how = "compiled" if work.runtime.compile else "uncompiled"
    passes = quantity(work.passes / images, "teacher pass")
    line = f"{quantity(images, 'image')} x {passes}, about {duration(seconds)} {how} in one process"
    if seconds < WORTH_CHOOSING_SECONDS or not others:
        return line
    named = [
        f"{other.effort}, {other.passes / images:g} passes: "
        f"{duration(job_seconds(seconds_per_pass, other.passes, other.runtime))}"
        for other in others
    ]
    return f"{line} (--effort {'; '.join(named)})"
