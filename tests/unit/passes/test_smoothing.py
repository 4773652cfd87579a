"""Ranges of activations moved into weights: what the network computes stays, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zsq.core.errors import MismatchError
from zsq.graph import capture
from zsq.passes import prepare
from zsq.passes.smoothing import smooth
from zsq.placement.channels import FIXED, channels_of

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


class Shuffled(nn.Module):
    """Channels are split, joined, pooled, enlarged and added, as in small detectors."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.point = nn.Conv2d(4, 4, 1)
        self.down = nn.Conv2d(8, 8, 1)
        self.up = nn.Conv2d(16, 6, 1)
        self.side = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.last = nn.Linear(6 * 16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = torch.cat([x[:, 0::2], F.relu(self.point(self.depthwise(x[:, 1::2])))], 1)
        coarse = F.relu(self.down(F.avg_pool2d(x, 3, 2, 1)))
        x = F.relu(self.up(torch.cat([x, F.interpolate(coarse, scale_factor=2.0)], 1)))
        x = F.relu(x + self.side(x))
        return self.last(F.max_pool2d(x, 2).flatten(1))


class Gated(nn.Module):
    """Every channel passes a sigmoid or a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.last(self.twice(self.twice(torch.sigmoid(self.first(x)))))


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build().double().eval()
        for name, parameter in network.named_parameters():
            if name in ("stem.weight", "point.weight", "up.weight"):
                parameter.data[1] *= 40  # one channel is far larger than the others
    return capture(network, IMAGES[:2])


@pytest.fixture(scope="module")
def shuffled():
    return seeded(Shuffled)


def inputs_of(network, names):
    found = {}
    handles = [
        network.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: found.update({name: given[0]})
        )
        for name in names
    ]
    network(IMAGES)
    for handle in handles:
        handle.remove()
    return found


def test_the_output_stays_and_channels_become_alike(shuffled):
    network = copy.deepcopy(shuffled)
    smooth(network, {}, [IMAGES[:4], IMAGES[4:]])
    assert torch.allclose(network(IMAGES), shuffled(IMAGES), rtol=1e-9, atol=1e-9)
    names = ("depthwise", "point", "down", "up", "side", "last")
    before, after = inputs_of(shuffled, names), inputs_of(network, names)
    for name in ("down", "up", "side"):
        spans = [
            (lambda largest: (largest.max() / largest.median()).item())(x[name].abs().amax((0, 2, 3)))
            for x in (before, after)
        ]
        assert spans[1] < 0.5 * spans[0], (name, spans)


def test_channels_that_are_joined_or_added_have_one_group(shuffled):
    channels = channels_of(shuffled, IMAGES[:1])
    given, read = channels.given, channels.read
    assert torch.equal(read["depthwise"], given["stem"][1::2])
    assert torch.equal(read["up"], torch.cat([given["stem"][0::2], given["point"], given["down"]]))
    assert torch.equal(read["side"], given["up"]) and torch.equal(given["side"], given["up"])
    assert torch.equal(read["last"], given["up"].repeat_interleave(16))
    assert read["stem"].tolist() == [FIXED] * 3 and given["last"].tolist() == [FIXED] * 5


def test_two_layers_get_the_factors_of_the_formula():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pair = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).double().eval()
    network = capture(pair, IMAGES[:2])
    smooth(network, {}, [IMAGES])
    largest = F.relu(pair[0](IMAGES)).amax((0, 2, 3))
    weight = pair[2].weight[:, :, 0, 0].abs()
    columns = (weight / weight.amax(1, keepdim=True)).amax(0)
    factor = ((largest / largest.max()) / columns).sqrt()
    found = network.get_submodule("0").weight / pair[0].weight
    assert torch.allclose(found.amax((1, 2, 3)), 1 / factor, rtol=1e-9)


def test_a_network_without_free_channels_is_refused_in_one_line():
    network = seeded(Gated)
    assert set(channels_of(network, IMAGES[:1]).given["first"].tolist()) == {FIXED}
    with pytest.raises(MismatchError, match="no channels of this network can be smoothed"):
        prepare(("fold", "smooth"), network, None, [IMAGES])
