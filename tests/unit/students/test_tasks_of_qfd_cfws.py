"""qfd and cfws on networks of other tasks than classify: maps that several layers read, any outputs."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from tiny_students import digits_vit, fit, outputs
from torch import nn
from toys import conv_bn, shared_teacher, structured_images

import zsq
from zsq.core.runtime import Runtime
from zsq.graph import capture
from zsq.quantizers.intervals import IntervalQuantizer
from zsq.students import create
from zsq.students.qfd import feature_reader, quantize_feature, with_feature
from zsq.tasks.nesting import named_tensors
from zsq.widths import Bits

OPTIONS = {"batch": 8, "flip": False, "learning_rate": 1e-4, "interval_learning_rate": 1e-3}


class TwoLevels(nn.Module):
    """A small pyramid: one head is called for both levels and another for the first alone."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.stem, self.next = conv_bn(channels, 8, 2), conv_bn(8, 8, 2)
        self.classes, self.boxes = nn.Conv2d(8, outputs, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        fine = self.stem(x)
        coarse = self.next(fine)
        return {"classes": [self.classes(fine), self.classes(coarse)], "boxes": self.boxes(fine)}


def maps(channels, outputs):
    return nn.Sequential(conv_bn(channels, 8), nn.Conv2d(8, outputs, 3, padding=1))


def vector(channels, outputs):
    return nn.Sequential(maps(channels, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs))


BUILDS = {"embed": vector, "image": maps, "segment": maps, "detect": TwoLevels, "other": TwoLevels}


def teacher_of(task):
    teacher = shared_teacher(BUILDS[task], task=task)
    return teacher if BUILDS[task] is not TwoLevels else dataclasses.replace(teacher, num_outputs=None)


def pixels_of(teacher, count=8):
    return teacher.spec.standard_to_pixels(structured_images((count, *teacher.spec.shape)))


def decibels(teacher, fitted, pixels):
    """The worst signal-to-noise ratio of an output."""
    pairs = zip(named_tensors(outputs(teacher, pixels)), named_tensors(outputs(fitted, pixels)), strict=True)
    ratios = [own.square().sum() / (own - other).square().sum() for (_, own), (_, other) in pairs]
    return 10 * min(ratios).log10().item()


@pytest.mark.parametrize(
    ("name", "task"),
    [*(("cfws", task) for task in BUILDS), *(("qfd", task) for task in BUILDS if task != "other")],
)
def test_every_task_is_fitted_saved_and_loaded(tmp_path, name, task):
    teacher = teacher_of(task)
    pixels = pixels_of(teacher)
    options = OPTIONS | ({"feature": "boxes"} if task == "detect" else {}) if name == "qfd" else {}
    fitted = fit(name, teacher, pixels, "W8A8", **options)
    assert decibels(teacher, fitted, pixels) > 20
    zsq.save_student(fitted, teacher, tmp_path)
    assert decibels(fitted, zsq.load_student(tmp_path), pixels) == float("inf")


def test_a_feature_is_quantized_for_all_that_read_it_and_named_by_any():
    teacher = teacher_of("detect")
    norm = teacher.spec.pixels_to_norm(pixels_of(teacher))
    found = {}
    for name in ("classes", "boxes"):  # the first call of `classes` reads the fine level
        network = capture(teacher.network, teacher.example())
        reader = feature_reader(network, teacher.name, name)
        _, (exact,) = with_feature(network, reader)(norm)
        quantize_feature(network, reader, teacher.spec, pixels_of(teacher), 2, search=True)
        given, (feature,) = with_feature(network, reader, quantized=True)(norm)
        assert feature.shape == exact.shape == (8, 8, 8, 8) and len(feature.unique()) == 4
        torch.testing.assert_close(given["boxes"], teacher.network.boxes(feature))
        torch.testing.assert_close(
            given["classes"][1], teacher.network.classes(teacher.network.next(feature))
        )
        found[name] = feature
    assert torch.equal(found["classes"], found["boxes"])


def test_errors_of_maps_count_whatever_their_scale():
    teacher = teacher_of("detect")
    student = create("qfd", teacher.spec, {"feature": "boxes", "feature_weight": 0.25}, Runtime())
    student._task = teacher.task
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randn(2, 4, 8, 6, 6, generator=generator)
    same = {"boxes": own}
    expected = 0.25 * F.mse_loss(own, other) / other.var(correction=0)
    for scale in (1, 1000):
        found = student.total_loss((same, (own * scale,)), (same, (other * scale,)))
        torch.testing.assert_close(found, expected)


def test_training_on_a_detector_lowers_the_loss():
    losses = []

    class Log:
        def advance(self, amount, **values):
            losses.append(values["loss"])

    teacher = teacher_of("detect")
    options = {"feature": "boxes", "iterations": 60, "teacher_iterations": 0, "batch": 8, "flip": False}
    student = create("qfd", teacher.spec, options, Runtime())
    fitted = student.fit(teacher, pixels_of(teacher, 16), Bits(2, 4), first_last=8, log=Log())
    assert losses[-1] < 0.7 * losses[0]
    before = fit("qfd", teacher, pixels_of(teacher, 16), "W2A4", **options | {"iterations": 0})
    pixels = pixels_of(teacher, 16)
    assert decibels(teacher, fitted, pixels) > decibels(teacher, before, pixels) + 2


def test_a_transformers_feature_is_what_its_head_reads(images):
    teacher = digits_vit()
    network = capture(teacher.network, teacher.example())
    reader = feature_reader(network, teacher.name, None)
    _, (feature,) = with_feature(network, reader)(teacher.spec.pixels_to_norm(images[:4]))
    assert feature.dim() == 2 and len(feature) == 4
    short = {"iterations": 1, "teacher_iterations": 1, "batch": 16, "learning_rate": 1e-5}
    fitted = fit("qfd", teacher, images[:64], "W8A8", **short)
    intervals = [each for each in fitted.network.modules() if isinstance(each, IntervalQuantizer)]
    assert len(intervals) == len(fitted.tensors) > 20
    agree = outputs(teacher, images[:64]).argmax(1) == outputs(fitted, images[:64]).argmax(1)
    assert agree.sum() >= 62
