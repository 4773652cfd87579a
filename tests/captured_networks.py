"""Networks as people write them, each with something that is hard to capture."""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn


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
