"""Tiny teachers of every kind of architecture, with BN statistics of structured images."""

import copy
import dataclasses
import functools
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import batched_nms

from zsq.contract import Teacher
from zsq.core.imagespec import ImageSpec
from zsq.tasks import TASKS
from zsq.tasks.detect import Detect


def image_spec(channels=3, size=(16, 16), **changes):
    values = {"channels": channels, "size": size, "mean": (0.5,) * channels, "std": (0.25,) * channels}
    return ImageSpec(**(values | changes))


def conv_bn(channels_in, channels, stride=1, groups=1):
    conv = nn.Conv2d(channels_in, channels, 3, stride, 1, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


def head(channels, outputs):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs))


def plain(channels, outputs):
    return nn.Sequential(conv_bn(channels, 8, 2), conv_bn(8, 12, 2), head(12, outputs))


def without_bn(channels, outputs):
    return nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), head(8, outputs))


def depthwise(channels, outputs):
    return nn.Sequential(
        conv_bn(channels, 8, 2), conv_bn(8, 8, groups=8), conv_bn(8, 12, 2), head(12, outputs)
    )


def dropout(channels, outputs):
    return nn.Sequential(conv_bn(channels, 8, 2), nn.Dropout2d(0.5), conv_bn(8, 12, 2), head(12, outputs))


class PreActivation(nn.Module):
    """BN comes before its convolution, and the modules are declared in no useful order."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.unused = nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(6, 8, 3, 2, 1)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(channels, 6, 3, 2, 1)
        self.bn1 = nn.BatchNorm2d(6)
        self.head = head(8, outputs)

    def forward(self, x):
        x = self.conv2(F.relu(self.bn1(self.conv1(x))))
        return self.head(F.relu(self.bn2(x)))


class Downsample(nn.Module):
    """A residual block whose shortcut has its own BN, declared first and executed last."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.shortcut = nn.Sequential(nn.Conv2d(channels, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
        self.branch = nn.Sequential(conv_bn(channels, 8, 2), nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8))
        self.head = head(8, outputs)

    def forward(self, x):
        y = self.branch(x)
        return self.head(F.relu(y + self.shortcut(x)))


class SqueezeExcite(nn.Module):
    """A gate from pooled features, with a BN on its 1x1 maps."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.stem = conv_bn(channels, 8, 2)
        squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.gate = nn.Sequential(squeeze, nn.Conv2d(4, 8, 1), nn.Sigmoid())
        self.tail = nn.Sequential(conv_bn(8, 12, 2), head(12, outputs))

    def forward(self, x):
        x = self.stem(x)
        return self.tail(x * self.gate(x))


class Dense(nn.Module):
    """Every layer reads the concatenation of all before it."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.first, self.second = conv_bn(channels, 6, 2), conv_bn(6, 6)
        self.last = nn.Sequential(conv_bn(12, 8, 2), head(8, outputs))

    def forward(self, x):
        x = self.first(x)
        return self.last(torch.cat([x, self.second(x)], 1))


class Blocks(nn.Module):
    """A stem, two residual blocks of one structure, a head."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.stem = conv_bn(channels, 8, 2)
        self.first, self.second = self.block(), self.block()
        self.head = head(8, outputs)

    @staticmethod
    def block():
        return nn.Sequential(conv_bn(8, 8), nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.first(x))
        return self.head(torch.relu(x + self.second(x)))


NETWORKS = {
    "plain": plain,
    "depthwise": depthwise,
    "dropout": dropout,
    "pre-activation": PreActivation,
    "downsample": Downsample,
    "squeeze-excite": SqueezeExcite,
    "dense": Dense,
}


class NormedLinear(nn.Linear):
    """A linear layer behind a LayerNorm of its own."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.norm = nn.LayerNorm(inputs)

    def forward(self, x):
        return super().forward(self.norm(x))


@functools.cache
def normed(build):
    """What `build` makes, with a LayerNorm in front of its last linear layer."""

    def built(channels, outputs):
        network = build(channels, outputs)
        for name, layer in reversed(list(network.named_modules())):
            if isinstance(layer, nn.Linear):
                network.set_submodule(name, NormedLinear(layer.in_features, layer.out_features))
                break
        return network

    return built


def structured_images(shape, seed=0):
    """Smooth images with a colour of their own, zero mean and unit variance over all of them."""
    generator = torch.Generator().manual_seed(seed)
    count, channels, *size = shape
    coarse = torch.randn(count, channels, *[4] * len(size), generator=generator)
    mode = "bilinear" if len(size) == 2 else "linear"
    images = F.interpolate(coarse, size=size, mode=mode, align_corners=False)
    images = images + 0.5 * torch.randn(count, channels, *[1] * len(size), generator=generator)
    return (images - images.mean()) / images.std()


def make_teacher(build=plain, spec=None, outputs=5, task="classify", dtype=torch.float32, seed=0):
    """A teacher with random weights whose BN layers store the statistics of structured images."""
    spec = spec or image_spec()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(spec.channels, outputs)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                if module.affine:
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, std=0.3)
        with torch.no_grad():
            network.train()(spec.standard_to_norm(structured_images((64, *spec.shape))))
    return Teacher("toy", network.to(dtype), spec, outputs, "0" * 64, task=TASKS[task]())


@functools.cache
def shared_teacher(build=plain, spec=None, task="classify", **changes):
    """`make_teacher`'s, one for all tests of a process, which then captures it once; nobody may change it."""
    if task == "classify":
        return make_teacher(build, spec, **changes)
    return dataclasses.replace(shared_teacher(build, spec, **changes), task=TASKS[task]())


@contextmanager
def unchanged(teacher):
    """Bit-identical in the same layout, in eval mode, without hooks and gradients."""
    before = copy.deepcopy(teacher.network.state_dict())
    layout = [parameter.stride() for parameter in teacher.network.parameters()]
    yield
    after = teacher.network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert layout == [parameter.stride() for parameter in teacher.network.parameters()]
    for module in teacher.network.modules():
        assert not module.training
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            assert not getattr(module, hooks)
    assert all(p.grad is None and not p.requires_grad for p in teacher.network.parameters())


class Attentive(nn.Module):
    """Two attentions of two heads over 4 x 4 places of an image, added to it, before any other network."""

    def __init__(self, channels, network):
        super().__init__()
        self.embed = nn.Conv2d(channels, 8, 1)
        self.class_token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.ModuleList([nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2)])
        self.back = nn.Conv2d(8, channels, 1)
        self.network = network

    def forward(self, x):
        places = F.adaptive_avg_pool2d(self.embed(x), 4).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), places], 1)
        for block in self.blocks:
            tokens = tokens + block(tokens, tokens, tokens, need_weights=False)[0]
        maps = self.back((tokens[:, 1:] + tokens[:, :1]).transpose(1, 2).unflatten(2, (4, 4)))
        return self.network(x + F.interpolate(maps, x.shape[2:]))


def with_attention(teacher):
    """The same network behind two attentions; of one network it is one, which is captured once."""
    return dataclasses.replace(teacher, network=_attentive(teacher.network, teacher.spec.channels))


@functools.lru_cache(maxsize=64)
def _attentive(network, channels):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Attentive(channels, network)


def as_detector(teacher):
    """The same network with logits (N, K) read as K boxes of half the image's sides, which the logits move
    along the diagonal, and as the scores of K classes for each box."""
    height, width = teacher.spec.size
    sides = torch.tensor([width, height])

    def dense(logits):
        centres = sides * logits.sigmoid()[..., None]
        scores = (logits[:, :, None] * logits[:, None]).sigmoid()
        return torch.cat([centres - sides / 4, centres + sides / 4], -1), scores

    def decode(logits):
        found = []
        for boxes, scores in zip(*dense(logits), strict=True):
            best, labels = scores.max(1)
            kept = batched_nms(boxes, best, labels, 0.6)
            found.append({"boxes": boxes[kept], "scores": best[kept], "labels": labels[kept]})
        return found

    return dataclasses.replace(teacher, task=Detect(decode=decode, dense=dense))


def batch_norm_inputs(teacher, images):
    """(values, mean, var) as numpy arrays: of the images with the moments of standard space, then of what
    enters each BN layer with those that it stores."""
    inputs = [(images.numpy(), np.zeros(3), np.ones(3))]
    handles = [
        module.register_forward_pre_hook(
            lambda m, x: inputs.append((x[0].numpy(), m.running_mean.numpy(), m.running_var.numpy()))
        )
        for module in teacher.network.modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    ]
    with torch.no_grad():
        teacher.network(images)
    for handle in handles:
        handle.remove()
    return inputs
