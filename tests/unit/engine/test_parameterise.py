"""Pixels: their start, their box, their optimizer."""

import pytest
import torch
from toys import image_spec

from zsq.engine.parameterise import Pixels, gaussian, uniform
from zsq.engine.schedules import Exponential

SPEC = image_spec(size=(12, 10), mean=(0.4, 0.5, 0.1), std=(0.2, 0.3, 0.25))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_starts_have_their_moments():
    normal, flat = gaussian((64, 3, 20, 20), rng()), uniform((64, 3, 20, 20), rng())
    assert normal.mean().item() == pytest.approx(0, abs=0.02) and normal.std().item() == pytest.approx(
        1, abs=0.02
    )
    assert flat.mean().item() == pytest.approx(0.5, abs=0.01) and 0 <= flat.min() <= flat.max() < 1


def test_images_start_seeded_and_inside_the_box():
    pixels = Pixels(SPEC, 5, "cpu", rate=0.1)
    pixels.reset(rng())
    first = pixels().detach().clone()
    assert first.shape == (5, *SPEC.shape) and first.dtype == torch.float32
    start = gaussian(first.shape, rng())
    for channel, (mean, std) in enumerate(zip(SPEC.mean, SPEC.std, strict=True)):
        wanted = start[:, channel].clamp(-mean / std, (1 - mean) / std)
        torch.testing.assert_close(first[:, channel], wanted)
    assert not torch.equal(first, start)
    pixels.reset(rng(1))
    assert not torch.equal(pixels(), first)
    pixels.reset(rng())
    assert torch.equal(pixels(), first)


def test_reset_keeps_the_storage():
    pixels = Pixels(SPEC, 2, "cpu", rate=0.1)
    pixels.reset(rng())
    before = pixels.images.data_ptr()
    pixels.reset(rng(1))
    pixels.project()
    assert pixels.images.data_ptr() == before


def test_projection_is_the_values_of_pixels_0_to_255():
    pixels = Pixels(SPEC, 2, "cpu", rate=0.1)
    with torch.no_grad():
        pixels.images[0], pixels.images[1] = 100.0, -100.0
    pixels.project()
    stored = SPEC.standard_to_pixels(pixels().detach())
    assert (stored[0] == 255).all() and (stored[1] == 0).all()
    inside = SPEC.pixels_to_standard(torch.randint(0, 256, (2, *SPEC.shape), generator=rng()).byte())
    with torch.no_grad():
        pixels.images.copy_(inside)
    pixels.project()
    assert torch.equal(pixels(), inside)


def test_its_one_group_carries_rate_betas_and_schedule():
    def schedule(rate, iterations, device):
        return Exponential(rate, iterations, device, factor=0.5, every=2)

    pixels = Pixels(SPEC, 2, "cpu", 0.3, uniform, betas=(0.5, 0.9), schedule=schedule)
    (group,) = pixels.groups()
    assert list(group.tensors) == [pixels.images]
    assert (group.rate, group.betas, group.schedule) == (0.3, (0.5, 0.9), schedule)
    pixels.reset(rng())
    assert torch.equal(pixels(), uniform((2, *SPEC.shape), rng()).clamp(*SPEC.valid_box()))
