"""Networks as people write them: the captured graph gives their outputs, for any number of images."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils import _pytree as pytree

from zsq.core.errors import UntraceableError
from zsq.graph import capture
from zsq.graph.capture import is_captured
from zsq.graph.layers import TransposedConv2d
from zsq.graph.vocabulary import is_layer, name_of, operands, operation


class Network(nn.Module):
    """`function(self, images)` with parts of its own."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def conv(before=3, after=8, **arguments):
    return nn.Conv2d(before, after, 3, padding=1, **arguments)


def parameter(*shape):
    return nn.Parameter(torch.randn(shape))


def tokens(self, x):
    return self.conv(x).flatten(2).transpose(1, 2)


def drops_then_overwrites(self, x):
    y = self.conv(x)
    z = F.dropout(y, 0.5, self.training)
    z.add_(1.0)
    return y * 2 + z


def overwrites_a_chunk(self, x):
    y = self.conv(x)
    first, second = y.chunk(2, 1)
    first.relu_()
    return y + torch.cat([second, first], 1)


def overwrites_a_view(self, x):
    y = self.conv(x)
    y.view(-1, 64).mul_(2)
    y[:, 0] = 0
    y[:, 1:3] += 1
    return y


def overwrites_after_a_view(self, x):
    y = self.conv(x)
    z = F.relu(y, inplace=True)
    seen = z.flatten(1)
    y.mul_(3)
    return seen


def overwrites_the_images(self, x):
    x.mul_(1.5)
    return self.conv(x)


def overwrites_constants(self, x):
    first, second = torch.zeros(3, 1, 1), torch.zeros(3, 1, 1)
    first.add_(1)
    return self.conv(x * first + second)


def counts(self, x):
    self.calls += 1
    return self.conv(x)


def fills_zeros(self, x):
    y = self.conv(x)
    z = y.new_zeros(y.shape[0], 4, 8, 8)
    z[:, :, 2:6, 2:6] = y[:, :4, 2:6, 2:6]
    return z


def class_token(self, x):
    y = tokens(self, x)
    return torch.cat([self.token.expand(len(y), -1, -1), y], 1) + self.token.repeat(y.shape[0], 65, 1)


def relative_position_bias(self, x):
    y = tokens(self, x)
    bias = self.table[self.index.view(-1)].view(64, 64)
    return (y @ y.transpose(1, 2) + bias).softmax(-1)


def rolled_windows(self, x):
    y = torch.roll(self.conv(x), (2, 2), (2, 3))
    count, channels, height, width = y.shape
    y = y.view(count, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 3, 5, 1)
    y = y.reshape(-1, 16, channels)
    scores = (y @ y.transpose(1, 2)).view(count, -1, 16, 16) + self.mask[None]
    return (scores.softmax(-1).view(-1, 16, 16) @ y).view(count, -1, channels)


def einsums(self, x):
    y = self.conv(x)
    return torch.einsum("bchw,bdhw->bcd", y, y), torch.einsum("bchw,hk->bckw", y, self.matrix)


def local_windows(self, x):
    y = self.conv(x)
    parts = F.unfold(y, 3, padding=1).view(len(y), 8, 9, -1)
    return F.fold((parts * 2).reshape(len(y), 72, -1), (8, 8), 3, padding=1)


def padded_to_shape(self, x):
    y = self.conv(x)
    missing = (5 - y.shape[-1] % 5) % 5
    y = F.pad(y, (0, missing)) if missing else y
    return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


def under_other_modes(self, x):
    with torch.autocast(x.device.type, enabled=False):
        y = self.conv(x.float())
    with torch.enable_grad():
        return self.conv(x) * y


def fourier(self, x):
    spectrum = torch.fft.rfft2(self.conv(x), norm="ortho") * torch.view_as_complex(self.filter)
    return torch.fft.irfft2(spectrum, s=(8, 8), norm="ortho")


def weight_standardised(self, x):
    weight = self.conv.weight
    weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)
    return F.conv2d(x, weight, self.conv.bias, padding=1)


def nested(self, x):
    y = self.conv(x)
    return {"maps": [y, (y.mean((2, 3)), None)], "images": x, "constant": self.matrix * 2, "count": 3}


def attends(self, x):
    y = tokens(self, x)
    mask = torch.triu(torch.ones(64, 64, dtype=torch.bool), 1)
    return self.attention(y, y, y, attn_mask=mask, need_weights=False)[0], self.attention(y, y, y)


def attends_causally(self, x):
    y = tokens(self, x).unflatten(2, (4, 2)).transpose(1, 2)
    return F.scaled_dot_product_attention(y, y[:, :2], y[:, :2], is_causal=True, enable_gqa=True, scale=0.3)


def embeds(self, x):
    y = tokens(self, x)
    return y + self.positions(torch.arange(64)) + self.positions(y.argmax(2))


def pools_regions(self, x):
    boxes = torch.tensor([[0.0, 1.0, 1.0, 5.0, 5.0]])
    return torchvision.ops.roi_align(self.conv(x), boxes, 3)


def recurs(self, x):
    return self.recurrent(tokens(self, x)[:, :5])[0]


def of_one_tensor(self, x):
    weight = self.packed[: 8 * 27].view(8, 3, 3, 3)
    return F.conv2d(x, weight, self.packed[-8:], padding=1)


NETWORKS = {
    "drops then overwrites": lambda: Network(drops_then_overwrites, conv=conv()),
    "overwrites a chunk": lambda: Network(overwrites_a_chunk, conv=conv()),
    "overwrites a view": lambda: Network(overwrites_a_view, conv=conv()),
    "overwrites after a view": lambda: Network(overwrites_after_a_view, conv=conv()),
    "overwrites the images": lambda: Network(overwrites_the_images, conv=conv()),
    "overwrites constants": lambda: Network(overwrites_constants, conv=conv()),
    "counts": lambda: Network(counts, conv=conv(), calls=torch.zeros(1)),
    "fills zeros": lambda: Network(fills_zeros, conv=conv()),
    "class token": lambda: Network(class_token, conv=conv(), token=parameter(1, 1, 8)),
    "relative position bias": lambda: Network(
        relative_position_bias, conv=conv(), table=parameter(225), index=torch.randint(225, (64, 64))
    ),
    "rolled windows": lambda: Network(rolled_windows, conv=conv(), mask=torch.randn(4, 16, 16)),
    "einsums": lambda: Network(einsums, conv=conv(), matrix=parameter(8, 5)),
    "local windows": lambda: Network(local_windows, conv=conv()),
    "padded to shape": lambda: Network(padded_to_shape, conv=conv()),
    "under other modes": lambda: Network(under_other_modes, conv=conv()),
    "fourier": lambda: Network(fourier, conv=conv(), filter=parameter(8, 8, 5, 2)),
    "weight standardised": lambda: Network(weight_standardised, conv=conv()),
    "nested": lambda: Network(nested, conv=conv(), matrix=parameter(2, 2)),
    "embeds": lambda: Network(embeds, conv=conv(), positions=nn.Embedding(64, 8)),
    "pools regions": lambda: Network(pools_regions, conv=conv()),
    "recurs": lambda: Network(recurs, conv=conv(), recurrent=nn.LSTM(8, 4, batch_first=True)),
    "of one tensor": lambda: Network(of_one_tensor, packed=parameter(8 * 27 + 8)),
    "in place": lambda: nn.Sequential(
        conv(),
        nn.Dropout(),
        nn.ReLU(inplace=True),
        nn.Dropout2d(inplace=True),
        conv(8, 8),
        nn.SiLU(inplace=True),
    ),
    "data parallel": lambda: nn.DataParallel(nn.Sequential(conv(), nn.BatchNorm2d(8), nn.PReLU(8))),
}


def built(name):
    torch.manual_seed(0)
    return NETWORKS[name]().eval().requires_grad_(False)


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
