"""How long a request will take on this machine, before it begins: its images, its fit, its scores."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass

import torch

from zsq.core.progress import duration
from zsq.engine.estimate import (
    FORWARDS_PER_ITERATION,
    fit_passes,
    job_seconds,
    score_passes,
    seconds_per_image_iteration,
)
from zsq.measure.quantize import FIT_IMAGES, Preparation
from zsq.students import create
from zsq.synthesis.resolved import ResolvedRun

# Short fits, whose times tell what an iteration, an image and the rest cost.
TRIAL_IMAGES = (8, 24)
TRIAL_ITERATIONS = (1, 4)

# Shorter fits are estimated from a forward pass.
WORTH_A_TRIAL_SECONDS = 30.0


@dataclass(frozen=True)
class Forecast:
    """Seconds of each part; `spent` are those of the trials themselves."""

    images: float
    student: float
    scores: float
    spent: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.images + self.student + self.scores + self.spent

    def line(self) -> str:
        """`about 41 min 0 s in all: images 32 min 0 s, student 8 min 40 s, this forecast 20 s`."""
        parts = [
            ("images", self.images),
            ("student", self.student),
            ("scores", self.scores),
            ("this forecast", self.spent),
        ]
        named = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts if round(seconds))
        return f"about {duration(self.total)} in all{f': {named}' if named else ''}"


def forecast_of(prepared: Preparation, count: int, job: ResolvedRun | None) -> Forecast:
    """What a fit on `count` images takes, and `job`, the images that are still to be made."""
    start = time.perf_counter()
    per_pass = seconds_per_image_iteration(prepared.teacher, TRIAL_IMAGES[1])
    images = 0.0 if job is None else images_seconds(job)
    student = students_seconds(prepared, count, per_pass)
    if prepared.evaluation is None:
        scored = min(FIT_IMAGES, count)
        score = score_passes(scored) + scored / FORWARDS_PER_ITERATION
    else:  # the teacher has its scores already
        score = score_passes(len(prepared.evaluation))
    scores = len(list(prepared.each())) * score * per_pass
    return Forecast(images, student, scores, time.perf_counter() - start)


def images_seconds(job: ResolvedRun) -> float:
    """Of a whole run: its teacher passes, as it computes them, and the last look at each image."""
    passes = job.method.teacher_passes(job.method.options, job.plan.count)
    scoring = job.plan.count * seconds_per_image_iteration(job.teacher, job.plan.batch)
    return job_seconds(job.seconds_per_pass, passes, job.runtime) + scoring / FORWARDS_PER_ITERATION


def students_seconds(prepared: Preparation, count: int, per_pass: float) -> float:
    """Of all fits on `count` images, where those of several bits may train once."""
    student, first_last = prepared.student, prepared.config.first_last
    trainings = {student.training_key(each.bits, first_last): each for each in prepared.each()}
    known: dict[float, float] = {}  # passes of a fit -> its seconds
    total = 0.0
    for each in trainings.values():
        passes = fit_passes(student, each.teacher, count, each.bits)
        if passes not in known:
            known[passes] = student_seconds(each, count, per_pass)
        total += known[passes]
    return total


def student_seconds(prepared: Preparation, count: int, per_pass: float) -> float:
    """Of a fit on `count` images: from short fits on black ones; where it is short or compiled, from
    `per_pass`, the seconds of one image's teacher pass."""
    student, runtime = prepared.student, prepared.runtime
    passes = fit_passes(student, prepared.teacher, count, prepared.bits)
    rough = job_seconds(per_pass, round(passes), runtime)
    # Of a chain, each student's.
    lengths = {
        key: value for key, value in student.options.model_dump().items() if key.endswith("iterations")
    }
    if rough < WORTH_A_TRIAL_SECONDS or runtime.compile or None in lengths.values():
        return rough
    few, more = TRIAL_IMAGES
    once = dict.fromkeys(lengths, TRIAL_ITERATIONS[0])
    _trial(prepared, few, once)  # the first of a process takes longer
    least = _trial(prepared, few, once)
    seconds = least + max(_trial(prepared, more, once) - least, 0.0) / (more - few) * (count - few)
    for key, length in lengths.items():
        longer = _trial(prepared, few, once | {key: TRIAL_ITERATIONS[1]})
        per_iteration = (longer - least) / (TRIAL_ITERATIONS[1] - TRIAL_ITERATIONS[0])
        seconds += max(per_iteration, 0.0) * (length - TRIAL_ITERATIONS[0])
    return seconds


def _trial(prepared: Preparation, images: int, lengths: dict[str, int]) -> float:
    config, teacher, runtime = prepared.config, prepared.teacher, prepared.runtime
    student = create(config.student, teacher.spec, config.set | lengths, runtime, passes=config.passes)
    black = torch.zeros(images, *teacher.spec.shape, dtype=torch.uint8)
    start = time.perf_counter()
    with warnings.catch_warnings(action="ignore"), runtime.in_force():
        student.fit(teacher, black, prepared.bits, first_last=config.first_last)
    return time.perf_counter() - start
