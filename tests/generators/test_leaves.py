"""Dead leaves as calibration images: the teacher has no say in them."""

import pytest
import torch
from toys import NETWORKS, image_spec, make_teacher, without_bn

from zsq.contract import Silent
from zsq.core.errors import OptionError
from zsq.engine.textures import dead_leaves
from zsq.generators import create
from zsq.generators.leaves import LeavesOptions
from zsq.plan import Plan


def test_images_follow_from_seed_and_options_alone():
    (group,) = Plan(count=3, batch=2, shard_size=3, seed=0, batches_per_group=None).groups
    made = [
        create("leaves", make_teacher(build), {"leaves": 9}).synthesize(group, Silent()).standard_NCHW
        for build in (NETWORKS["plain"], without_bn)
    ]
    assert torch.equal(*made)
    rng = group.generator("synthesis")
    shape = make_teacher().spec.shape
    for image in made[0]:
        assert torch.equal(image, dead_leaves(shape, 9, (0.5, 2.5), 0.7, rng))


def test_light_and_contrast_are_each_images_own():
    (group,) = Plan(count=200, batch=200, shard_size=200, seed=0, batches_per_group=None).groups
    plain, varied = (
        create("leaves", make_teacher(), options).synthesize(group, Silent()).standard_NCHW
        for options in ({}, {"light": 0.6, "contrast": 0.5})
    )
    assert varied.mean((1, 2, 3)).var() > 2 * plain.mean((1, 2, 3)).var()
    assert varied.var((1, 2, 3)).log().var() > 2 * plain.var((1, 2, 3)).log().var()


@pytest.mark.parametrize(
    "wrong", [{"exponents": [2.0, 1.0]}, {"texture": 1.5}, {"leaves": -1}, {"light": 1.0}, {"contrast": -0.1}]
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(OptionError, match=f"leaves: {next(iter(wrong))}"):
        LeavesOptions.resolve("leaves", image_spec(), wrong)
