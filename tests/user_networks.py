"""Small networks as people bring them, each with what one of them met."""

import dataclasses
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

NORMS = {
    "bn": nn.BatchNorm2d,
    "sync": nn.SyncBatchNorm,
    "no-affine": lambda c: nn.BatchNorm2d(c, affine=False),
    "frozen": FrozenBatchNorm2d,
    "tracking": lambda c: nn.InstanceNorm2d(c, affine=True, track_running_stats=True),
    "batch": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
    "instance": nn.InstanceNorm2d,
    "group": lambda c: nn.GroupNorm(4, c),
}


def block(channels_in, channels, stride=1, norm="bn"):
    conv = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
    return nn.Sequential(conv, NORMS[norm](channels), nn.ReLU())


class Normed(nn.Module):
    """A classifier with a choice of normalisation."""

    def __init__(self, channels=3, outputs=5, norm="bn"):
        super().__init__()
        self.features = nn.Sequential(block(channels, 8, 1, norm), block(8, 12, 2, norm))
        self.head = nn.Linear(12, outputs)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class FunctionalNorm(nn.Module):
    """Batch norm is called as a function, with buffers of the network's own."""

    def __init__(self, channels=3, outputs=5):
        super().__init__()
        self.conv, self.head = nn.Conv2d(channels, 8, 3), nn.Linear(8, outputs)
        self.scale, self.shift = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x):
        x = F.batch_norm(self.conv(x), self.mean, self.var, self.scale, self.shift, self.training)
        return self.head(F.relu(x).mean((2, 3)))


class TokenNorm(nn.Module):
    """BN over flattened tokens (images x tokens, C)."""

    def __init__(self, channels=3, outputs=5):
        super().__init__()
        self.stem, self.mix = block(channels, 16, 4), nn.Linear(16, 16, bias=False)
        self.norm, self.head = nn.BatchNorm1d(16), nn.Linear(16, outputs)

    def forward(self, x):
        tokens = self.mix(self.stem(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(tokens.flatten(0, 1)).reshape_as(tokens).mean(1))


class Pyramid(nn.Module):
    """One BN runs on maps of three sizes; the maps are returned in a dict of lists."""

    def __init__(self, channels=3):
        super().__init__()
        self.stem, self.conv = block(channels, 8), nn.Conv2d(8, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)

    def levels(self, x):
        x = self.stem(x)
        return [self.conv(level) for level in (x, F.avg_pool2d(x, 2), F.avg_pool2d(x, 4))]

    def forward(self, x):
        return {"heads": [self.norm(level) for level in self.levels(x)]}


class FixedSize(nn.Module):
    """A convolution, flattened: one input size fits."""

    def __init__(self, channels=3, outputs=5, side=96):
        super().__init__()
        self.features = nn.Sequential(block(channels, 6, 4), block(6, 4, 4))
        self.head = nn.Linear(4 * (side // 16) ** 2, outputs)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


class Upscaler(nn.Module):
    """An image twice as large."""

    def __init__(self, channels=3):
        super().__init__()
        self.body = nn.Sequential(block(channels, 8), nn.Conv2d(8, 4 * channels, 3, 1, 1), nn.PixelShuffle(2))

    def forward(self, x):
        return self.body(x)


@dataclasses.dataclass
class Said:
    logits: torch.Tensor
    hidden: tuple


class Nested(nn.Module):
    """A classifier that wraps its logits."""

    def __init__(self, wrap):
        super().__init__()
        self.network, self.wrap = Normed(), wrap

    def forward(self, x):
        return self.wrap(self.network(x), x)


WRAPPED = {
    "attribute": lambda y, x: SimpleNamespace(logits=y),
    "dict": lambda y, x: {"logits": y, "num_images": len(y)},
    "tuple": lambda y, x: (y, x.mean()),
    "dataclass": lambda y, x: Said(y, (y, y.softmax(1))),
    "boxes": lambda y, x: [{"boxes": each[each > 1], "labels": (each > 1).nonzero()} for each in y],
}


class SignalNet(nn.Module):
    """A classifier of signals (N, C, L)."""

    def __init__(self, channels=4, outputs=5):
        super().__init__()
        layers = [nn.Conv1d(channels, 8, 5, 2), nn.BatchNorm1d(8), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Conv1d(8, 12, 5, 2), nn.BatchNorm1d(12), nn.ReLU())
        self.head = nn.Linear(12, outputs)

    def forward(self, x):
        return self.head(self.features(x).mean(2))


class SignalStrip(SignalNet):
    """The same on images of height 1."""

    def forward(self, x):
        return super().forward(x.squeeze(2))


class Volume(nn.Module):
    """Channels are the frames of a volume."""

    def __init__(self, channels=8, outputs=5):
        super().__init__()
        self.features = nn.Sequential(nn.Conv3d(1, 8, 3), nn.BatchNorm3d(8), nn.ReLU())
        self.head = nn.Linear(8, outputs)

    def forward(self, x):
        return self.head(self.features(x.unsqueeze(1)).mean((2, 3, 4)))


class Transposed(nn.Module):
    """A classifier that first reduces the image, then enlarges it again by a transposed convolution."""

    def __init__(self, channels=3, outputs=5, groups=1):
        super().__init__()
        self.down, self.up = block(channels, 8, 2), nn.ConvTranspose2d(8, 12, 4, 2, 1, groups=groups)
        self.mix, self.head = nn.Conv2d(12, 8, 3, padding=1, groups=4), nn.Linear(8, outputs)

    def forward(self, x):
        return self.head(F.relu(self.mix(F.relu(self.up(self.down(x))))).mean((2, 3)))


class SelfAttention(nn.Module):
    """Two heads over the positions of a small map; positions see those before them."""

    def __init__(self, channels=3, outputs=5, side=4):
        super().__init__()
        self.patches = nn.Conv2d(channels, 16, 4, 4)
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, outputs)
        mask = torch.full((side * side, side * side), float("-inf")).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens, tokens, tokens, attn_mask=self.mask)[0].mean(1))


class Pair(nn.Module):
    """A dict of a list of maps, and of a tuple."""

    def __init__(self, channels=3):
        super().__init__()
        self.network, self.head = Normed(channels), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        features = self.network.features[0](x)
        return {"maps": [self.head(features), features], 1: (self.network(x), x.mean())}
