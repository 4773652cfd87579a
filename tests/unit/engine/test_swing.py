"""Swing convolution against padding and cropping by hand."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import NETWORKS, head, make_teacher

from zsq.engine.statistics import TappedTeacher
from zsq.engine.swing import SwingConvolution, moved

OFFSETS = list(itertools.product(range(3), repeat=2))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def by_hand(x, down, right):
    height, width = x.shape[2:]
    return F.pad(x, (1, 1, 1, 1), mode="reflect")[:, :, down : down + height, right : right + width]


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("size", [(2, 2), (5, 8)])
def test_moved_is_reflected_padding_and_a_crop(offset, size):
    x = torch.randn(2, 3, *size, generator=rng())
    assert torch.equal(moved(x, torch.tensor(offset)), by_hand(x, *offset))


def test_the_middle_is_the_input_and_one_pixel_stays():
    x = torch.randn(2, 3, 4, 1, generator=rng())
    assert torch.equal(moved(x, torch.tensor([1, 1])), x)
    for offset in OFFSETS:
        row = moved(x, torch.tensor(offset))
        assert torch.equal(row, moved(x, torch.tensor([offset[0], 1])))


class Strided(nn.Module):
    """Strided convolutions of three sizes, one of stride 1 between them, and a strided shortcut."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.stem = nn.Conv2d(channels, 6, 7, 2, 3)
        self.bn = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 6, 3, 1, 1)
        self.down = nn.Conv2d(6, 8, 3, 2, 1)
        self.shortcut = nn.Conv2d(6, 8, 1, 2)
        self.head = head(8, outputs)

    def forward(self, x):
        x = self.bn(self.stem(x)).relu()
        return self.head(self.down(self.inner(x)) + self.shortcut(x))


@pytest.fixture
def teacher():
    return make_teacher(Strided)


def test_the_middle_offset_is_the_teacher_bit_for_bit(teacher):
    images = torch.randn(4, *teacher.spec.shape, generator=rng())
    plain, swung = TappedTeacher(teacher), TappedTeacher(teacher)
    swing = SwingConvolution(swung)
    assert torch.equal(swing(images, torch.ones(3, 2, dtype=torch.int64)), images)
    assert torch.equal(plain(images)[0], swung(images)[0])


def test_every_strided_convolution_is_moved_by_its_own_offset(teacher):
    images = torch.randn(4, *teacher.spec.shape, generator=rng())
    tapped = TappedTeacher(teacher)
    swing = SwingConvolution(tapped)
    offsets = torch.tensor([[0, 2], [2, 1], [1, 0]])
    found, _ = tapped(swing(images, offsets))
    n = teacher.network
    x = n.bn(n.stem(by_hand(images, 0, 2))).relu()
    y = n.down(by_hand(n.inner(x), 2, 1)) + n.shortcut(by_hand(x, 1, 0))
    torch.testing.assert_close(found, n.head(y))
    assert not torch.allclose(found, teacher.logits(images), atol=1e-3)


def test_offsets_are_uniform_over_nine(teacher):
    swing, generator = SwingConvolution(TappedTeacher(teacher)), rng()
    draws = torch.stack([swing.draw((1,), generator) for _ in range(3000)])
    counts = torch.bincount((3 * draws[..., 0] + draws[..., 1]).flatten(), minlength=9)
    expected = len(draws) * 3 / 9
    assert draws.shape[1:] == (3, 2) and len(counts) == 9
    assert ((counts - expected).square() / expected).sum() < 26.1  # chi squared, 8 degrees, 1 in 1000


def test_networks_without_strided_convolutions_are_left_alone():
    def build(channels, outputs):
        return nn.Sequential(nn.Conv2d(channels, 4, 3, 1, 1), nn.BatchNorm2d(4), head(4, outputs))

    teacher = make_teacher(build)
    images = torch.randn(2, *teacher.spec.shape, generator=rng())
    tapped = TappedTeacher(teacher)
    swing = SwingConvolution(tapped)
    draw = swing.draw(images.shape, rng())
    assert draw.shape == (0, 2)
    assert torch.equal(tapped(swing(images, draw))[0], TappedTeacher(teacher)(images)[0])


@pytest.mark.parametrize("network", NETWORKS)
def test_the_teacher_itself_is_never_touched(network):
    teacher = make_teacher(NETWORKS[network])
    SwingConvolution(TappedTeacher(teacher))
    assert not any(module._forward_pre_hooks for module in teacher.network.modules())
