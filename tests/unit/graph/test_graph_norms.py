"""Layers that store running statistics and are no batch norm of torch's."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from zsq.graph import capture
from zsq.graph.norms import equal_batch_norm, with_batch_norms


class Frozen(nn.Module):
    """A frozen batch norm as libraries write it, its epsilon in the code; `rest` makes it another layer."""

    def __init__(self, epsilon: float, broadcast: tuple[int, ...] = (1, -1, 1, 1), rest: float = 0.0) -> None:
        super().__init__()
        self._arithmetic = (epsilon, broadcast, rest)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        epsilon, shape, rest = self._arithmetic
        scale = (self.running_var + epsilon).rsqrt() * self.weight
        shift = self.bias - self.running_mean * scale
        return x * scale.view(shape) + shift.view(shape) + rest * x.square()


class Functional(Frozen):
    """Takes tensors of any rank."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-4)

    def __init__(self) -> None:
        super().__init__(1e-4)
        self.variance_epsilon = 1e-4


def settled(norm: nn.Module) -> nn.Module:
    for value in (*norm.parameters(), *norm.buffers()):
        if value.dim():
            value.data = torch.rand(value.shape) + 0.5
    return norm.eval()


def tracking(kind: Callable[..., nn.Module], affine: bool = True) -> nn.Module:
    return settled(kind(6, affine=affine, track_running_stats=True))


CASES = {
    "torchvision": lambda: (settled(torchvision.ops.FrozenBatchNorm2d(6, eps=1e-3)), (5, 4)),
    "eps 0": lambda: (Frozen(0.0), (5, 4)),
    "eps 1e-5": lambda: (Frozen(1e-5), (5, 4)),
    "rows": lambda: (Frozen(1e-5, (1, -1)), ()),
    "signals": lambda: (Frozen(1e-5, (1, -1, 1)), (7,)),
    "volumes": lambda: (Frozen(1e-5, (1, -1, 1, 1, 1)), (3, 4, 5)),
    "any rank": lambda: (Functional(), (7,)),
    "instance 1-d": lambda: (tracking(nn.InstanceNorm1d), (7,)),
    "instance 2-d": lambda: (tracking(nn.InstanceNorm2d, affine=False), (5, 4)),
    "instance 3-d": lambda: (tracking(nn.InstanceNorm3d), (3, 4, 5)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_layer_that_computes_a_batch_norm_is_one(case: str) -> None:
    torch.manual_seed(0)
    layer, positions = CASES[case]()
    x = torch.randn(3, 6, *positions)
    norm = equal_batch_norm(layer)
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    # Before the layer runs: torch 2.10 rounds an instance norm's statistics anew when it does.
    assert torch.equal(norm.running_var, layer.running_var)
    torch.testing.assert_close(norm(x), layer(x))
    assert norm.running_var is not layer.running_var


def test_the_epsilon_that_no_attribute_states_is_found() -> None:
    assert equal_batch_norm(Frozen(0.0)).eps < 1e-37
    assert equal_batch_norm(Functional()).eps == 1e-4


@pytest.mark.parametrize(
    "layer",
    [
        Frozen(1e-5, rest=0.01),
        nn.BatchNorm2d(6),
        nn.InstanceNorm2d(6, affine=True),
        nn.GroupNorm(2, 6),
        nn.Sequential(nn.BatchNorm2d(6)),
    ],
)
def test_other_layers_are_none(layer: nn.Module) -> None:
    assert equal_batch_norm(layer) is None


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norms = nn.ModuleList([Frozen(1e-5), tracking(nn.InstanceNorm2d)])
        self.again = self.norms[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.norms[1](self.norms[0](self.conv(x))))


def test_the_copy_has_batch_norms_under_the_same_names_and_the_network_stays_as_it_was() -> None:
    network = Network().eval()
    before = copy.deepcopy(network.state_dict())
    copied = with_batch_norms(network)
    assert copied.norms[0] is copied.again
    assert isinstance(copied.norms[1], nn.SyncBatchNorm)
    assert isinstance(network.norms[0], Frozen)
    assert network.state_dict().keys() == before.keys()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(copied(x), network(x))
    assert with_batch_norms(Frozen(1e-5))(torch.randn(2, 6, 3, 3)).shape == (2, 6, 3, 3)


def test_a_captured_graph_calls_them_as_layers() -> None:
    network = Network().eval()
    x = torch.randn(2, 3, 8, 8)
    graph = capture(network, x)
    assert isinstance(graph.get_submodule("norms.1"), nn.BatchNorm2d)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in graph.modules()) == 2
    torch.testing.assert_close(graph(x), network(x))
    assert isinstance(network.norms[0], Frozen)
