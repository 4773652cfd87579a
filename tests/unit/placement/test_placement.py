"""What is quantized where, on toys whose right answer is known by hand, and on the torchvision families."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from zsq.contract import QuantizedTensor, Teacher
from zsq.core.errors import OptionError, UntraceableError
from zsq.core.imagespec import ImageSpec
from zsq.core.runtime import Runtime
from zsq.placement.sites import place
from zsq.quantizers.grids import FakeQuantizer
from zsq.students import create
from zsq.widths import Bits

IMAGES = torch.zeros(2, 3, 16, 16)


class Residual(nn.Module):
    """Stem, one residual block with a projection, pooled head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.project = nn.Conv2d(4, 8, 1)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        y = F.relu(y + self.project(x))
        return self.head(self.dropout(F.adaptive_avg_pool2d(y, 1).flatten(1)))


def randomised(network):
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.weight.data.copy_(torch.randn(module.num_features, generator=generator))
    return network.eval()


def rows(placement):
    return {(site.name, site.bits) for site in placement.sites}


def test_every_weight_and_every_distinct_input_once():
    placement = place(Residual(), IMAGES, Bits(4, 3), fold=True)
    assert rows(placement) == {
        *((f"{name}.weight", 4) for name in ("stem", "conv1", "conv2", "project", "head")),
        *((f"{name}.input", 3) for name in ("conv1", "conv2", "head")),
    }
    # `project` reads what `conv1` reads: one quantizer call in the graph.
    calls = [
        n.target for n in placement.network.graph.nodes if str(n.target).startswith("conv1.input_quantizer")
    ]
    assert calls == ["conv1.input_quantizer"]
    conv1, project = (
        next(n for n in placement.network.graph.nodes if n.target == name) for name in ("conv1", "project")
    )
    assert conv1.args == project.args and conv1.args[0].target == "conv1.input_quantizer"


def test_the_residual_stream_stays_float():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = self.stem(x)
            return x + self.conv(x)

    placement = place(Block(), IMAGES, Bits(32, 2), fold=True)
    (addition,) = (n for n in placement.network.graph.nodes if n.op == "call_function")
    assert addition.args[0].target == "stem"


def test_first_and_last_take_their_own_bits():
    assert rows(place(Residual(), IMAGES, Bits(2, 4), first_last=8, fold=True)) == {
        ("stem.weight", 8), ("head.weight", 8), ("head.input", 8),
        ("conv1.weight", 2), ("conv2.weight", 2), ("project.weight", 2),
        ("conv1.input", 4), ("conv2.input", 4),
    }  # fmt: skip


def test_first_and_last_in_float():
    names = {name for name, _ in rows(place(Residual(), IMAGES, Bits(2, 4), first_last=32, fold=True))}
    assert names == {"conv1.weight", "conv2.weight", "project.weight", "conv1.input", "conv2.input"}


def test_first_last_leaves_alone_what_the_bits_leave_in_float():
    weights_only = place(Residual(), IMAGES, Bits(4, 32), first_last=8, fold=True)
    assert not list(weights_only.of_kind("activation"))
    assert not [
        s for s in place(Residual(), IMAGES, Bits(32, 4), first_last=8, fold=True).sites if s.kind == "weight"
    ]
    assert not place(Residual(), IMAGES, Bits(32, 32), first_last=8, fold=True).sites


@pytest.mark.parametrize("first_last", [0, 9, 16, -1])
def test_wrong_first_last_bits_are_refused(first_last):
    with pytest.raises(OptionError, match=r"--first-last .*1\.\.8, or 32"):
        place(Residual(), IMAGES, Bits(4, 4), first_last=first_last, fold=True)


def test_several_stems_are_all_first():
    class TwoStems(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = (x - 0.5) * 2
            return self.c(self.a(x) + self.b(x)).mean((2, 3))

    assert rows(place(TwoStems(), IMAGES, Bits(4, 4), first_last=8, fold=True)) == {
        ("a.weight", 8), ("b.weight", 8), ("c.weight", 8), ("c.input", 8),
    }  # fmt: skip


def test_a_layer_called_twice_has_one_weight_and_two_inputs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            x = self.conv(self.stem(x))
            return self.norm(self.conv(torch.sigmoid(x)))

    placement = place(Twice(), IMAGES, Bits(4, 4), fold=True)
    assert rows(placement) == {("stem.weight", 4), ("conv.weight", 4), ("conv.input", 4), ("conv.input1", 4)}
    assert any(node.target == "norm" for node in placement.network.graph.nodes), (
        "must not fold into a shared conv"
    )


def test_views_share_a_quantizer():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Linear(4 * 16, 2)

        def forward(self, x):
            x = self.stem(x)
            return self.conv(x).flatten(1).sum(1, keepdim=True) + self.head(torch.flatten(x, 1))

    placement = place(Views(), torch.zeros(2, 3, 4, 4), Bits(32, 8), fold=True)
    assert [site.name for site in placement.sites] == ["conv.input"]
    calls = [n for n in placement.network.graph.nodes if n.target == "conv.input_quantizer"]
    assert len(calls) == 2


@pytest.mark.parametrize("fold", [True, False])
def test_empty_sites_compute_the_network_itself(fold):
    network = randomised(Residual())
    before = copy.deepcopy(network.state_dict())
    placement = place(network, IMAGES, Bits(4, 4), first_last=8, fold=fold)
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(placement.network(x), network(x), rtol=1e-4, atol=1e-5)
    norms = [module for module in placement.network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == (0 if fold else 3)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    own = {parameter.data_ptr() for parameter in network.parameters()}
    assert own.isdisjoint(parameter.data_ptr() for parameter in placement.network.parameters())


def test_folds_a_linear_and_keeps_a_norm_that_is_not_alone():
    class Norms(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm1 = nn.Linear(6, 4), nn.BatchNorm1d(4)
            self.shared, self.norm2 = nn.Linear(4, 4), nn.BatchNorm1d(4)
            self.free = nn.BatchNorm1d(4, track_running_stats=False)

        def forward(self, x):
            x = self.norm1(self.linear(x))
            y = self.shared(x)
            return self.free(self.norm2(y) + y)

    network = Norms().eval()
    network.norm1.running_mean.fill_(0.3)
    placement = place(network, torch.zeros(2, 6), Bits(8, 8), fold=True)
    kept = {name for name, module in placement.network.named_modules() if isinstance(module, nn.BatchNorm1d)}
    assert kept == {"norm2"}, "one without statistics is no layer"
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(placement.network(x), network(x), rtol=1e-4, atol=1e-5)


def test_table_lists_what_stands_at_the_sites():
    placement = place(Residual(), IMAGES, Bits(4, 8), fold=True)
    assert placement.table() == ()
    first = next(placement.of_kind("weight"))
    assert placement.weight(first) is placement.network.get_submodule("stem").weight
    placement.put(first, FakeQuantizer(torch.ones(4, 1, 1, 1), torch.zeros(4, 1, 1, 1), -8, 7, "weight"))
    assert placement.table() == (QuantizedTensor("stem.weight", "weight", 4, 4, True),)


class Functional(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 1, 1))
        self.operation = operation
        self.inner = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.operation(self.inner(x), self.weight)


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    ("operation", "layer"),
    [
        (F.conv2d, nn.Conv2d),
        (lambda x, w: F.conv_transpose2d(x, w, stride=2), nn.ConvTranspose2d),
        (lambda x, w: x.mean((2, 3)) @ w[:, :, 0, 0], nn.Linear),
        (lambda x, w: x.mean((2, 3)).matmul(w[:, :, 0, 0].t()), nn.Linear),
        (lambda x, w: F.linear(x.mean((2, 3)), w[:, :, 0, 0]), nn.Linear),
        (lambda x, w: torch.einsum("nchw,kcij->nkhw", x, w), None),
        (lambda x, w: torch.einsum("nc,kc->nk", x.mean((2, 3)), w[:, :, 0, 0]), nn.Linear),
        (lambda x, w: torch.einsum("nc,ck->nk", x.mean((2, 3)), w[:, :, 0, 0]), nn.Linear),
    ],
)
def test_a_weight_of_ones_own_in_a_function_is_a_layer_where_one_computes_it(operation, layer):
    network = Functional(operation).eval()
    placement = place(network, IMAGES, Bits(4, 4), fold=True)
    weights = {site.name for site in placement.of_kind("weight")}
    found = None if layer is None else "weight.weight"
    assert weights == {"inner.weight"} | ({found} if found else set())
    if layer is not None:
        assert isinstance(placement.network.get_submodule("weight"), layer)
    else:
        activations = {site.name for site in placement.of_kind("activation")}
        assert activations == {"einsum.left", "einsum.right"}
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(placement.network(images), network(images))


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        return self.attention(x, x, x)[0]


def test_both_operands_of_a_product_are_sites():
    placement = place(Attention(), IMAGES, Bits(4, 8), fold=True)
    assert rows(placement) == {
        ("attention.in_proj.weight", 4),
        ("attention.out_proj.weight", 4),
        ("attention.bmm.left", 8),
        ("attention.bmm.right", 8),
        ("attention.bmm1.left", 8),
        ("attention.bmm1.right", 8),
        ("attention.out_proj.input", 8),
    }


def test_an_operation_that_is_not_known_may_not_have_a_weight():
    network = Functional(lambda x, w: torch.cdist(x.mean((2, 3)), w[:, :, 0, 0]))
    with pytest.raises(UntraceableError, match=r"no quantizer for \w*cdist\w* .*write it with"):
        place(network, IMAGES, Bits(4, 4), fold=True)


def test_control_flow_on_data_is_refused_with_the_users_own_line():
    with pytest.raises(UntraceableError) as caught:
        place(Branching(), IMAGES, Bits(8, 8), fold=True)
    message = str(caught.value)
    assert "\n" not in message and "control flow" in message
    assert "test_placement.py" in message and "`return x if x.sum() > 0 else -x`" in message


def test_a_conv_subclass_with_the_parents_forward_is_a_layer():
    class MyConv(nn.Conv2d):
        pass

    assert rows(place(Wrapper(MyConv(3, 2, 1)), IMAGES, Bits(4, 4), fold=True)) == {("inner.weight", 4)}


SPEC = ImageSpec(size=(64, 64), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# The blocks of a family, of the larger ones a few.
FAMILIES = {
    "resnet": lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10),
    "densenet": lambda: models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=10),
    "regnet": lambda: models.RegNet(
        models.regnet.BlockParams.from_init_params(depth=6, w_0=24, w_a=24.5, w_m=2.5, group_width=8),
        num_classes=10,
    ),
    "convnext": lambda: models.ConvNeXt(
        [models.convnext.CNBlockConfig(*widths) for widths in ((24, 48, 1), (48, 96, 1), (96, None, 2))],
        num_classes=10,
    ),
    "googlenet": lambda: models.googlenet(init_weights=False, aux_logits=False, num_classes=10),
    "mobilenet_v2": lambda: models.MobileNetV2(
        num_classes=10, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2]]
    ),
    "mobilenet_v3": lambda: models.MobileNetV3(
        [
            models.mobilenetv3.InvertedResidualConfig(*row, 1, 1.0)
            for row in ((16, 3, 16, 16, True, "RE", 2), (16, 5, 48, 24, False, "HS", 2))
        ],
        last_channel=64,
        num_classes=10,
    ),
    "shufflenet_v2": lambda: models.ShuffleNetV2([2, 2, 2], [24, 48, 96, 192, 512], num_classes=10),
    "efficientnet": lambda: models.EfficientNet(
        [
            models.efficientnet.MBConvConfig(*row, 1.0, 1.0)
            for row in ((1, 3, 1, 16, 16, 1), (6, 5, 2, 16, 24, 2))
        ],
        dropout=0.2,
        num_classes=10,
    ),
    "mnasnet": lambda: models.mnasnet0_5(num_classes=10),
    "squeezenet": lambda: models.squeezenet1_0(num_classes=10),
}


def random_teacher(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FAMILIES[name]()
    return Teacher(name, network, SPEC, 10, "0" * 64)


def smooth_images(count):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * torch.rand(count, 1, 1, 1, generator=generator)
    coarse = coarse + torch.rand(count, 3, 1, 1, generator=generator)
    return F.interpolate(coarse, SPEC.size, mode="bicubic").mul(128).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("name", FAMILIES)
def test_w8a8_of_each_torchvision_family_is_close_to_float(name):
    """Measure: signal-to-quantization-noise ratio of the logits about their mean over the images, in dB.

    About the mean, because the logits of an untrained network are mostly the same for all images.
    """
    teacher, pixels = random_teacher(name), smooth_images(8)
    unsearched = {"observer": "minmax", "weight_observer": "minmax"}
    student = create("ptq", SPEC, unsearched, Runtime()).fit(teacher, pixels, Bits(8, 8))
    standard = SPEC.pixels_to_standard(pixels)
    with torch.no_grad():
        expected, actual = teacher.logits(standard).double(), student.logits(standard).double()
    signal, noise = (expected - expected.mean(dim=0)).square().sum(), (actual - expected).square().sum()
    assert 10 * torch.log10(signal / noise) > 15

    layers = [n for n, m in teacher.network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    weights = [row.name for row in student.tensors if row.kind == "weight"]
    assert sorted(weights) == sorted(f"{layer}.weight" for layer in layers)
