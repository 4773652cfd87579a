"""CIFAR ResNets against the paper's figures and a float64 forward written from the checkpoint's names."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zsq.core.errors import MismatchError, OptionError
from zsq.graph import capture
from zsq.teacher import load_teacher
from zsq.teacher.cifar_resnet import DEPTHS, CifarResNet, SubsamplingShortcut


def random_resnet(depth: int) -> CifarResNet:
    torch.manual_seed(depth)
    network = CifarResNet(depth)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight, 1, 0.1)
            nn.init.normal_(module.bias, 0, 0.1)
    return network


def reference_forward(state: dict[str, torch.Tensor], images: torch.Tensor, num_blocks: int) -> torch.Tensor:
    state = {name: tensor.double() for name, tensor in state.items()}

    def conv_bn(x, conv, bn, stride=1):
        x = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        mean, var, weight, bias = (
            state[f"{bn}.{key}"].view(1, -1, 1, 1)
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = conv_bn(images.double(), "conv1", "bn1").relu()
    for stage in (1, 2, 3):
        for block in range(num_blocks):
            prefix = f"layer{stage}.{block}."
            stride = 2 if stage > 1 and block == 0 else 1
            y = conv_bn(x, prefix + "conv1", prefix + "bn1", stride).relu()
            y = conv_bn(y, prefix + "conv2", prefix + "bn2")
            if stride == 2:
                quarter = x.shape[1] // 2
                wide = torch.zeros_like(y)
                wide[:, quarter : quarter + x.shape[1]] = x[:, :, ::2, ::2]
                x = wide
            x = (x + y).relu()
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


# He et al. 2016, table 6: layers, millions of parameters.
@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_size_is_the_papers(depth, millions):
    network = CifarResNet(depth)
    num_layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules())
    assert num_layers == depth
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("depth", [20, 32])
def test_forward_is_that_of_the_paper(depth):
    network = random_resnet(depth).eval()
    images = torch.randn(3, 3, 32, 32)
    wanted = reference_forward(network.state_dict(), images, (depth - 2) // 6)
    with torch.no_grad():
        assert torch.allclose(network(images).double(), wanted, rtol=1e-3, atol=1e-4)


def test_shortcut_pads_channels_on_both_sides():
    images = np.random.default_rng(0).normal(size=(2, 4, 6, 6)).astype(np.float32)
    wanted = np.zeros((2, 8, 3, 3), np.float32)
    wanted[:, 2:6] = images[:, :, ::2, ::2]
    assert np.array_equal(SubsamplingShortcut(2)(torch.from_numpy(images)).numpy(), wanted)


def test_the_captured_graph_computes_the_same():
    network = random_resnet(20).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(capture(network, images)(images), network(images))


@pytest.mark.filterwarnings("ignore:.*is taken")
def test_public_checkpoint_format_loads_as_it_is(tmp_path):
    network = random_resnet(20).eval()
    path = tmp_path / "resnet20.th"
    state = {f"module.{n}": t for n, t in network.state_dict().items() if "num_batches" not in n}
    torch.save({"state_dict": state, "best_prec1": 91.7}, path)
    teacher = load_teacher("cifar10:resnet20", path)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(teacher.logits(images), network(images))
    assert (teacher.name, teacher.num_classes, teacher.task.name) == ("cifar10:resnet20", 10, "classify")
    assert (teacher.spec.mean, teacher.spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert teacher.spec.shape == (3, 32, 32)
    assert not teacher.network.training
    assert not any(p.requires_grad for p in teacher.network.parameters())


def test_another_depth_is_named(tmp_path):
    path = tmp_path / "resnet20.pt"
    torch.save(CifarResNet(20).state_dict(), path)
    with pytest.raises(
        MismatchError, match=r"resnet20.pt for cifar10:resnet32 has no 'layer1.3.conv1.weight'"
    ):
        load_teacher("cifar10:resnet32", path)


def test_weights_are_needed():
    assert DEPTHS == (8, 20, 32, 44, 56, 110)
    with pytest.raises(OptionError, match="--weights FILE"):
        load_teacher("cifar10:resnet110")
