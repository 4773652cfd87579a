"""Random images against the statistics that they are made for."""

import numpy as np
import pytest
import torch

from zsq.engine.textures import CHANNEL_CORRELATION, dead_leaves, lit, power_law


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def leaves(shape=(3, 32, 32), number=60, texture=0.7, seed=0):
    return dead_leaves(shape, number, (0.5, 2.5), texture, rng(seed))


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("sides", [(32, 32), (16, 64), (256,)])
def test_amplitude_falls_as_a_power_of_frequency(exponent, sides):
    images = power_law((200, 1, *sides), (exponent, exponent), rng()).numpy()[:, 0]
    axes = tuple(range(1, images.ndim))
    power = np.square(np.abs(np.fft.fftn(images, axes=axes))).mean(0).ravel()
    cycles = np.meshgrid(*[np.fft.fftfreq(side) * side for side in sides], indexing="ij")
    frequency = np.sqrt(sum(np.square(c) for c in cycles)).ravel()
    seen = frequency >= 1
    slope = np.polyfit(np.log(frequency[seen]), np.log(power[seen]), 1)[0]
    assert slope == pytest.approx(-2 * exponent, abs=0.05)
    assert images.var() == pytest.approx(1, rel=0.15)


def test_each_image_draws_its_own_exponent():
    images = power_law((64, 1, 32, 32), (0.0, 3.0), rng())
    steps = (images[..., 1:] - images[..., :-1]).square().mean((1, 2, 3)) / images.var((1, 2, 3))
    assert steps.min() < 0.1 and steps.max() > 1


def test_channels_correlate_as_colours_do():
    images = power_law((300, 3, 8, 8), (0.0, 0.0), rng()).transpose(0, 1).flatten(1).numpy()
    wanted = np.full((3, 3), CHANNEL_CORRELATION)
    np.fill_diagonal(wanted, 1)
    np.testing.assert_allclose(np.cov(images), wanted, atol=0.03)


def test_without_texture_a_leaf_has_one_colour():
    image = leaves(texture=0.0, number=400)
    colours = {tuple(pixel.tolist()) for pixel in image.flatten(1).T}
    assert 5 < len(colours) < 400
    assert len({tuple(pixel.tolist()) for pixel in leaves(texture=0.0, number=0).flatten(1).T}) == 32 * 32


def test_a_single_leaf_is_a_disc_of_one_colour():
    areas = []
    for seed in range(30):
        ground, image = (leaves(texture=0.0, number=number, seed=seed) for number in (0, 1))
        inside = (ground != image).all(0).numpy()
        rows, columns = np.nonzero(inside)
        if not len(rows) or min(rows.min(), columns.min()) == 0 or max(rows.max(), columns.max()) == 31:
            continue
        assert len({tuple(pixel.tolist()) for pixel in image[:, inside].T}) == 1
        areas.append(inside.sum() / (np.pi * ((np.ptp(rows) + np.ptp(columns)) / 4 + 0.5) ** 2))
    assert len(areas) > 10 and np.mean(areas) == pytest.approx(1, abs=0.1)


def test_leaves_make_edges():
    """Steps between neighbours have heavy tails, as in natural images; those of spectra are Gaussian."""

    def kurtosis(images):
        steps = (images[..., 1:] - images[..., :-1]).flatten()
        return (steps.pow(4).mean() / steps.square().mean().square()).item()

    made = torch.stack([leaves(seed=seed) for seed in range(20)])
    assert kurtosis(power_law((20, 3, 32, 32), (1.0, 1.0), rng())) == pytest.approx(3, abs=0.2)
    assert kurtosis(made) > 6
    assert made.var() == pytest.approx(1, rel=0.2) and made.mean().abs() < 0.2


@pytest.mark.parametrize("shape", [(1, 8, 8), (12, 100), (5, 1, 7), (2, 1, 1), (3, 9, 40)])
def test_any_shape_is_filled(shape):
    image = leaves(shape)
    assert image.shape == shape and image.dtype == torch.float32 and image.isfinite().all()
    assert torch.equal(image, leaves(shape)) and not torch.equal(image, leaves(shape, seed=1))


def test_images_of_two_sizes_look_alike():
    """Leaves are shares of the side: as much of a large image is covered as of a small one."""
    shares = []
    for side in (32, 96):
        pairs = [
            (leaves((1, side, side), number, 0.0, seed=s), leaves((1, side, side), 0, 0.0, s))
            for s, number in enumerate([20] * 12)
        ]
        shares.append(np.mean([(image != ground).float().mean() for image, ground in pairs]))
    assert shares[0] == pytest.approx(shares[1], abs=0.1)


def test_images_have_a_brightness_a_colour_and_a_contrast_of_their_own():
    generator = rng()
    plain = power_law((3000, 3, 8, 8), (0.5, 2.5), generator)
    images = torch.stack([lit(image, 0.3, 0.35, generator) for image in plain])
    means_NC = images.mean((2, 3))
    assert images.mean().item() == pytest.approx(0, abs=0.05)
    assert images.var().item() == pytest.approx(1, abs=0.05)
    assert means_NC.var(0).mean().item() == pytest.approx(0.3, abs=0.03)
    colours = np.corrcoef(means_NC.T.numpy())
    assert colours[np.triu_indices(3, 1)].mean() == pytest.approx(CHANNEL_CORRELATION, abs=0.03)
    within = (images - means_NC[..., None, None]).square().mean((1, 2, 3)).log().div(2)
    assert within.std().item() == pytest.approx(0.35, abs=0.02)
    assert lit(torch.ones(3, 4, 4), 0.0, 0.5, generator).abs().max() == 0
