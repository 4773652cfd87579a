"""Transformers over the places of a patch, as in MobileViT: the first axis is images times places."""

import copy

import torch
from torch import nn
from toys import make_teacher, structured_images

from zsq.core.runtime import Runtime
from zsq.placement.by_image import view_by_image
from zsq.placement.sites import place
from zsq.placement.subgraphs import unit_network, up_to
from zsq.placement.units import partition
from zsq.students import create
from zsq.widths import Bits

IMAGE = torch.zeros(1, 3, 16, 16)


class Places(nn.Module):
    """Two residual blocks on (4 N, 4, 8); `images_last`: a place of all images before the next place."""

    def __init__(self, channels, outputs, images_last=False):
        super().__init__()
        self.stem, self.last = nn.Conv2d(channels, 8, 4, 4), nn.Linear(8, outputs)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(2)
        )
        self.images_last = images_last

    def forward(self, x):
        count = x.shape[0]
        x = self.stem(x).flatten(2).reshape(count, 8, 4, 4).permute(0, 2, 3, 1)
        x = x.transpose(0, 1) if self.images_last else x
        x = x.reshape(count * 4, 4, 8)
        for block in self.blocks:
            x = x + block(x)
        x = x.reshape(4, count, 4, 8).transpose(0, 1) if self.images_last else x.reshape(count, 4, 4, 8)
        return self.last(x.mean((1, 2)))


class Turned(Places):
    """The same, in the order that must not be cut."""

    def __init__(self, channels, outputs):
        super().__init__(channels, outputs, images_last=True)


class Log:
    """Which units a fit learns."""

    def __init__(self):
        self.units = set()

    def advance(self, amount, unit=None, **values):
        self.units |= set() if unit is None else {unit}


def viewed(build):
    """(the network as captured, the placement with views in it)."""
    placement = place(make_teacher(build).network, IMAGE.repeat(2, 1, 1, 1), Bits(4, 4), fold=True)
    before = copy.deepcopy(placement.network)
    view_by_image(placement, IMAGE)
    return before, placement


def test_blocks_on_rows_of_images_begin_and_end_with_images():
    before, placement = viewed(Places)
    images = torch.randn(5, 3, 16, 16)
    assert torch.equal(placement.network(images), before(images))
    units = partition(placement, "block", IMAGE)
    assert [unit.by_image for unit in units] == [True] * 4
    for block in units[1:3]:
        assert block.input_shape[-2:] == block.output_shape[-2:] == (4, 8)
        alone = unit_network(placement.network, block, lambda node, module: module)
        entering, leaving = up_to(placement.network, [block.input, block.output])(images)
        assert len(entering) == len(leaving) == 5
        torch.testing.assert_close(alone(entering), leaving)


def test_rows_that_are_not_in_the_order_of_the_images_are_left_alone():
    before, placement = viewed(Turned)
    assert placement.network.code == before.code
    assert [u.by_image for u in partition(placement, "block", IMAGE)] == [True, False, False, True]


def test_every_unit_is_learned():
    log, teacher = Log(), make_teacher(Places)
    images = ((structured_images((8, 3, 16, 16), seed=1) * 0.25 + 0.5).clamp(0, 1) * 255).to(torch.uint8)
    student = create("genie-m", teacher.spec, {"iterations": 2, "batch": 4}, Runtime())
    fitted = student.fit(teacher, images, Bits(8, 8), log=log)
    assert log.units == {0, 1, 2, 3}
    norm = teacher.spec.pixels_to_norm(images)
    own, exact = fitted.network(norm), teacher.network(norm)
    assert (own - exact).square().mean() < 0.05 * exact.var()
