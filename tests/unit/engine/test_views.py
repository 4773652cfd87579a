"""Views against direct indexing and closed forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from zsq.engine.views import (
    Blur,
    Flip,
    Halve,
    ResizedCrop,
    Roll,
    apply_views,
    cropped_by_products,
    draw_views,
)

SHAPE = (4, 2, 6, 9)
VIEWS = [Flip(), Flip(per_image=False), Roll(3), ResizedCrop((0.5, 1.0)), Blur(0.8), Halve()]


@pytest.fixture
def images():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_flip_mirrors_the_images_whose_coin_says_so(images):
    coins = torch.tensor([True, False, False, True])
    flipped = Flip()(images, coins.view(4, 1, 1, 1))
    for image, result, coin in zip(images.numpy(), flipped.numpy(), coins, strict=True):
        assert np.array_equal(result, image[:, :, ::-1] if coin else image)


def test_flip_throws_one_coin_per_image_or_one_for_the_batch():
    draws = Flip().draw((4000, 1, 2, 2), rng())
    assert draws.shape == (4000, 1, 1, 1) and 0.45 < draws.float().mean() < 0.55
    assert Flip(per_image=False).draw(SHAPE, rng()).shape == (1, 1, 1, 1)
    coins = [Flip(per_image=False).draw(SHAPE, generator).item() for generator in [rng()] for _ in range(400)]
    assert 0.4 < np.mean(coins) < 0.6


@pytest.mark.parametrize("shift", [(0, 0), (2, -3), (-5, 4), (7, 11)])
def test_roll_wraps_around(images, shift):
    found = Roll(11)(images, torch.tensor(shift))
    assert np.array_equal(found.numpy(), np.roll(images.numpy(), shift, axis=(2, 3)))


def test_what_views_made_lies_in_memory_before_anything_reads_it(images):
    """Else a compiled kernel that reads it twice, as total variation does, computes the views twice."""
    views = [Flip(), Roll(3)]
    draws = draw_views(views, SHAPE, rng())
    graph = make_fx(lambda x: apply_views(views, x, draws))(images).graph
    copies = graph.find_nodes(op="call_function", target=torch.ops.zsq.materialise.default)
    assert [node.args[0][0].target for node in copies] == [torch.ops.aten.index.Tensor]
    assert apply_views([], images, []) is images
    leaf = images.clone().requires_grad_()
    apply_views(views, leaf, draws).pow(2).sum().backward()
    assert torch.equal(leaf.grad, 2 * images)


def test_roll_draws_every_shift_up_to_its_limit():
    generator = rng()
    draws = torch.stack([Roll(2).draw(SHAPE, generator) for _ in range(500)])
    assert draws.unique().tolist() == [-2, -1, 0, 1, 2]
    assert len(torch.unique(draws, dim=0)) == 25
    assert Roll(0).draw(SHAPE, rng()).tolist() == [0, 0]


def test_a_crop_of_everything_changes_nothing(images):
    crop = ResizedCrop((1.0, 1.0))
    torch.testing.assert_close(crop(images, crop.draw(SHAPE, rng()).double()), images)


def test_crop_against_direct_interpolation(images):
    crop = ResizedCrop((0.3, 0.8))
    corners = crop.draw(SHAPE, rng()).double()
    found = crop(images, corners)
    for image, (top_left, _, bottom_right, _), result in zip(images, corners, found, strict=True):
        columns = np.linspace(top_left[0], bottom_right[0], SHAPE[3])
        rows = np.linspace(top_left[1], bottom_right[1], SHAPE[2])
        wanted = np.empty(image.shape)
        for channel, plane in enumerate(image.numpy()):
            across = np.stack([np.interp(columns, np.arange(SHAPE[3]), line) for line in plane])
            wanted[channel] = np.stack([np.interp(rows, np.arange(SHAPE[2]), line) for line in across.T], 1)
        np.testing.assert_allclose(result, wanted, atol=1e-6)


def test_crops_stay_inside_and_keep_scale_and_aspect_ratio():
    corners = ResizedCrop((0.25, 1.0)).draw((2000, 3, 11, 21), rng())
    low, high = corners[:, 0], corners[:, 2]
    assert (low >= 0).all() and (high <= torch.tensor([20, 10]) + 1e-4).all()
    sides = (high - low) / torch.tensor([20.0, 10.0])
    torch.testing.assert_close(sides[:, 0], sides[:, 1])
    areas = sides.prod(1)
    assert areas.min() >= 0.25 - 1e-5 and areas.max() <= 1 + 1e-5
    assert areas.mean() == pytest.approx(0.625, abs=0.02)


def test_blur_keeps_constants_and_weighs_as_a_gaussian(images):
    blur, nothing = Blur(0.8), torch.empty(0)
    constant = torch.full(SHAPE, 1.7, dtype=torch.float64)
    torch.testing.assert_close(blur(constant, nothing), constant)
    weights = np.exp(-np.square([-1.0, 0.0, 1.0]) / (2 * 0.8**2))
    kernel = torch.from_numpy(np.outer(weights, weights) / weights.sum() ** 2)
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    wanted = F.conv2d(padded, kernel.expand(2, 1, 3, 3), groups=2)
    torch.testing.assert_close(blur(images, nothing), wanted, rtol=1e-5, atol=1e-6)


def test_halve_averages_two_by_two(images):
    x = images.numpy()[..., :8]
    wanted = (x[..., ::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, ::2] + x[..., 1::2, 1::2]) / 4
    np.testing.assert_allclose(Halve()(images, torch.empty(0)), wanted)


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: type(view).__name__)
def test_views_are_seeded_and_pass_gradients(images, view):
    draw = view.draw(SHAPE, rng(1))
    assert torch.equal(draw, view.draw(SHAPE, rng(1)))
    if draw.numel() > 1:
        assert not torch.equal(draw, view.draw(SHAPE, rng(2)))
    x = images.requires_grad_()
    (gradient,) = torch.autograd.grad(view(x, draw.double() if draw.is_floating_point() else draw).sum(), x)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_views_are_applied_in_order(images):
    views = (Roll(3), Halve(), Flip())
    draws = draw_views(views, SHAPE, rng())
    wanted = views[2](views[1](views[0](images, draws[0]), draws[1]), draws[2])
    assert torch.equal(apply_views(views, images, draws), wanted)
    assert apply_views((), images, draw_views((), SHAPE, rng())) is images


@pytest.mark.parametrize("shape", [(3, 2, 12, 9), (2, 1, 1, 7)])
def test_a_crop_by_products_is_the_crop(shape):
    """Values and gradients of what CUDA computes are those of the grid sampler."""
    view = ResizedCrop((0.3, 0.9), flip=True)
    draw = view.draw(shape, torch.Generator().manual_seed(0))
    images = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pull = torch.rand(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = []
    for crop in (view, cropped_by_products):
        leaf = images.clone().requires_grad_()
        result = crop(leaf, draw.double())
        (result * pull).sum().backward()
        found.append((result.detach(), leaf.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
