"""Views of signals, and of images with a side of one pixel."""

import pytest
import torch
from toys import image_spec

from zsq.engine.objectives import TeacherPass, batch_norm_l2, mean_image_norm, total_variation_l2
from zsq.engine.swing import moved
from zsq.engine.views import Blur, Clip, Flip, Halve, RandomCrop, ResizedCrop, Roll, centre_crop

SHAPES = {"signal": (5, 2, 12), "row": (5, 2, 1, 12), "column": (5, 2, 12, 1)}


def as_signal(images):
    return images.reshape(5, 2, -1)


@pytest.fixture
def signal():
    return torch.randn(5, 2, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("view", [Blur(1.25), Halve(), ResizedCrop((0.4, 0.9)), Roll(3)])
def test_a_side_of_one_pixel_is_left_as_it_is(view, kind, signal):
    shape = SHAPES[kind]
    draw = view.draw(shape, torch.Generator().manual_seed(1))
    images = signal.reshape(shape).requires_grad_()
    seen = view(images, draw)
    assert seen.dim() == len(shape) and 1 in (*seen.shape[2:], 1)
    seen.square().sum().backward()
    assert bool(images.grad.isfinite().all()) and images.grad.abs().sum() > 0
    if kind == "row":
        alone = view(signal, draw)
        torch.testing.assert_close(as_signal(seen), alone)


def test_a_blurred_signal_by_hand(signal):
    tap = torch.exp(torch.tensor(-0.5 / 1.25**2))
    kernel = torch.stack([tap, torch.tensor(1.0), tap]) / (1 + 2 * tap)
    padded = torch.nn.functional.pad(signal, (1, 1), mode="reflect")
    wanted = sum(kernel[k] * padded[..., k : k + 12] for k in range(3))
    torch.testing.assert_close(Blur(1.25)(signal, torch.empty(0)), wanted)


def test_crops_halves_rolls_and_flips_by_hand(signal):
    nothing = torch.empty(0)
    torch.testing.assert_close(Halve()(signal, nothing), signal.unflatten(2, (6, 2)).mean(3))
    assert torch.equal(Roll(3)(signal, torch.tensor([2, -1])), signal.roll(-1, 2))
    assert torch.equal(RandomCrop((8,))(signal, torch.tensor([3])), signal[..., 3:11])
    assert torch.equal(centre_crop(signal, (8,)), signal[..., 2:10])
    flip = Flip()
    coins = flip.draw(signal.shape, torch.Generator().manual_seed(0))
    assert coins.shape == (5, 1, 1)
    assert torch.equal(flip(signal, coins), torch.where(coins, signal.flip(2), signal))
    low, high = Clip(image_spec(2, (12,)), "cpu")(10 * signal, nothing).aminmax()
    assert low >= -2.0001 and high <= 2.0001


def test_a_resized_crop_reads_between_its_corners():
    ramp = torch.arange(9.0).expand(1, 1, 9)
    corners = torch.tensor([[[2.0, 0.0], [6.0, 0.0], [6.0, 0.0], [2.0, 0.0]]])
    torch.testing.assert_close(ResizedCrop((0.1, 1.0))(ramp, corners)[0, 0], torch.linspace(2, 6, 9))
    mirrored = corners[:, [1, 0, 3, 2]]
    torch.testing.assert_close(ResizedCrop((0.1, 1.0))(ramp, mirrored)[0, 0], torch.linspace(6, 2, 9))


def test_priors_of_signals_are_along_their_side(signal):
    forward = TeacherPass(signal, torch.empty(0), [], None)
    assert total_variation_l2(forward).item() == pytest.approx(signal.diff(dim=2).norm().item(), rel=1e-5)
    assert mean_image_norm(forward).item() == pytest.approx(
        signal.flatten(1).norm(dim=1).mean().item(), rel=1e-5
    )
    assert batch_norm_l2(forward).item() == pytest.approx(signal.norm().item(), rel=1e-5)


def test_swing_moves_a_signal_by_its_last_offset(signal):
    wide = torch.nn.functional.pad(signal, (1, 1), mode="reflect")
    for start in range(3):
        assert torch.equal(moved(signal, torch.tensor([2, start])), wide[..., start : start + 12])
