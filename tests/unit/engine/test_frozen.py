"""The engine's own layers against autograd on the plain ones, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import make_teacher

from zsq.engine import chunked
from zsq.engine.frozen import FrozenConv2d, freeze_convolutions, tap_batch_norm
from zsq.engine.statistics import Alignment, TappedTeacher

OWN = [  # channels in and out, kernel, stride, padding, groups
    (3, 8, 7, 2, 3, 1),
    (3, 8, 3, 2, 1, 1),
    (1, 4, 4, 4, 0, 1),
    (3, 5, 5, 3, 1, 1),
    (2, 4, 1, 2, 0, 1),
    (3, 4, 2, 2, 2, 1),
    (6, 6, 3, 1, 1, 6),
    (6, 6, 5, 1, 0, 6),
    (6, 6, 3, 2, 1, 6),
]
LIBRARY = [(8, 8, 3, 1, 1, 1), (8, 16, 3, 2, 1, 1), (8, 8, 3, 1, 1, 2), (4, 8, 3, 1, 1, 4)]


def conv_of(shape, bias=True):
    channels_in, channels_out, kernel, stride, padding, groups = shape
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, groups=groups, bias=bias)
    return conv.double().requires_grad_(False)


def input_gradient(conv, images):
    images = images.clone().requires_grad_()
    output = conv(images)
    (gradient,) = torch.autograd.grad(output, images, torch.cos(torch.arange(output.numel()).view_as(output)))
    return output, gradient


@pytest.mark.parametrize("size", [(17, 12), (16, 16)])
@pytest.mark.parametrize("shape", OWN)
def test_own_gradients_are_autograds(shape, size):
    conv = conv_of(shape)
    images = torch.randn(2, shape[0], *size, dtype=torch.float64)
    wanted = input_gradient(conv, images)
    freeze_convolutions(conv)
    assert type(conv) is FrozenConv2d
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if shape[-1] > 1 and shape[3] > 1 else {}  # through float32
    for found, plain in zip(input_gradient(conv, images), wanted, strict=True):
        torch.testing.assert_close(found, plain, **tolerance)


@pytest.mark.parametrize("shape", LIBRARY)
def test_other_convolutions_stay_what_they_are(shape):
    conv = conv_of(shape)
    freeze_convolutions(conv)
    assert type(conv) is nn.Conv2d


def test_circular_padding_and_dilation_stay_the_librarys():
    for conv in (nn.Conv2d(3, 4, 3, 2, 1, padding_mode="circular"), nn.Conv2d(3, 4, 3, 2, 1, dilation=2)):
        freeze_convolutions(conv)
        assert type(conv) is nn.Conv2d


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm2d(3), (4, 3, 5, 2)),
        (nn.BatchNorm1d(3), (4, 3)),
        (nn.BatchNorm1d(3, affine=False), (4, 3, 6)),
    ],
)
def test_normalisation_and_its_sums(layer, shape):
    layer = layer.double().eval().requires_grad_(False)
    layer.running_mean.copy_(torch.randn(3))
    layer.running_var.uniform_(0.5, 2.0)
    if layer.affine:
        layer.weight.copy_(torch.tensor([0.5, -2.0, 0.0]))
        layer.bias.copy_(torch.randn(3))
    images = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    plain = layer(images)
    reported = []
    tap_batch_norm(layer, lambda _, inputs, s1, s2: reported.append((inputs, s1, s2)))
    torch.testing.assert_close(layer(images), plain)
    inputs, s1, s2 = reported[0]
    shifted = (images - layer.running_mean.view(1, 3, *[1] * (images.dim() - 2))).reshape(*shape[:2], -1)
    assert inputs is images
    torch.testing.assert_close(s1, shifted.sum(2))
    torch.testing.assert_close(s2, shifted.square().sum(2))

    def all_three(x):
        reported.clear()
        y = layer(x)
        return y, *reported[0][1:]

    assert torch.autograd.gradcheck(all_three, images)


class Doubled(nn.BatchNorm2d):
    """A BN layer with a forward pass of its own."""

    def forward(self, input):
        return 2 * super().forward(input)


def test_a_bn_layer_of_an_unknown_kind_keeps_its_own_forward_pass():
    def build(channels, outputs):
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3),
            Doubled(4),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, outputs),
        )

    teacher = make_teacher(build, dtype=torch.float64)
    images = torch.randn(2, *teacher.spec.shape, dtype=torch.float64)
    logits, (sums,) = TappedTeacher(teacher)(images)
    torch.testing.assert_close(logits, teacher.logits(images))
    wanted = teacher.network[0](images).sum((2, 3)) - sums.num_positions * sums.mean_C
    torch.testing.assert_close(sums.s1_NC, wanted)


def test_images_in_chunks_give_the_same_loss_and_gradient(monkeypatch):
    teacher = make_teacher(dtype=torch.float64)
    images = torch.randn(7, *teacher.spec.shape, dtype=torch.float64, requires_grad=True)

    def loss_and_gradient(tapped):
        logits, layers = tapped(images)
        loss = Alignment("batch", distance="norm")(layers) + F.cross_entropy(logits, torch.arange(7) % 5)
        return loss, torch.autograd.grad(loss, images)[0]

    whole = TappedTeacher(teacher)
    most = whole.in_chunks.most
    assert most > 1000
    wanted = loss_and_gradient(whole)
    monkeypatch.setattr(chunked, "MEMORY_BUDGET", chunked.MEMORY_BUDGET * 3 // most)
    parts = TappedTeacher(teacher)
    assert parts.in_chunks.most == 3
    for found, plain in zip(loss_and_gradient(parts), wanted, strict=True):
        torch.testing.assert_close(found, plain)
