"""How fast a method runs here: from two short runs of its own on a few images."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zsq.contract import Generator, Silent, Teacher
from zsq.core.runtime import Runtime
from zsq.engine.estimate import job_seconds, seconds_per_image_iteration
from zsq.generators import create
from zsq.plan import Plan

# At least so many images, and of small ones, which are slower in small batches, what a few seconds allow.
TRIAL_IMAGES = 32
TRIAL_SECONDS = 5.0
TRIAL_ITERATIONS = (1, 4)

# Shorter jobs are estimated from a forward pass alone, which knows nothing of the method.
WORTH_A_TRIAL_SECONDS = 30.0


def seconds_per_pass(
    teacher: Teacher,
    method: type[Generator],
    overrides: Mapping[str, Any],
    passes: int,
    batch: int,
    runtime: Runtime,
) -> float:
    """Seconds of one image's teacher pass where nothing is compiled, for a job of `passes` of them.

    Args:
        overrides: of the method's options.
    """
    rough, facts = seconds_per_image_iteration(teacher, batch), method.facts
    # Neither the training of a network nor images that are read have a short form.
    has_trial = not (facts.trains_network or facts.needs_real or "iterations" in overrides)
    if not has_trial or job_seconds(rough, passes, runtime) < WORTH_A_TRIAL_SECONDS:
        return rough
    plain = Runtime(runtime.device, threads=runtime.threads)
    allowed = round(TRIAL_SECONDS / (sum(TRIAL_ITERATIONS) * rough))
    images = min(batch, max(TRIAL_IMAGES, allowed))
    # A trial as long as the job says nothing in time.
    if passes <= images * sum(TRIAL_ITERATIONS):
        return rough
    short, longer = (
        create(method.name, teacher, overrides, iterations, plain, images) for iterations in TRIAL_ITERATIONS
    )
    _seconds(short, images)  # the first of a process takes longer
    more = _seconds(longer, images) - _seconds(short, images)
    passes_more = method.teacher_passes(longer.options, images) - method.teacher_passes(short.options, images)
    return more / passes_more if more > 0 else rough


def _seconds(method: Generator, images: int) -> float:
    group = Plan(images, images, images, 0, method.batches_per_group).groups[0]
    with (
        warnings.catch_warnings(action="ignore"),
        method.runtime.in_force(),
        tempfile.TemporaryDirectory() as cache,
    ):
        method.prepare(0, Path(cache), Silent())
        start = time.perf_counter()
        method.synthesize(group, Silent())
        return time.perf_counter() - start
