"""Moments that pass a captured graph, against samples of independent Gaussian inputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zsq.core.errors import MismatchError
from zsq.engine.moments import Moments, Rules, SummedGaussians
from zsq.engine.walk import MomentWalk
from zsq.graph import capture


class Computes(nn.Module):
    def __init__(self, function, layer=None):
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, x):
        return self.function(x) if self.layer is None else self.function(self.layer(x))


def passed(network, shape, rules=None):
    """The moments of its output for N(0.4, 1.3^2) inputs, and its walk."""
    walk = MomentWalk(capture(network, torch.zeros(2, *shape)).double(), rules or Rules())
    zeros = torch.zeros(1, *shape, dtype=torch.float64)
    with torch.no_grad():
        return walk.run(Moments(zeros + 0.4, zeros + 1.3**2)), walk


def same(x):
    return x


LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 3, 2), (4, 9)),
    "conv3d": (nn.Conv3d(2, 3, 2, padding=1), (2, 4, 4, 4)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (4, 4, 4)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, 2, bias=False), (4, 5)),
    "tokens": (nn.Linear(4, 6), (5, 4)),
}
FUNCTIONS = {
    "max_pool1d": (lambda x: F.max_pool1d(x, 2), (2, 8), 0.03),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), (2, 4, 4, 4), 0.02),
    "square": (lambda x: x * x, (3, 4), 0.1),
    "reciprocal": (lambda x: 2 / (x.sigmoid() + 1), (3, 4), 0.02),
    "cast": (lambda x: x.half().float() + 1, (3, 4), 0.02),
    "pad": (lambda x: F.pad(x, (1, 0), value=3.0), (3, 4), 0.02),
    "reflected": (lambda x: F.pad(x, (1, 0), mode="reflect"), (3, 4), 0.02),
    "rsub": (lambda x: torch.rsub(x, torch.ones(4), alpha=3), (3, 4), 0.1),
    "joined": (lambda x: torch.cat([x, torch.ones(1, 1).expand(x.shape[0], 1)], 1), (3,), 0.02),
    "sum": (lambda x: x.sum(2), (3, 4), 0.1),
    "split": (lambda x: x.split(2, 1)[1] * 2.0, (4, 3), 0.05),
}


def against_samples(network, shape, tolerance):
    found, walk = passed(network, shape)
    inputs = 0.4 + 1.3 * torch.randn(60_000, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sampled = network(inputs).double()
    torch.testing.assert_close(found.mean[0], sampled.mean(0), rtol=0, atol=tolerance)
    torch.testing.assert_close(found.var[0].sqrt(), sampled.std(0), rtol=0, atol=tolerance)
    return walk


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    walk = against_samples(Computes(same, layer), shape, 0.05)
    assert list(walk.layers) == ["layer"]
    assert walk.layers["layer"].mean.shape == (6 if name != "conv3d" else 3,)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    function, shape, tolerance = FUNCTIONS[name]
    against_samples(Computes(function), shape, tolerance)


@pytest.mark.parametrize("name", LAYERS)
def test_the_published_recursion_is_per_output_channel_of_every_layer(name):
    layer, shape = LAYERS[name]
    walk = passed(Computes(same, layer), shape, SummedGaussians())[1]
    mean_C = walk.layers["layer"].mean
    given = layer.weight.detach().double()
    if name.startswith("transposed"):
        filters = given.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1).flatten(1)
    else:
        filters = given.flatten(1)
    shift = 0.4 + (0 if layer.bias is None else layer.bias.detach().double())
    wanted = filters.mean(1) + shift
    channels = min(len(wanted), 4 if name != "conv3d" else 2)
    torch.testing.assert_close(mean_C[:channels], wanted[:channels])


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: x.softmax(1), "softmax"),
        (lambda x: x @ x.transpose(1, 2), "matmul"),
        (lambda x: x / x, "div"),
        (lambda x: x.to(torch.int64), "to"),
        (lambda x: F.layer_norm(x, x.shape[1:]), "layer_norm"),
        (lambda x: x.masked_fill(x > 0, 1.0), "gt"),
        (lambda x: F.glu(x, 1), "glu"),
    ],
)
def test_lost_moments_name_the_operation_and_the_layer_before_it(function, operation):
    with pytest.raises(MismatchError, match=rf"aten\.{operation}.* behind layer 'layer'; expected one whose"):
        passed(Computes(function, nn.Conv1d(4, 6, 3)), (4, 8))
    with pytest.raises(MismatchError, match=rf"aten\.{operation}\S*; expected"):
        passed(Computes(function), (4, 8))
