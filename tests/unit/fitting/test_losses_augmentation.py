"""Distillation loss and views against numpy."""

import numpy as np
import pytest
import torch

from zsq.fitting.augmentation import shift_and_flip
from zsq.fitting.losses import distillation


def logits(seed, classes=7):
    return torch.randn(5, classes, generator=torch.Generator().manual_seed(seed)) * 3


def numpy_kl(student, teacher, temperature):
    student, teacher = (x.double().numpy() / temperature for x in (student, teacher))
    p = np.exp(teacher) / np.exp(teacher).sum(1, keepdims=True)
    q = np.exp(student) / np.exp(student).sum(1, keepdims=True)
    return temperature**2 * (p * np.log(p / q)).sum() / len(p)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_distillation_equals_float64(temperature):
    expected = numpy_kl(logits(0), logits(1), temperature)
    assert distillation(logits(0), logits(1), temperature).item() == pytest.approx(expected, rel=1e-4)


def test_distillation_of_the_teacher_itself_is_zero_with_zero_gradient():
    student = logits(0).requires_grad_()
    loss = distillation(student, logits(0), 4.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(0, abs=1e-6) and gradient.abs().max() < 1e-6


def test_distillation_ignores_a_constant_and_classes_without_probability():
    base = distillation(logits(0), logits(1), 4.0)
    torch.testing.assert_close(distillation(logits(0) + 5, logits(1) - 3, 4.0), base)
    impossible = torch.full((5, 6), -1e5)
    wider = [torch.cat([x, impossible], dim=1) for x in (logits(0), logits(1))]
    torch.testing.assert_close(distillation(*wider, 4.0), base)


def test_distillation_at_high_temperature_is_logit_regression():
    student = logits(0).requires_grad_()
    centred = logits(1) - logits(1).mean(1, keepdim=True)
    (gradient,) = torch.autograd.grad(distillation(student, centred, 1000.0), student)
    expected = ((student - student.mean(1, keepdim=True)) - centred).detach() / 7 / 5
    torch.testing.assert_close(gradient, expected, rtol=0.01, atol=2e-3)


def numpy_view(image, shift, dy, dx, mirrored):
    padded = np.pad(image, ((0, 0), (shift, shift), (shift, shift)))
    height, width = image.shape[1:]
    window = padded[:, dy : dy + height, dx : dx + width]
    return window[:, :, ::-1] if mirrored else window


@pytest.mark.parametrize("flip", [True, False])
def test_each_view_is_one_shift_and_perhaps_a_mirror_of_its_image(flip):
    images = torch.randn(40, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    views = shift_and_flip(images, 2, flip, torch.Generator().manual_seed(1))
    assert views.shape == images.shape and views.is_contiguous(memory_format=torch.channels_last)
    found = []
    for image, view in zip(images.numpy(), views.numpy(), strict=True):
        matches = [
            (dy, dx, mirrored)
            for dy in range(5)
            for dx in range(5)
            for mirrored in (False, True)
            if np.array_equal(numpy_view(image, 2, dy, dx, mirrored), view)
        ]
        assert len(matches) == 1
        found += matches
    assert len({match[:2] for match in found}) > 12
    assert {match[2] for match in found} == ({False, True} if flip else {False})


def test_views_follow_the_generator_and_can_be_off():
    images = torch.randn(8, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    first, second = (shift_and_flip(images, 1, True, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(shift_and_flip(images, 0, False, torch.Generator().manual_seed(3)), images)
