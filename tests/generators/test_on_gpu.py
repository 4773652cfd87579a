"""On a GPU: every method's first step is that of the CPU, and the same seed gives the same bytes."""

import numpy as np
import pytest
import torch
from test_contract import METHODS, suited
from toys import make_teacher

from zsq.config import GenerateConfig, RuntimeConfig
from zsq.shards.reader import ShardDataset
from zsq.synthesis import synthesize

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
# Adam's first step has one length whatever the gradient, so where that is nearly 0 its sign is chance: so
# many pixels may be elsewhere, all others are within so many levels of 0..255.
SHARE_ELSEWHERE, LEVELS = 0.01, 1


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Pixels that a method makes on a device in so many iterations, in float32 proper."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def made(name, device, iterations, folder):
        options = METHODS[name].options_class.model_fields
        config = GenerateConfig(
            teacher="toy",
            method=name,
            count=8,
            batch=4,
            shard_size=8,
            iterations=iterations if "iterations" in options else None,
            runtime=RuntimeConfig(device=device, precision="fp32", compile="off", threads=1),
        )
        run = synthesize.generate(config, tmp_path / folder, teacher=suited(name, make_teacher()))
        return ShardDataset(run).pixels().numpy().astype(int)

    return made


NAMES = [name for name, cls in METHODS.items() if not cls.facts.needs_real]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_step_is_that_of_the_cpu(name, made):
    ours, theirs = (made(name, device, 1, device) for device in (DEVICE, "cpu"))
    assert np.mean(np.abs(ours - theirs) > LEVELS) <= SHARE_ELSEWHERE


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bytes(name, made):
    first, second = (made(name, DEVICE, 20, folder) for folder in ("first", "second"))
    assert np.array_equal(first, second)
