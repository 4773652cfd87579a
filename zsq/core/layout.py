"""The layout channels_last, which maps (N, C, H, W) alone have."""

from __future__ import annotations

import itertools
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def maps_channels_last(tensor: Tensor) -> Tensor:
    """A tensor of 4 axes in that layout, others contiguous; itself where it is so already."""
    layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    return tensor.contiguous(memory_format=layout)


def channels_last(network: Network) -> Network:
    """The network with its tensors of 4 axes in that layout, in place."""
    for tensor in itertools.chain(network.parameters(), network.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return network
