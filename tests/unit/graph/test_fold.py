"""Batch norms folded into the layers before them."""

import pytest
import torch
from torch import nn

from zsq.graph import capture
from zsq.graph.fold import fold_batch_norms


def settled(network):
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for value in (module.running_mean, module.running_var, module.weight, module.bias):
                value.data.uniform_(0.5, 1.5)
    return network.eval().requires_grad_(False)


def norms(graph):
    return [
        name for name, module in graph.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]


LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), (4, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (4, 9, 8)),
    "conv3d": (nn.Conv3d(4, 6, 2, bias=False), nn.BatchNorm3d(6), (4, 4, 4, 4)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, 2), nn.BatchNorm1d(6), (4, 5)),
    "transposed 2d": (nn.ConvTranspose2d(4, 6, 3, 2, groups=2, bias=False), nn.BatchNorm2d(6), (4, 5, 5)),
    "transposed 3d": (nn.ConvTranspose3d(4, 6, 2), nn.BatchNorm3d(6), (4, 3, 3, 3)),
    "linear": (nn.Linear(4, 6), nn.BatchNorm1d(6), (4,)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_takes_a_batch_norm(name):
    layer, norm, shape = LAYERS[name]
    network = settled(nn.Sequential(layer, norm, nn.ReLU()))
    graph = capture(network, torch.zeros(2, *shape))
    outputs = fold_batch_norms(graph)
    assert not norms(graph) and list(outputs) == ["0"]
    assert torch.equal(outputs["0"].mean_C, norm.bias) and torch.equal(outputs["0"].std_C, norm.weight)
    images = torch.randn(3, *shape)
    torch.testing.assert_close(graph(images), network(images))


class Tokens(nn.Module):
    """As many tokens as channels."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.norm(self.linear(x))


def test_a_norm_over_the_rows_of_a_linear_layer_stays():
    network = settled(Tokens())
    graph = capture(network, torch.zeros(2, 6, 4))
    assert not fold_batch_norms(graph) and norms(graph) == ["norm"]
    images = torch.randn(3, 6, 4)
    torch.testing.assert_close(graph(images), network(images))


class Shared(nn.Module):
    def __init__(self, twice):
        super().__init__()
        self.conv, self.norm, self.twice = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), twice

    def forward(self, x):
        y = self.conv(x)
        return self.norm(self.conv(self.norm(y))) if self.twice else self.norm(y) + y


@pytest.mark.parametrize("twice", [False, True])
def test_a_layer_with_another_reader_or_call_keeps_its_norm(twice):
    network = settled(Shared(twice))
    graph = capture(network, torch.zeros(2, 3, 4, 4))
    assert not fold_batch_norms(graph) and norms(graph) == ["norm"]
