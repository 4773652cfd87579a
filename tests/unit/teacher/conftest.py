"""Small networks on disk, and the folder of real images and weights."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def data_root(monkeypatch) -> Path:
    root = Path(os.environ.get("ZSQ_DATA", REPOSITORY.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real data at {root}: set ZSQ_DATA")
    monkeypatch.setenv("ZSQ_DATA", str(root))
    return root


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))
    network[1].running_mean.normal_()
    return network.eval()


@pytest.fixture
def state(network) -> dict[str, torch.Tensor]:
    return dict(network.state_dict())
