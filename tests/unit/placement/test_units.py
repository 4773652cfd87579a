"""The partition into units on networks whose right answer is known by hand, and on torchvision families."""

import pytest
import torch
import torchvision
from torch import nn
from toys import NETWORKS, conv_bn, head, make_teacher

from zsq.placement.policies import quantize_residuals, with_second_input
from zsq.placement.sites import place
from zsq.placement.subgraphs import structure, unit_network, up_to
from zsq.placement.units import partition
from zsq.teacher.cifar_resnet import CifarResNet
from zsq.widths import Bits


def placed(network, first_last=8, fold=True, bits="W4A4", size=16):
    return place(
        network.eval(), torch.zeros(2, 3, size, size), Bits.parse(bits), first_last=first_last, fold=fold
    )


def units(network, granularity, size=16, **options):
    return partition(placed(network, size=size, **options), granularity, torch.zeros(1, 3, size, size))


def layers(network, granularity="block", **options):
    return [unit.layers for unit in units(network, granularity, **options)]


BLOCKS = {
    "plain": [("0.0",), ("1.0",), ("2.2",)],
    "depthwise": [("0.0",), ("1.0",), ("2.0",), ("3.2",)],
    "dropout": [("0.0",), ("2.0",), ("3.2",)],
    "pre-activation": [("conv1",), ("conv2",), ("head.2",)],
    "downsample": [("branch.0.0", "branch.1", "shortcut.0"), ("head.2",)],
    "squeeze-excite": [("stem.0",), ("gate.0.1", "gate.1"), ("tail.0.0",), ("tail.1.2",)],
    "dense": [("first.0",), ("second.0",), ("last.0.0",), ("last.1.2",)],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_of_every_kind_of_network(name):
    network = make_teacher(NETWORKS[name]).network
    assert layers(network) == BLOCKS[name]
    flat = [layer for block in BLOCKS[name] for layer in block]
    assert layers(network, "layer") == [(layer,) for layer in flat]


def test_blocks_of_a_cifar_resnet_end_at_their_relu():
    blocks = units(CifarResNet(20), "block", size=32)
    assert [unit.name for unit in blocks[:3]] == [
        "conv1", "layer1.0.conv1..layer1.0.conv2", "layer1.1.conv1..layer1.1.conv2",
    ]  # fmt: skip
    assert len(blocks) == 11 and blocks[-1].layers == ("linear",)
    assert (blocks[1].input, blocks[1].output) == ("relu", "relu_2")
    assert (blocks[4].input_shape, blocks[4].output_shape) == ((16, 32, 32), (32, 16, 16))


@pytest.mark.parametrize("fold", [True, False])
def test_batch_norm_and_activation_belong_to_the_layer_before(fold):
    (stem, *_) = units(make_teacher().network, "layer", fold=fold)
    assert stem.nodes[-1] == stem.output == "relu"
    assert len(stem.nodes) == 3 - fold


def test_pooling_belongs_to_no_unit():
    (*_, convolution, linear) = units(make_teacher().network, "block")
    assert len(convolution.output_shape) == 3, "a pooled target would hide most errors"
    assert linear.input_shape == (12,)


class Branches(nn.Module):
    """As RepVGG in training form: three branches added one after another."""

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 8, 2)
        self.wide, self.narrow = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.same = nn.BatchNorm2d(8)
        self.head = head(8, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.relu(self.wide(x) + self.narrow(x) + self.same(x)))


def test_several_additions_over_one_fork_are_one_block():
    assert layers(Branches()) == [("stem.0",), ("wide", "narrow"), ("head.2",)]


class LongSkip(nn.Module):
    """Two residual blocks under one more skip, as in super-resolution."""

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 8, 2)
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.head = head(8, 5)

    def forward(self, x):
        x = self.stem(x)
        y = x + self.a(x)
        y = y + self.b(y)
        return self.head(x + self.c(y))


def test_a_skip_over_several_blocks_is_not_a_block():
    assert layers(LongSkip()) == [("stem.0",), ("a",), ("b",), ("c",), ("head.2",)]
    (block_a,) = (unit for unit in units(LongSkip(), "block") if unit.layers == ("a",))
    assert "add" in block_a.output, "the unit ends after its addition"


def test_a_value_used_elsewhere_makes_no_block():
    class Tapped(LongSkip):
        def forward(self, x):
            x = self.stem(x)
            inner = self.b(self.a(x))
            return torch.cat([self.head(x + self.c(inner)), inner.mean((2, 3))], 1)

    assert layers(Tapped()) == [("stem.0",), ("a",), ("b",), ("c",), ("head.2",)]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "regnet_y_400mf", "shufflenet_v2_x0_5"])
def test_every_site_of_torchvision_networks_is_in_one_unit(name):
    placement = placed(torchvision.models.get_model(name, weights=None), size=64)
    order = {node.name: index for index, node in enumerate(placement.network.graph.nodes)}
    sites = sorted(site.path for site in placement.sites)
    for granularity in ("layer", "block"):
        found = partition(placement, granularity, torch.zeros(1, 3, 64, 64))
        assert sorted(site.path for unit in found for site in unit.sites) == sites
        ends = [order[unit.output] for unit in found]
        assert ends == sorted(ends) and all(order[unit.input] < order[unit.output] for unit in found)


@pytest.mark.parametrize("name", NETWORKS)
def test_units_one_after_another_compute_the_network(name):
    teacher = make_teacher(NETWORKS[name])
    placement = placed(teacher.network)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for unit in partition(placement, "block", images[:1]):
        entering, leaving = up_to(placement.network, [unit.input, unit.output])(images)
        network = unit_network(placement.network, unit, lambda node, module: module)
        torch.testing.assert_close(network(entering), leaving)
        assert entering.shape[1:] == unit.input_shape and leaving.shape[1:] == unit.output_shape


def test_units_share_a_structure_exactly_where_they_are_alike():
    placement = placed(CifarResNet(20), size=32)
    found = partition(placement, "block", torch.zeros(1, 3, 32, 32))
    keys = [structure(unit_network(placement.network, unit, lambda node, module: module)) for unit in found]
    groups = [keys.index(key) for key in keys]
    assert groups == [0, 1, 1, 1, 4, 5, 5, 7, 8, 8, 10]


def widths(placement):
    return {site.name: site.bits for site in placement.sites}


def test_second_input_takes_its_own_bits():
    before = placed(CifarResNet(20), size=32, bits="W2A4")
    after = with_second_input(before, 8)
    changed = {name for name, bits in widths(after).items() if bits != widths(before)[name]}
    assert changed == {"layer1.0.conv1.input"} and widths(after)["layer1.0.conv1.input"] == 8
    weights_only = with_second_input(placed(CifarResNet(20), size=32, bits="W2A32"), 8)
    assert {site.kind for site in weights_only.sites} == {"weight"}


def test_quantized_residuals_share_the_quantizer_of_the_next_layer():
    placement = placed(CifarResNet(20), size=32)
    quantize_residuals(placement)
    nodes = {node.name: node for node in placement.network.graph.nodes}
    additions = [node for name, node in nodes.items() if name.startswith("add")]
    assert len(additions) == 9
    for addition in additions:
        shortcut = addition.all_input_nodes[1]
        while "input_quantizer" not in str(shortcut.target):
            assert "layer" not in str(shortcut.target) or "shortcut" in str(shortcut.target)
            shortcut = shortcut.all_input_nodes[0]
    blocks = partition(placement, "block", torch.zeros(1, 3, 32, 32))
    assert [unit.layers for unit in blocks] == layers(CifarResNet(20), size=32)
    assert placement.network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


class CountedAttention(nn.Module):
    """Attention whose split of heads reads the number of images, as LeViT's does."""

    def __init__(self):
        super().__init__()
        self.stem, self.qkv, self.proj = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        y = self.qkv(x)
        query, key, value = y.reshape(y.shape[0], 16, 2, -1).split([4, 4, 4], dim=3)
        weights = (query.transpose(1, 2) @ key.permute(0, 2, 3, 1)).softmax(-1)
        return x + self.proj((weights @ value.transpose(1, 2)).transpose(1, 2).flatten(2))


def test_a_block_that_reads_the_number_of_images_is_a_unit():
    network = CountedAttention()
    placement = placed(network)
    _, block = partition(placement, "block", torch.zeros(1, 3, 16, 16))
    assert block.layers == ("qkv", "proj") and block.input_shape == block.output_shape == (16, 8)
    assert {site.name for site in block.sites} >= {
        "matmul.left",
        "matmul.right",
        "matmul1.left",
        "matmul1.right",
    }
    alone = unit_network(placement.network, block, lambda node, module: module)
    images = torch.randn(5, 3, 16, 16)
    entering, leaving = up_to(placement.network, [block.input, block.output])(images)
    torch.testing.assert_close(alone(entering), leaving)
