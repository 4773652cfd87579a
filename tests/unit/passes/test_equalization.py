"""Cross-layer equalization and bias absorption, in float64 against the functions they must keep."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zsq.graph import capture
from zsq.graph.fold import Gaussian, fold_batch_norms
from zsq.graph.layers import CappedReLU
from zsq.passes.equalization import absorb_bias, equalize, relu6_to_relu
from zsq.placement.pairs import pairs_of
from zsq.quantizers.grids import affine_grid, fake_quantize


def seeded(build, seed=0):
    """A float64 network with weights of very unequal channels and BN statistics of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                scale = torch.exp(2 * torch.randn(len(module.weight)))
                module.weight.data.mul_(scale.view(-1, *[1] * (module.weight.dim() - 1)))
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.normal_(module.running_mean)
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return network.double().eval()


def conv_bn(channels_in, channels, relu, **changes):
    conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False, **changes)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), relu)


def chain(relu=nn.ReLU):
    return nn.Sequential(
        conv_bn(3, 8, relu()),
        nn.MaxPool2d(2),
        conv_bn(8, 8, relu(), groups=8),
        conv_bn(8, 12, relu(), groups=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 6),
        nn.PReLU(6),
        nn.Linear(6, 5),
    )


EXAMPLE = torch.zeros(2, 3, 8, 8).double()
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


def folded(network):
    module = capture(network, EXAMPLE)
    return module, fold_batch_norms(module)


def ranges(network, first, second):
    """Largest magnitudes, written out by loops."""
    one, two = network.get_submodule(first), network.get_submodule(second)
    outgoing = one.weight.detach().abs().flatten(1).amax(1).numpy()
    weight = two.weight.detach().abs().numpy()
    incoming = np.zeros(len(outgoing))
    if isinstance(two, nn.Linear):
        repeat = two.in_features // len(outgoing)
        for index in range(two.in_features):
            incoming[index // repeat] = max(incoming[index // repeat], weight[:, index].max())
        return outgoing, incoming
    inside, per_group = two.in_channels // two.groups, two.out_channels // two.groups
    for out in range(two.out_channels):
        for index in range(inside):
            channel = out // per_group * inside + index
            incoming[channel] = max(incoming[channel], weight[out, index].max())
    return outgoing, incoming


@pytest.mark.parametrize("relu", [nn.ReLU, nn.ReLU6, nn.LeakyReLU])
def test_the_output_stays_and_ranges_of_every_pair_agree(relu):
    network = seeded(lambda: chain(relu))
    module, outputs = folded(network)
    before = copy.deepcopy(module)
    pairs = [(pair.first, pair.second) for pair in pairs_of(module)]
    assert pairs == [("0.0", "2.0"), ("2.0", "3.0"), ("3.0", "6"), ("6", "8")]
    equalize(module, outputs)
    torch.testing.assert_close(module(IMAGES), network(IMAGES), rtol=1e-9, atol=1e-9)
    for first, second in pairs:
        outgoing, incoming = ranges(module, first, second)
        np.testing.assert_allclose(outgoing, incoming, rtol=5e-3)
        assert not np.allclose(*ranges(before, first, second), rtol=0.1)


def test_factors_of_one_pair_are_the_closed_form():
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    r1 = network[0].weight.detach().abs().amax((1, 2, 3)).numpy()
    r2 = network[2].weight.detach().abs().amax((0, 2, 3)).numpy()
    weight, bias = network[0].weight.detach().numpy(), network[0].bias.detach().numpy()
    module = capture(network, EXAMPLE)
    scale = np.sqrt(r1 / r2)
    moved = equalize(module, {"0": Gaussian(torch.ones(4).double(), torch.full((4,), 2.0).double())})
    first = module.get_submodule("0")
    np.testing.assert_allclose(first.weight.detach().numpy(), weight / scale[:, None, None, None], rtol=1e-9)
    np.testing.assert_allclose(first.bias.detach().numpy(), bias / scale, rtol=1e-9)
    np.testing.assert_allclose(moved["0"].mean_C.numpy(), 1 / scale, rtol=1e-9)
    np.testing.assert_allclose(moved["0"].std_C.numpy(), 2 / scale, rtol=1e-9)


def test_depthwise_triples_get_their_common_range_in_one_sweep(monkeypatch):
    monkeypatch.setattr("zsq.passes.equalization.MOST_SWEEPS", 1)
    network = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 5, 1)
        )
    )
    r1, r2 = ranges(network, "0", "2")
    _, r3 = ranges(network, "2", "4")
    module = capture(network, EXAMPLE)
    equalize(module, {})
    common = np.cbrt(r1 * r2 * r3)
    for found in (*ranges(module, "0", "2"), *ranges(module, "2", "4")):
        np.testing.assert_allclose(found, common, rtol=1e-9)


def test_dead_channels_are_left_alone():
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    network[0].weight.data[1] = 0
    network[2].weight.data[:, 2] = 0
    module = capture(network, EXAMPLE)
    equalize(module, {})
    torch.testing.assert_close(module(IMAGES), network(IMAGES))
    assert torch.equal(module.get_submodule("0").weight[2], network[0].weight[2])


class Residual(nn.Module):
    """`stem` is read twice, `two` is added to it, `shared` is called twice: none of them is in a pair."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.shared = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + self.two(F.relu6(self.one(x)))
        return self.shared(torch.sigmoid(self.shared(F.relu(x))))


def test_only_what_is_read_by_the_next_layer_alone_is_a_pair():
    module = capture(seeded(Residual), EXAMPLE)
    assert [(pair.first, pair.second) for pair in pairs_of(module)] == [("one", "two")]
    equalize(module, {})
    torch.testing.assert_close(module(IMAGES), seeded(Residual)(IMAGES))
    assert sum(isinstance(part, CappedReLU) for part in module.modules()) == 1


def test_relu6_loses_its_cap_where_asked():
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 2, 1)))
    module = capture(network, EXAMPLE)
    relu6_to_relu(module)
    expected = network[2](F.relu(network[0](10 * IMAGES)))
    torch.testing.assert_close(module(10 * IMAGES), expected)
    functional = capture(seeded(Residual), EXAMPLE)
    relu6_to_relu(functional)
    assert not [node for node in functional.graph.nodes if node.target is F.relu6]


def test_per_tensor_error_falls_where_channels_were_unequal():
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)))
    module = capture(network, EXAMPLE)
    equalize(module, {})

    def relative_error(weight):
        weight = weight.detach().float()
        step, zero = affine_grid(weight.min(), weight.max(), 8)
        error = (fake_quantize(weight, step, zero, 0, 255) - weight).square().flatten(1).mean(1)
        return (error / weight.square().flatten(1).mean(1)).mean().item()

    assert relative_error(module.get_submodule("0").weight) < relative_error(network[0].weight) / 4


def test_absorption_is_exact_above_the_threshold():
    """Valid padding, and images on which every pre-activation exceeds what is absorbed."""
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2)))
    with torch.no_grad():
        network[0].weight.mul_(0.01)
        network[0].bias.copy_(torch.tensor([5.0, 6.0, -1.0, 2.0]))
    outputs = {"0": Gaussian(network[0].bias.detach().clone(), torch.tensor([0.5, 3.0, 0.1, 0.2]).double())}
    absorbed = np.maximum(0, np.array([5.0, 6.0, -1.0, 2.0]) - 3 * np.array([0.5, 3.0, 0.1, 0.2]))
    module = capture(network, EXAMPLE)
    moved = absorb_bias(module, outputs)
    np.testing.assert_allclose(
        module.get_submodule("0").bias.detach().numpy(), network[0].bias.detach().numpy() - absorbed
    )
    np.testing.assert_allclose(moved["0"].mean_C.numpy(), outputs["0"].mean_C.numpy() - absorbed)
    torch.testing.assert_close(module(IMAGES), network(IMAGES))
    assert absorbed.tolist() == pytest.approx([3.5, 0, 0, 1.4]) and math.isclose(moved["0"].std_C[0], 0.5)


def test_absorption_makes_a_bias_and_stops_at_a_cap():
    network = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False), nn.ReLU6(), nn.Conv2d(4, 2, 1)
        )
    )
    high = Gaussian(torch.full((4,), 9.0).double(), torch.ones(4).double())
    module = capture(network, EXAMPLE)
    absorb_bias(module, {"0": high, "2": high})
    expected = (network[2].weight[:, :, 0, 0] @ torch.full((4,), 6.0).double()).detach()
    torch.testing.assert_close(module.get_submodule("2").bias.detach(), expected)
    assert torch.equal(module.get_submodule("4").bias, network[4].bias)
