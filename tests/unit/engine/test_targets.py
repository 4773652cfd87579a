"""Label policies."""

import pytest
import torch
from scipy import stats
from toys import make_teacher

from zsq.core.errors import MismatchError
from zsq.engine.targets import balanced_labels, class_count, uniform_labels
from zsq.plan import Plan

GROUPS = Plan(count=100, batch=7, shard_size=50, seed=3).groups


@pytest.mark.parametrize("policy", [uniform_labels, balanced_labels])
def test_targets_are_class_probabilities(policy):
    for group in (GROUPS[0], GROUPS[-1]):
        targets = policy(group, 6)
        assert targets.shape == (group.num_images, 6) and targets.dtype == torch.float32
        assert torch.equal(targets.sum(1), torch.ones(group.num_images))
        assert set(targets.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(targets, policy(group, 6))


def test_balanced_classes_come_in_turn_over_the_whole_run():
    classes = torch.cat([balanced_labels(group, 6) for group in GROUPS]).argmax(1)
    assert classes.tolist() == [i % 6 for i in range(100)]
    alone = Plan(count=100, batch=13, shard_size=50, seed=9).groups
    assert torch.equal(classes, torch.cat([balanced_labels(group, 6) for group in alone]).argmax(1))


def test_uniform_classes_are_uniform_and_differ_by_group():
    classes = [uniform_labels(group, 6).argmax(1) for group in GROUPS]
    assert not torch.equal(classes[0], classes[1])
    (group,) = Plan(count=6000, batch=6000, shard_size=6000, seed=0).groups
    counts = uniform_labels(group, 6).sum(0).numpy()
    assert stats.chisquare(counts).pvalue > 0.001


def test_embedding_networks_have_no_classes():
    assert class_count(make_teacher(outputs=7), "dsg") == 7
    with pytest.raises(MismatchError, match=r"task 'embed', .* since dsg asks for classes"):
        class_count(make_teacher(outputs=7, task="embed"), "dsg")
