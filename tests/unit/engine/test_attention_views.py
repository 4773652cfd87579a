"""Views of methods that read attention: bands of frequencies, shifted colours, quarters at full size."""

import pytest
import torch

from zsq.engine.views import BandFilter, ColourAffine, PatchZoom


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed))


@pytest.mark.parametrize("sides", [(8, 8), (7, 10), (9,)])
def test_the_whole_band_is_the_identity_and_bands_add_up(sides):
    given = images(2, 3, *sides)
    torch.testing.assert_close(BandFilter((0, 1))(given, torch.empty(0)), given)
    low, high = BandFilter((0, 0.533), (0.534, 1))(given, torch.empty(0)).chunk(2)
    torch.testing.assert_close(low + high, given)
    assert low.shape == given.shape and not low.is_complex()
    mean = given.mean(tuple(range(2, given.dim())), keepdim=True)
    torch.testing.assert_close(BandFilter((0, 0))(given, torch.empty(0)), mean.expand_as(given))


def test_a_band_keeps_its_waves_with_their_sign():
    places = torch.arange(16) * (2 * torch.pi / 16)
    slow, fast = (wave.expand(1, 1, 16, 16) for wave in (places.cos(), (6 * places).cos()))
    low, band = BandFilter((0, 0.3), (0.5, 1))(slow - 2 * fast, torch.empty(0)).chunk(2)
    torch.testing.assert_close(low, slow)
    torch.testing.assert_close(band, -2 * fast)


def test_colours_shift_and_scale_whole_images():
    view, given = ColourAffine(0.5), images(64, 3, 4, 4)
    draw = view.draw_at(0.0, given.shape, rng())
    assert draw.shape == (64, 4)
    shown = view(given, draw)
    slope = (shown - shown.mean((2, 3), keepdim=True)) / (given - given.mean((2, 3), keepdim=True))
    torch.testing.assert_close(slope, draw[:, 3, None, None, None].expand_as(slope), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(shown, (given + draw[:, :3, None, None]) * draw[:, 3:, None, None])
    assert (draw[:, 3].log().abs() <= 1).all() and draw[:, 3].log().std() > 0.3


def test_shifts_of_colours_end_with_the_run():
    view, shape = ColourAffine(0.5), (200, 3, 4, 4)
    first, last = (view.draw_at(progress, shape, rng())[:, :3] for progress in (0.0, 1.0))
    spread = (first - first.mean(1, keepdim=True)).std()
    assert spread.item() == pytest.approx(0.5 * (2 / 3) ** 0.5, rel=0.15)
    assert (last == last[:, :1]).all() and (last.abs() <= 1).all()


def test_a_quarter_is_shown_at_full_size_and_no_gradient_leaves_it():
    given = images(4, 2, 6, 8).requires_grad_()
    view = PatchZoom(lambda generator: torch.arange(4))
    shown = view(given, view.draw(given.shape, rng()))
    assert shown.shape == (8, 2, 6, 8) and torch.equal(shown[:4], given)
    halves = (slice(0, 3), slice(3, 6)), (slice(0, 4), slice(4, 8))
    for index in range(4):
        rows, columns = halves[0][index // 2], halves[1][index % 2]
        quarter, zoomed = given[index, :, rows, columns], shown[4 + index]
        torch.testing.assert_close(zoomed[:, ::5, ::7], quarter[:, ::2, ::3])
        (gradient,) = torch.autograd.grad(zoomed.square().sum(), given, retain_graph=True)
        assert gradient[index, :, rows, columns].abs().min() > 0
        gradient[index, :, rows, columns] = 0
        assert (gradient == 0).all()


def test_signals_have_views_of_their_only_axis():
    given = images(2, 3, 12)
    view = PatchZoom(lambda generator: torch.tensor([0, 3]))
    assert view(given, view.draw(given.shape, rng())).shape == (4, 3, 12)
    colours = ColourAffine(0.5)
    assert colours(given, colours.draw_at(0.5, given.shape, rng())).shape == given.shape
