"""On a GPU: every method's first step is that of the CPU, and the same seed gives the same bytes."""

import numpy as np
import pytest
import torch
from test_contract import LEVELS, METHODS, SHARE_ELSEWHERE, pixels_made

pytestmark = pytest.mark.gpu

DEVICE = "cuda"


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Pixels that a method makes on a device in so many iterations, in float32 proper."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def made(name, device, iterations, folder):
        return pixels_made(
            name, tmp_path / folder, count=8, batch=4, iterations=iterations, device=device, compile="off"
        )

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
