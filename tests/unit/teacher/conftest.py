"""A small network and its weights."""

import pytest
import torch
from torch import nn


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))
    network[1].running_mean.normal_()
    return network.eval()


@pytest.fixture
def state(network) -> dict[str, torch.Tensor]:
    return dict(network.state_dict())
