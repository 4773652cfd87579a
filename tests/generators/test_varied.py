"""varied: images keep the differences that they start with, while the set approaches its statistics."""

import pytest
import torch

from zsq.contract import Silent
from zsq.generators import create
from zsq.plan import Plan
from zsq.teacher import load_teacher


@pytest.fixture(scope="module")
def digits():
    return load_teacher("embedded:digits")


def made(teacher, options=None, iterations=15):
    (group,) = Plan(count=24, batch=12, shard_size=24, seed=0, batches_per_group=None).groups
    return create("varied", teacher, options or {}, iterations).synthesize(group, Silent())


def share_between(images):
    """Of the variance of pixels, that of the images' means."""
    return (images.mean((2, 3)).var(0) / images.var((0, 2, 3))).mean().item()


def test_images_still_differ_in_light_in_the_end(digits):
    alike, varied = (made(digits, {"light": light}).standard_NCHW for light in (0.0, 0.6))
    assert share_between(varied) > 2 * share_between(alike)
    assert varied.shape == (24, *digits.spec.shape)


def test_the_set_approaches_its_statistics(digits):
    first, last = (made(digits, iterations=steps).losses for steps in (1, 15))
    assert last["mean"] < first["mean"] / 2 and last["std"] < first["std"]


def test_the_same_seed_gives_the_same_images(digits):
    assert torch.equal(made(digits, iterations=2).standard_NCHW, made(digits, iterations=2).standard_NCHW)
