"""Networks as people write them: the captured graph gives their outputs, for any number of images."""

import copy

import pytest
import torch
import torch.nn.functional as F
from captured_networks import NETWORKS, Network, attends, attends_causally, built, conv, parameter, tokens
from torch import nn
from torch.utils import _pytree as pytree

from zsq.core.errors import UntraceableError
from zsq.graph import capture
from zsq.graph.capture import is_captured
from zsq.graph.layers import TransposedConv2d
from zsq.graph.vocabulary import is_layer, name_of, operands, operation


def both(network, graph, count):
    images = torch.randn(count, 3, 8, 8)
    with torch.no_grad():
        pairs = (pytree.tree_flatten(module(images.clone())) for module in (network, graph))
        (wanted, spec), (found, found_spec) = pairs
    assert found_spec == spec
    return wanted, found


@pytest.mark.filterwarnings("ignore:.*weights of Network are computed")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_gives_the_same_bits_for_any_number_of_images(name):
    network = built(name)
    before = copy.deepcopy(network.state_dict())
    graph = capture(network, torch.randn(2, 3, 8, 8))
    assert is_captured(graph) and not graph.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    for count in (1, 3):
        for wanted, found in zip(*both(network, graph, count), strict=True):
            assert torch.equal(wanted, found) if isinstance(wanted, torch.Tensor) else wanted == found
    for node in graph.graph.nodes:
        target = node.target
        assert not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable


@pytest.mark.parametrize("function", [attends, attends_causally])
def test_attention_is_two_products(function):
    """Another kernel than torch's: close, not the same bits."""
    torch.manual_seed(0)
    parts = {"attention": nn.MultiheadAttention(8, 2, batch_first=True)} if function is attends else {}
    network = Network(function, conv=conv(), **parts).eval().requires_grad_(False)
    graph = capture(network, torch.randn(2, 3, 8, 8))
    for count in (1, 3):
        for wanted, found in zip(*both(network, graph, count), strict=True):
            torch.testing.assert_close(found, wanted)
    names = [name_of(graph, node) for node in graph.graph.nodes]
    assert "scaled_dot_product_attention" not in names
    products = [node for node in graph.graph.nodes if operands(graph, node)]
    assert products and all(len(operands(graph, node)) == 2 for node in products)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(), nn.BatchNorm2d(8), nn.PReLU(8))
        self.up = nn.ConvTranspose2d(8, 4, 2, 2, groups=2)
        self.block = nn.ModuleDict({"norm": nn.LayerNorm(16), "aside": nn.Linear(2, 2)})
        self.head = nn.Linear(4 * 256, 5)

    def forward(self, x):
        return self.head(self.block["norm"](self.up(self.stem(x))).flatten(1))


def test_layers_have_their_own_names():
    network = Named().eval()
    graph = capture(network, torch.zeros(2, 3, 8, 8))
    called = {str(node.target): type(graph.get_submodule(str(node.target))) for node in graph.graph.nodes
              if node.op == "call_module"}  # fmt: skip
    assert list(called) == ["stem.0", "stem.1", "stem.2", "up", "block.norm", "head"]
    assert called["up"] is TransposedConv2d and issubclass(called["stem.0"], nn.Conv2d)
    assert graph.up.weight.shape == (4, 4, 2, 2)
    layers = [str(node.target) for node in graph.graph.nodes if is_layer(graph, node)]
    assert layers == ["stem.0", "up", "head"]
    assert torch.equal(graph.head.weight, network.head.weight)
    assert graph.head.weight is not network.head.weight


def test_functions_with_parameters_are_layers():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel, self.table, self.w = parameter(8, 3, 3, 3), parameter(5, 8), parameter(8, 5)
            self.mean, self.var = (nn.Buffer(torch.rand(8) + 0.5) for _ in range(2))

        def forward(self, x):
            y = F.batch_norm(F.conv2d(x, self.kernel), self.mean, self.var).mean((2, 3))
            return F.linear(y, self.table) + y @ self.w + torch.einsum("nc,kc->nk", y, self.table * 2)

    network = Functional().eval()
    with pytest.warns(UserWarning, match="1 weights of Functional are computed from others"):
        graph = capture(network, torch.zeros(2, 3, 8, 8))
    layers = {str(node.target) for node in graph.graph.nodes if is_layer(graph, node)}
    assert {"kernel", "table", "w"} < layers and len(layers) == 4
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(graph(images), network(images))


def parametrised(kind):
    network = nn.Sequential(conv(), nn.ReLU(), conv(8, 8))
    for index in (0, 2):
        kind(network[index])
    return network.eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    "kind",
    [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm, nn.utils.weight_norm],
)
def test_parametrised_weights_are_plain_and_said_once(kind):
    network = parametrised(kind)
    with pytest.warns(UserWarning) as said:
        graph = capture(network, torch.zeros(2, 3, 8, 8))
    (warning,) = [each for each in said if "computed" in str(each.message)]
    assert str(warning.message) == (
        "2 weights of Sequential are computed from others ('0'): they are plain weights now"
    )
    assert isinstance(graph.get_submodule("0").weight, nn.Parameter)
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(graph(images), network(images))


def test_two_layers_over_one_weight_are_refused():
    network = nn.Sequential(conv(8, 8), conv(8, 8))
    network[1].weight = network[0].weight
    with pytest.raises(UntraceableError, match=r"'0' and '1' share one weight.*nn\.Parameter\(1\.weight"):
        capture(network.eval(), torch.zeros(2, 8, 8, 8))


def test_one_layer_called_twice_is_one_module():
    network = nn.Sequential(conv(8, 8), nn.ReLU())
    network.append(network[0])
    graph = capture(network.eval(), torch.zeros(2, 8, 8, 8))
    assert len({str(node.target) for node in graph.graph.nodes if is_layer(graph, node)}) == 1


def test_what_cannot_be_captured_names_the_users_own_line():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv()

        def forward(self, x):
            return self.conv(x) if x.mean() > 0 else x

    with pytest.raises(UntraceableError, match=r"test_capture\.py:\d+ `return self\.conv\(x\) if x\.mean"):
        capture(Branches().eval(), torch.zeros(2, 3, 8, 8))

    def one_by_one(self, x):
        return torch.stack([self.conv(x[index]) for index in range(len(x))])

    with pytest.raises(UntraceableError, match="its code holds for one number of images alone; expected"):
        capture(Network(one_by_one, conv=conv()).eval(), torch.zeros(2, 3, 8, 8))


def test_a_part_under_autocast_is_in_float32_and_says_so():
    def mixed(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.conv(x)
        return y.float()

    network = Network(mixed, conv=conv()).eval()
    with pytest.warns(UserWarning, match="a part under autocast: here it is in float32"):
        graph = capture(network, torch.zeros(2, 3, 8, 8))
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(graph(images), network.conv(images))


def test_a_network_is_captured_once(monkeypatch):
    calls = []
    export = torch.export.export
    monkeypatch.setattr("torch.export.export", lambda *a, **k: calls.append(a) or export(*a, **k))
    network = nn.Sequential(conv(), nn.BatchNorm2d(8)).train()
    example = torch.zeros(2, 3, 8, 8)
    first, second = capture(network, example), capture(network, torch.ones(4, 3, 8, 8))
    assert len(calls) == 1 and network.training and network[1].training
    first.get_submodule("0").weight.data.zero_()
    assert second.get_submodule("0").weight.any()
    assert capture(first).get_submodule("0").weight is not first.get_submodule("0").weight
    with torch.no_grad():
        network[0].weight.mul_(2)
    assert torch.equal(capture(network, example).get_submodule("0").weight, network[0].weight)
    assert len(calls) == 2
    capture(network, torch.zeros(2, 3, 9, 9))
    assert len(calls) == 3
    network.to(torch.float64)
    capture(network, example.double())
    assert len(calls) == 4


def test_what_follows_from_no_image_is_computed_once():
    def positions(self, x):
        y = tokens(self, x)
        table = (torch.linspace(0, 1, 64)[:, None] * self.scale).sin()
        return y + table

    graph = capture(Network(positions, conv=conv(), scale=parameter(8)).eval(), torch.zeros(2, 3, 8, 8))
    names = [name_of(graph, node) for node in graph.graph.nodes if node.op == "call_function"]
    assert names == ["flatten", "transpose", "add"]
    assert all(
        operation(graph, node).kind != "other" for node in graph.graph.nodes if node.op == "call_function"
    )
