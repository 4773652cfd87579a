"""Merging branches and splitting kernels, in float64: the network computes the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from zsq.graph import capture
from zsq.graph.fold import fold_batch_norms
from zsq.placement.branches import merge_branches, split_centres


def norm(channels):
    layer = nn.BatchNorm2d(channels)
    for values in (layer.weight, layer.bias, layer.running_mean):
        nn.init.normal_(values)
    nn.init.uniform_(layer.running_var, 0.5, 2)
    return layer


class Block(nn.Module):
    """A RepVGG block in training form; `order` is the order of its additions."""

    def __init__(self, channels, out, stride=1, groups=1, order=(0, 1, 2), identity=None):
        super().__init__()
        self.dense = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, groups=groups, bias=False), norm(out)
        )
        self.point = nn.Sequential(nn.Conv2d(channels, out, 1, stride, 0, groups=groups), norm(out))
        self.identity = identity or (norm(channels) if stride == 1 and channels == out else None)
        self.order = order

    def forward(self, x):
        branches = [self.dense(x), self.point(x)] + ([self.identity(x)] if self.identity else [])
        branches = [branches[i] for i in self.order if i < len(branches)]
        total = branches[0]
        for branch in branches[1:]:
            total = total + branch
        return F.relu(total)


def same(network, change):
    torch.manual_seed(0)
    network = network.eval().double()
    module = capture(network, torch.zeros(2, 4, 7, 9).double())
    fold_batch_norms(module)
    result = change(module)
    module.graph.lint()
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(module(x), network(x), rtol=1e-10, atol=1e-10)
    return module, result


def calls(module, kind):
    names = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    return [name for name in names if isinstance(module.get_submodule(name), kind)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_blocks_become_one_convolution_each(order, groups):
    blocks = nn.Sequential(
        Block(4, 8, 2, groups, order),
        Block(8, 8, 1, groups, order),
        Block(8, 8, 1, groups, order, identity=nn.Identity()),
    )
    module, merged = same(blocks, merge_branches)
    assert merged == 1 + 2 + 2
    assert len(calls(module, nn.Conv2d)) == 3 and not calls(module, nn.BatchNorm2d)
    assert all(module.get_submodule(name).kernel_size == (3, 3) for name in calls(module, nn.Conv2d))


class Elsewhere(nn.Module):
    """Additions that are no parallel branches."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 1)
        self.wide = nn.Conv2d(4, 4, 5, 1, 2)
        self.dilated = nn.Conv2d(4, 4, 3, 1, 2, dilation=2)
        self.reflected = nn.Conv2d(4, 4, 3, 1, 1, padding_mode="reflect")

    def forward(self, x):
        other = F.relu(x)
        x = self.first(x) + self.second(other)
        used_twice = self.first(x)
        x = used_twice + self.second(x) * used_twice
        x = x + self.wide(x)
        x = x + self.dilated(x)
        x = self.reflected(x) + x
        return torch.add(x, self.second(x), alpha=2) + 1


def test_other_additions_stay():
    module, merged = same(Elsewhere(), merge_branches)
    assert merged == 0
    assert isinstance(module, fx.GraphModule)


@pytest.mark.parametrize(
    "options, coarse_size",
    [
        ({"padding": 1}, 1),
        ({"padding": 1, "stride": 2, "bias": False}, 1),
        ({"padding": "same"}, 1),
        ({"padding": 2, "dilation": 2}, 1),
        ({"padding": 1, "groups": 4}, 1),
        ({"padding": 1, "padding_mode": "reflect"}, 3),
        ({"padding": 0}, 3),
        ({"padding": 2}, 3),
        ({"padding": (1, 0)}, 3),
    ],
)
def test_a_split_kernel_gives_the_same_sum(options, coarse_size):
    network = nn.Sequential(nn.Conv2d(4, 8, 3, **options), nn.ReLU(), nn.Conv2d(8, 2, 1))
    module, split = same(network, split_centres)
    assert split == ("0",)
    coarse, fine = module.get_submodule("0_coarse"), module.get_submodule("0")
    assert coarse.kernel_size == (coarse_size,) * 2 and coarse.bias is None
    assert fine.weight[:, :, 1, 1].eq(0).all()
    assert torch.equal(coarse.weight.sum((2, 3)), network[0].weight[:, :, 1, 1])
    assert not list(network[0].weight[:, :, 1, 1].eq(0).nonzero())


def test_a_layer_that_is_called_twice_is_split_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(F.relu(self.conv(x)))

    module, split = same(Twice(), split_centres)
    assert split == ("conv",) and len(calls(module, nn.Conv2d)) == 4
