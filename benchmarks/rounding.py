"""What storing images as uint8 costs: `python benchmarks/rounding.py`.

On the CIFAR-10 ResNet-20 of ZSQ_DATA, 64 images of every method that it suits: BN distance of the images as
the method made them and as shards hold them, and for how many the teacher's top-1 class is the same. Kept in
benchmarks/results/rounding.json.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch
import typer
from common import TRAIN, Results, Threads, load_resnet20

from zsq.contract import Silent, Teacher
from zsq.core.runtime import Runtime
from zsq.engine.statistics import TappedTeacher, image_distances
from zsq.generators import create, method_class, suited
from zsq.images.sources import load_images
from zsq.plan import Plan

COUNT, PASSES = 64, 250


def rounded(teacher: Teacher, method_name: str, runtime: Runtime) -> dict[str, float]:
    """One method's images before and after rounding."""
    cls = method_class(method_name)
    method = create(method_name, teacher, iterations=PASSES, batch=COUNT, runtime=runtime)
    if cls.facts.needs_real:
        images = load_images(TRAIN, teacher.spec, one_per_class=True)
        method.read(images.pixels, images.labels)
    plan = Plan(COUNT, COUNT, COUNT, 0, cls.batches_per_group)
    with tempfile.TemporaryDirectory() as folder:
        method.prepare(0, Path(folder), Silent())
    made = method.synthesize(plan.groups[0], Silent()).standard_NCHW
    stored = teacher.spec.pixels_to_standard(teacher.spec.standard_to_pixels(made))
    tapped = TappedTeacher(teacher)
    with torch.no_grad():
        (logits, layers), (stored_logits, stored_layers) = tapped(made), tapped(stored)
    same = (logits.argmax(1) == stored_logits.argmax(1)).float().mean()
    return {
        "bn_distance": image_distances(layers).mean().item(),
        "bn_distance_uint8": image_distances(stored_layers).mean().item(),
        "same_class_percent": 100 * same.item(),
    }


def main(threads: Threads = None) -> None:
    """Measure the methods that are missing."""
    teacher = load_resnet20()
    results = Results("rounding", "python benchmarks/rounding.py")
    runtime = Runtime(threads=threads)
    with runtime.in_force():
        for name, refusal in suited(teacher).items():
            if refusal is None:
                results.once("methods", name, partial(rounded, teacher, name, runtime))


if __name__ == "__main__":
    typer.run(main)
