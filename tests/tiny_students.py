"""Every student of the table, fitted on toys or on the embedded digits in seconds."""

import dataclasses
import functools

import torch
from toys import normed, plain, shared_teacher, structured_images

from zsq.core.errors import MismatchError
from zsq.core.runtime import Runtime
from zsq.students import STUDENTS, create
from zsq.tasks.embed import Embed
from zsq.teacher import load_teacher
from zsq.widths import Bits

SMALL = {"iterations": 2, "batch": 32, "teacher_iterations": 2, "correction_iterations": 2}


def small_options(name):
    """What makes the fit of any student short, of the options that it has."""
    return {key: value for key, value in SMALL.items() if key in STUDENTS[name].options_class.model_fields}


@functools.cache
def digits_vit():
    return load_teacher("embedded:digits-vit")


def teacher_for(name, build=plain, **changes):
    """Of classes, or of embeddings where the student refuses classes; with a LayerNorm where it needs one."""
    build = normed(build) if STUDENTS[name].facts.needs_layer_norm else build
    return shared_teacher(build, **changes, task="embed" if name == "quantface" else "classify")


def smallest_teacher(name):
    """One that has all that the student quantizes: attention too, where it needs a LayerNorm."""
    return digits_vit() if STUDENTS[name].facts.needs_layer_norm else teacher_for(name)


def images_of(teacher, count=12):
    return teacher.spec.standard_to_pixels(structured_images((count, *teacher.spec.shape)))


def fit(name, teacher, pixels, bits="W4A4", first_last=8, seed=0, **options):
    """A student that refuses classifiers gets the logits as embeddings; one that needs a LayerNorm gets the
    digits' transformer."""
    if STUDENTS[name].facts.needs_layer_norm and teacher.name == "embedded:digits":
        teacher = digits_vit()
    student = create(name, teacher.spec, {**small_options(name), **options}, Runtime())
    arguments = {"first_last": first_last, "seed": seed}
    try:
        return student.fit(teacher, pixels, Bits.parse(bits), **arguments)
    except MismatchError as error:
        if "embed" not in str(error):
            raise
        embedder = dataclasses.replace(teacher, task=Embed(), expected_accuracy=None)
        return student.fit(embedder, pixels, Bits.parse(bits), **arguments)


@torch.no_grad()
def outputs(fitted, pixels):
    return fitted.logits(fitted.spec.pixels_to_standard(pixels))
