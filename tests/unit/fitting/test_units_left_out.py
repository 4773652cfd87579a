"""Layers that no unit can take: students that reconstruct round them to the nearest integer."""

import pytest
import torch
from torch import nn
from toys import conv_bn, head, make_teacher, structured_images

from zsq.core.runtime import Runtime
from zsq.students import create
from zsq.widths import Bits


class TwoShapes(nn.Module):
    """One tensor enters a linear layer as tokens and a convolution as a map."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.stem, self.query = nn.Conv2d(channels, 8, 4, 4), nn.Linear(8, 8)
        self.reduced, self.last = nn.Conv2d(8, 8, 2, 2), nn.Linear(8, outputs)

    def forward(self, x):
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        maps = tokens.transpose(1, 2).reshape(x.shape[0], 8, 4, 4)
        keys = self.reduced(maps).flatten(2).transpose(1, 2)
        attention = (self.query(tokens) @ keys.transpose(1, 2)).softmax(-1)
        return self.last((tokens + attention @ keys).mean(1))


class Pieces(nn.Module):
    """A block begins at the pieces of a split, and one layer sees no image."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.stem, self.position = conv_bn(channels, 8, 2), nn.Conv2d(2, 8, 1)
        self.left, self.right = nn.Conv2d(4, 8, 3, 1, 1), nn.Conv2d(4, 8, 3, 1, 1)
        self.head = head(8, outputs)
        self.register_buffer("grid", torch.linspace(-1, 1, 128).view(1, 2, 8, 8))

    def forward(self, x):
        left, right = self.stem(x).split(4, 1)
        return self.head(self.left(left) + self.right(right) + self.position(self.grid))


@pytest.fixture
def pixels():
    images = structured_images((32, 3, 16, 16), seed=1)
    return ((images * 0.25 + 0.5).clamp(0, 1) * 255).to(torch.uint8)


@pytest.mark.parametrize("build", [TwoShapes, Pieces])
@pytest.mark.parametrize("name", ["genie-m", "qdrop"])
def test_what_cannot_be_dropped_or_reconstructed_is_rounded(build, name, pixels):
    teacher = make_teacher(build)
    plain, fitted = (
        create(student, teacher.spec, options, Runtime()).fit(teacher, pixels, Bits(8, 8))
        for student, options in (("ptq", {}), (name, {"iterations": 2, "batch": 8}))
    )
    rows, own_rows = ({row.name for row in each.tensors if row.kind == "weight"} for each in (plain, fitted))
    assert own_rows == rows
    norm = teacher.spec.pixels_to_norm(pixels)
    own, exact = fitted.network(norm), teacher.network(norm)
    assert (own - exact).square().mean() < 0.05 * exact.var()
