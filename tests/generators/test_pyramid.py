"""pyramid: maps of all scales, and the set's statistics in units of the stored spread."""

import itertools

import numpy as np
import pytest
import torch
from toys import NETWORKS, batch_norm_inputs, image_spec, make_teacher

from zsq.contract import Silent
from zsq.engine.joint import StoredSums, WithInput
from zsq.engine.objectives import RELATIVE_FLOOR, TeacherPass, relative_set_gap
from zsq.engine.pyramid import Pyramid, pyramid_sides
from zsq.engine.statistics import TappedTeacher
from zsq.generators import create
from zsq.plan import Plan
from zsq.teacher import load_teacher


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def relative_by_hand(x, mean, var):
    """Of one layer's inputs (N, C, H, W): squared gaps of mean and of std in units of the stored std."""
    floor = RELATIVE_FLOOR * var.mean()
    mean_gaps = np.square(x.mean((0, 2, 3)) - mean) / (var + floor)
    std_gaps = np.square(np.sqrt((x.var((0, 2, 3)) + floor) / (var + floor)) - 1)
    return mean_gaps.mean(), std_gaps.mean()


def test_parts_of_the_set_see_the_gaps_of_the_whole():
    teacher = make_teacher(NETWORKS["downsample"], dtype=torch.float64)
    images = torch.randn(10, *teacher.spec.shape, generator=rng(), dtype=torch.float64)
    inputs = batch_norm_inputs(teacher, images)
    wanted = np.mean([relative_by_hand(*each) for each in inputs], axis=0)

    batches, tapped, stored = images.split((6, 4)), WithInput(TappedTeacher(teacher)), StoredSums((6, 4))
    seen = [tapped(batch) for batch in batches]
    for index, (_, layers) in enumerate(seen):
        stored.store(index, layers)
    for index, (logits, layers) in enumerate(seen):
        forward = TeacherPass(batches[index], logits, layers, None, others=stored.others(index))
        assert [relative_set_gap(moment)(forward).item() for moment in (0, 1)] == pytest.approx(
            wanted, rel=1e-5
        )


@pytest.mark.parametrize(
    ("size", "levels"),
    [((32, 32), 4), ((160, 160), 6), ((224, 224), 6), ((9, 40), 2), ((3, 3), 1), ((100,), 5), ((1, 64), 5)],
)
def test_sides_halve_while_the_shortest_has_four_pixels(size, levels):
    sides = pyramid_sides(size)
    assert sides[0] == size and len(sides) == levels
    for finer, coarser in itertools.pairwise(sides):
        assert coarser == tuple((side + 1) // 2 for side in finer)


@pytest.mark.parametrize("size", [(8, 8), (9, 21), (64,), (1, 64)])
def test_a_pixel_of_a_coarse_map_moves_a_surface_of_the_image(size):
    spec = image_spec(size=size)
    pyramid = Pyramid(spec, 2, "cpu", 0.1)
    pyramid.reset(rng())
    before = pyramid().detach().clone()
    assert before.shape == (2, *spec.shape)
    with torch.no_grad():
        pyramid.maps[-1][0, 0].flatten()[0] += 1.0
    moved = (pyramid() - before).abs() > 1e-6
    assert moved[0, 0].sum() > 1 and not moved[1].any() and not moved[0, 1:].any()
    assert moved[0, 0].flatten()[0] and not moved[0, 0].flatten()[-1]


def test_maps_start_with_the_variance_of_standard_images_together():
    pyramid = Pyramid(image_spec(size=(64, 64)), 16, "cpu", 0.1)
    pyramid.reset(rng())
    assert sum(each.var().item() for each in pyramid.maps) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("batch", [32, 8])
def test_it_is_closer_to_the_statistics_than_dgh_after_as_many_passes(batch):
    """What it is for: few passes. Both match statistics of the whole set."""
    teacher = load_teacher("embedded:digits")
    tapped = TappedTeacher(teacher)

    def distance(name):
        plan = Plan(count=32, batch=batch, shard_size=32, seed=0, batches_per_group=None)
        made = create(name, teacher, iterations=25).synthesize(plan.groups[0], Silent())
        with torch.no_grad():
            _, layers = tapped(made.standard_NCHW)
        nothing = StoredSums((32,))
        nothing.store(0, layers)
        forward = TeacherPass(made.standard_NCHW, made.standard_NCHW, layers, None, others=nothing.others(0))
        return sum(relative_set_gap(moment)(forward).item() for moment in (0, 1))

    assert distance("pyramid") < distance("dgh") / 2


def test_images_are_asked_for_all_classes_alike_and_become_surer():
    teacher = load_teacher("embedded:digits")
    (group,) = Plan(count=32, batch=16, shard_size=32, seed=0, batches_per_group=None).groups
    sure, free = (
        create("pyramid", teacher, {"confidence_weight": weight}, iterations=25).synthesize(group, Silent())
        for weight in (0.05, 0.0)
    )
    classes_N, asked_N = sure.targets_NK.argmax(1), sure.targets_NK.amax(1)
    assert set(classes_N.bincount(minlength=10).tolist()) <= {3, 4}
    assert asked_N.min() >= 0.1 and asked_N.max() <= 1 and asked_N.std() > 0.1
    torch.testing.assert_close(sure.targets_NK.sum(1), torch.ones(32))

    def share(batch):
        with torch.no_grad():
            return (teacher.logits(batch.standard_NCHW).argmax(1) == classes_N).float().mean()

    assert share(sure) > 0.6 > share(free)


def test_a_teacher_without_classes_is_asked_for_none():
    teacher = make_teacher(task="embed")
    (group,) = Plan(count=4, batch=4, shard_size=4, seed=0, batches_per_group=None).groups
    made = create("pyramid", teacher, iterations=2).synthesize(group, Silent())
    assert made.targets_NK is None and set(made.losses) == {"mean", "std"}
