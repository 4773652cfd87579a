"""The contract's data: plans, options, bits, and the teacher's freezing."""

import dataclasses
import random

import pytest
import torch
from pydantic import Field
from torch import nn

from zsq.contract import Generator, Silent, Teacher
from zsq.core.errors import OptionError
from zsq.core.imagespec import ImageSpec
from zsq.core.options import Options, follows_batch, scales_with_iterations
from zsq.plan import Plan
from zsq.tasks.embed import Embed
from zsq.widths import Bits

SPEC = ImageSpec(size=(4, 4), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def random_plans(number: int) -> list[Plan]:
    rng = random.Random(0)
    return [
        Plan(
            count=rng.randint(1, 300),
            batch=rng.randint(1, 80),
            shard_size=rng.randint(1, 120),
            seed=rng.randrange(2**63),
            batches_per_group=rng.choice([1, 1, 2, 3, None]),
        )
        for _ in range(number)
    ]


@pytest.mark.parametrize("plan", random_plans(60), ids=str)
def test_every_image_is_in_exactly_one_group_unit_and_shard(plan):
    groups = [group for unit in plan.units for group in unit.groups]
    assert groups == list(plan.groups)
    images = [i for group in groups for i in range(group.first_image, group.first_image + group.num_images)]
    assert images == list(range(plan.count))
    assert [group.index for group in groups] == list(range(len(groups)))
    sizes = [size for unit in plan.units for size in unit.shard_sizes]
    assert sum(sizes) == plan.count and len(sizes) == plan.num_shards
    assert all(1 <= size <= plan.shard_size for size in sizes)
    first_shards = [unit.first_shard for unit in plan.units]
    assert first_shards == [sum(len(u.shard_sizes) for u in plan.units[:i]) for i in range(len(plan.units))]


@pytest.mark.parametrize("plan", random_plans(60), ids=str)
def test_an_extended_plan_begins_with_the_plan_and_adds_whole_shards(plan):
    more = dataclasses.replace(plan, count=plan.count + 70, earlier=(plan.count,))
    most = dataclasses.replace(more, count=more.count + 1, earlier=more.counts)
    assert most.counts == (plan.count, plan.count + 70, plan.count + 71)
    assert most.units[: len(plan.units)] == plan.units and most.units[: len(more.units)] == more.units
    groups = [group for unit in most.units for group in unit.groups]
    assert groups == list(most.groups)
    assert [group.index for group in groups] == list(range(len(groups)))
    assert sum((group.batch_sizes for group in groups[-1:]), ()) == (1,)
    images = [i for group in groups for i in range(group.first_image, group.first_image + group.num_images)]
    assert images == list(range(most.count))
    if plan.batches_per_group is None:
        assert [group.num_images for group in groups] == [plan.count, 70, 1]


@pytest.mark.parametrize("earlier", [(0,), (10,), (12,), (5, 5), (7, 3)])
def test_an_extension_is_larger(earlier):
    with pytest.raises(OptionError, match="each number larger than the last"):
        Plan(count=10, batch=2, shard_size=4, seed=0, earlier=earlier)


@pytest.mark.parametrize("plan", random_plans(60), ids=str)
def test_shards_are_whole_groups_unless_a_group_is_larger(plan):
    for unit in plan.units:
        assert unit.num_images == sum(group.num_images for group in unit.groups)
        if len(unit.shard_sizes) > 1:
            assert len(unit.groups) == 1 and unit.groups[0].num_images > plan.shard_size
    for unit, following in zip(plan.units, plan.units[1:], strict=False):
        assert unit.num_images + following.groups[0].num_images > plan.shard_size


@pytest.mark.parametrize("plan", random_plans(30), ids=str)
def test_batches_are_full_but_the_last(plan):
    for group in plan.groups:
        assert all(size == plan.batch for size in group.batch_sizes[:-1])
        assert 1 <= group.batch_sizes[-1] <= plan.batch
        if plan.batches_per_group is not None:
            assert len(group.batch_sizes) <= plan.batches_per_group
    if plan.batches_per_group is None:
        assert len(plan.groups) == 1


def test_a_plan_is_a_function_of_its_fields():
    first, second = random_plans(5), random_plans(5)
    assert [(p.groups, p.units) for p in first] == [(p.groups, p.units) for p in second]


def test_units_by_hand():
    plan = Plan(count=700, batch=100, shard_size=256, seed=0)
    assert [unit.shard_sizes for unit in plan.units] == [(200,), (200,), (200,), (100,)]
    plan = Plan(count=700, batch=100, shard_size=256, seed=0, batches_per_group=None)
    assert [unit.shard_sizes for unit in plan.units] == [(256, 256, 188)]
    assert plan.groups[0].batch_sizes == (100,) * 7


def test_growing_the_count_keeps_the_full_groups():
    short, long = (Plan(count, batch=8, shard_size=16, seed=3).groups for count in (40, 64))
    assert short == long[:5]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 0}, "--count 0"),
        ({"batch": -1}, "--batch -1"),
        ({"shard_size": 0}, "--shard-size 0"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**63}, "--seed"),
    ],
)
def test_plans_that_make_no_sense(fields, message):
    with pytest.raises(OptionError, match=message):
        Plan(**({"count": 1, "batch": 1, "shard_size": 1, "seed": 0} | fields))


def test_a_groups_streams_follow_from_seed_index_and_purpose():
    def first(group, purpose="images"):
        return torch.rand(3, generator=group.generator(purpose)).tolist()

    groups = Plan(count=4, batch=1, shard_size=4, seed=1).groups
    other = Plan(count=4, batch=1, shard_size=2, seed=2).groups
    assert first(groups[0]) == first(groups[0])
    streams = [first(group) for group in (*groups, *other)] + [first(groups[0], "labels")]
    assert len({tuple(stream) for stream in streams}) == 9


class Example(Options):
    iterations: int = 1000
    warm_up: int = scales_with_iterations(100, ge=0)
    patience: int = scales_with_iterations(0, ge=0)
    rate: float = Field(0.1, gt=0)

    @classmethod
    def published(cls, spec):
        return {"iterations": 2000, "warm_up": 400} if spec.size[0] > 100 else {}


def test_defaults_follow_the_image_size():
    large = SPEC.model_copy(update={"size": (224, 224)})
    assert Example.resolve("m", SPEC, {}) == Example()
    assert Example.resolve("m", large, {}) == Example(iterations=2000, warm_up=400)


@pytest.mark.parametrize(("iterations", "warm_up"), [(100, 10), (1000, 100), (3000, 300), (1, 1)])
def test_iterations_scale_what_is_tied_to_them(iterations, warm_up):
    options = Example.resolve("m", SPEC, {}, iterations=iterations)
    assert options == Example(iterations=iterations, warm_up=warm_up)


def test_overrides_win_over_scaling():
    options = Example.resolve("m", SPEC, {"warm_up": 7, "rate": "0.5"}, iterations=100)
    assert options == Example(iterations=100, warm_up=7, rate=0.5)


def test_options_without_iterations_take_them_in_silence():
    assert Options.resolve("noise", SPEC, {}, iterations=5) == Options()


@pytest.mark.parametrize(
    ("overrides", "iterations", "message"),
    [
        ({"speed": 1}, None, "m has no option 'speed'; expected one of: iterations, patience, rate, warm_up"),
        ({"rate": -1}, None, "m: rate: Input should be greater than 0, not -1"),
        ({"warm_up": "soon"}, None, "m: warm_up: .*, not 'soon'"),
        ({}, 0, "--iterations 0"),
    ],
)
def test_options_that_cannot_be_are_named(overrides, iterations, message):
    with pytest.raises(OptionError, match=message):
        Example.resolve("m", SPEC, overrides, iterations)


@pytest.mark.parametrize("text", ["W4A4", "w2a8", " W8A32 ", "W32A32", "W3A2"])
def test_bits_are_read_and_written(text):
    bits = Bits.parse(text)
    assert str(bits) == text.strip().upper()
    assert Bits.parse(str(bits)) == bits
    assert (Bits.parse("W2A8").weights, Bits.parse("W2A8").activations) == (2, 8)


@pytest.mark.parametrize("text", ["", "W4", "4", "A4W4", "W0A4", "W4A9", "W16A16", "W4A4x", "W4A-4", "int8"])
def test_other_bits_are_refused(text):
    with pytest.raises(OptionError, match=r"expected W1..W8 or W32 with A1..A8 or A32"):
        Bits.parse(text)


def test_a_teacher_is_frozen_and_takes_standard_images():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.Dropout(0.5)).train()
    spec = SPEC.model_copy(update={"standard_mean": (0.0, 0.0, 0.0), "standard_std": (1.0, 1.0, 1.0)})
    teacher = Teacher("t", network, spec, 5, "0" * 64)
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    standard = torch.rand(2, 3, 4, 4)
    wanted = ((standard - 0.5) / 0.25).flatten(1) @ network[1].weight.T + network[1].bias
    assert torch.allclose(teacher.logits(standard), wanted, atol=1e-5)
    assert teacher.num_classes == 5
    assert Teacher("t", network, spec, 5, "0" * 64, task=Embed()).num_classes is None
    assert teacher.to("cpu").network is network


def test_the_silent_log_takes_everything():
    assert Silent().advance(3, loss=0.1) is None


class BatchOptions(Options):
    iterations: int = 100
    together: int = follows_batch(64, ge=1)
    apart: int = 64


@pytest.mark.parametrize(
    ("batch", "overrides", "expected"), [(None, {}, 64), (8, {}, 8), (8, {"together": 3}, 3), (1, {}, 1)]
)
def test_fields_that_follow_the_batch(batch, overrides, expected):
    options = BatchOptions.resolve("m", SPEC, overrides, 10, batch)
    assert (options.together, options.apart, options.iterations) == (expected, 64, 10)


def test_passes_are_iterations_times_images_unless_a_method_says_otherwise():
    assert Generator.teacher_passes(BatchOptions(), 7) == 700
    assert Generator.teacher_passes(Options(), 7) == 0
