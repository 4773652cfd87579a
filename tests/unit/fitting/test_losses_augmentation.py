"""Distillation loss and views of training images."""

import numpy as np
import pytest
import torch

from zsq.fitting.augmentation import cutmix, mixup, random_gain, shift_and_flip
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


def batch(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(400, 3, 6, 8), (400, 3, 20), (5, 1, 1, 9), (1, 2, 4, 4)])
@pytest.mark.parametrize("view", [mixup, cutmix, random_gain])
def test_further_views_keep_the_shape_and_follow_the_generator(view, shape):
    images = batch(*shape)
    given = images.clone()
    first, second = (view(images, 0.5, generator()) for _ in range(2))
    assert first.shape == images.shape and torch.equal(first, second) and torch.equal(images, given)
    assert not torch.equal(first, view(images, 0.5, generator(2))) or len(images) == 1


@pytest.mark.parametrize("alpha", [1e-300, 1e-3, 0.2, 1.0, 20.0])
def test_mixup_draws_its_shares_from_beta(alpha):
    """Of images that are all 0 or all 1, the view shows the share."""
    images = (torch.arange(40_000) % 2).float()[:, None, None, None]
    views = mixup(images, alpha, generator()).flatten()
    assert views.min() >= 0 and views.max() <= 1
    assert views.mean() == pytest.approx(0.5, abs=0.01)
    assert views.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_mixup_is_of_an_image_and_the_next():
    images = batch(6, 2, 3, 4)
    for view, image, other in zip(
        mixup(images, 1.0, generator()), images, [images[-1], *images[:-1]], strict=True
    ):
        share = ((view - other) / (image - other)).flatten()
        torch.testing.assert_close(share, share[:1].expand_as(share), rtol=1e-3, atol=1e-4)
        assert 0 < share[0] < 1


def test_cutmix_pastes_one_box_from_the_same_place():
    images = batch(300, 2, 8, 12)
    views, other = cutmix(images, 1.0, generator()), images.roll(1, 0)
    pasted = views != images
    assert torch.equal(views[pasted], other[pasted]) and torch.equal(pasted[:, 0], pasted[:, 1])
    shares = []
    for mask in pasted[:, 0]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns[None]) and runs(rows) <= 1 and runs(columns) <= 1
        shares.append(mask.float().mean().item())
    # Half of the image, less what reaches beyond the border.
    assert 0.2 < np.mean(shares) < 0.5 and max(shares) > 0.8 and min(shares) < 0.05


def test_cutmix_pastes_one_interval_of_a_signal():
    signals = batch(300, 3, 50)
    pasted = cutmix(signals, 1.0, generator()) != signals
    assert all(torch.equal(mask[0], mask[2]) and runs(mask[0]) <= 1 for mask in pasted)
    assert 0.3 < pasted.float().mean() < 0.5


def runs(mask):
    return int(mask[0]) + int((mask[1:] & ~mask[:-1]).sum())


def test_gain_is_a_line_per_channel_of_each_image():
    images, strength = batch(500, 3, 6, 6), 0.2
    views = random_gain(images, strength, generator())
    centred, seen = (x.flatten(2) - x.flatten(2).mean(2, keepdim=True) for x in (images, views))
    gains = (seen * centred).sum(2) / centred.square().sum(2)
    torch.testing.assert_close(seen, centred * gains[:, :, None], rtol=1e-3, atol=1e-3)
    offsets = (views.flatten(2) - images.flatten(2) * gains[:, :, None]).mean(2)
    for numbers in (gains.log(), offsets):
        assert numbers.abs().max() <= 2 * strength
        # A uniform number of the image and one of the channel; channels share the first.
        assert numbers.var() == pytest.approx(2 * strength**2 / 3, rel=0.1)
        assert np.cov(numbers[:, 0], numbers[:, 1])[0, 1] == pytest.approx(strength**2 / 3, rel=0.2)
