"""DeepInversion: un-squared norms, class targets, the two published settings."""

import numpy as np
import pytest
import torch
from toys import NETWORKS, image_spec, make_teacher

from zsq.contract import Silent
from zsq.core.errors import OptionError
from zsq.engine.objectives import TeacherPass
from zsq.engine.schedules import Cosine, Schedule
from zsq.engine.statistics import Alignment, TappedTeacher, layer_sums
from zsq.engine.views import Flip, Halve, Roll
from zsq.generators import create
from zsq.generators.deepinversion import DeepInversion, DeepInversionOptions
from zsq.plan import Plan
from zsq.teacher import load_teacher

LARGE = image_spec(size=(224, 224))


def test_feature_loss_against_numpy():
    teacher = make_teacher(NETWORKS["downsample"], dtype=torch.float64)
    method = create("deepinversion", teacher, {"first_layer_weight": 10.0})
    inversion = method.inversion(4)
    images = torch.randn(4, *teacher.spec.shape, dtype=torch.float64)
    logits, layers = inversion.tapped(images)
    (term,) = [term for term in inversion.terms if term.name == "bn"]
    found = term.function(TeacherPass(images, logits, layers, None)).item()

    network = teacher.network
    first = network.branch[0][0](images)
    second = network.branch[1](torch.relu(network.branch[0][1](first)))
    inputs = [first, second, network.shortcut[0](images)]
    bns = [network.branch[0][1], network.branch[2], network.shortcut[1]]
    wanted = 0.0
    for activations, bn, weight in zip(inputs, bns, (10, 1, 1), strict=True):
        values = activations.numpy()
        mean_gap = np.linalg.norm(bn.running_mean - values.mean((0, 2, 3)))
        var_gap = np.linalg.norm(bn.running_var - values.var((0, 2, 3)))
        wanted += weight * (mean_gap + var_gap)
    assert found == pytest.approx(wanted, rel=1e-6)


def test_the_gradient_of_a_norm_is_one_and_finite_at_zero():
    """With one image of one position the loss is a function of the mean alone."""
    alignment = Alignment("batch", moment="var", distance="norm")
    target = torch.linspace(-1, 1, 6, dtype=torch.float64)
    for shift, wanted in ((0.3, 1.0), (1e-2, 1.0), (0.0, 0.0)):
        activations = (target + shift)[None, :, None, None].clone().requires_grad_()
        loss = alignment([layer_sums(activations, target, torch.zeros_like(target))])
        (gradient,) = torch.autograd.grad(loss, activations)
        assert gradient.norm().item() == pytest.approx(wanted, abs=1e-6)


def test_images_stay_in_the_box_after_every_step(tiny_teacher, monkeypatch):
    method = create("deepinversion", tiny_teacher, {"learning_rate": 2.0}, iterations=5)
    inversion, seen = method.inversion(3), []
    project = inversion.parameterisation.project
    monkeypatch.setattr(
        inversion.parameterisation,
        "project",
        lambda: (project(), seen.append(inversion.parameterisation().detach().clone())),
    )
    (group,) = Plan(count=3, batch=3, shard_size=3, seed=0).groups
    inversion.run(group.generator("synthesis"), method.labels(group), Silent())
    spec = tiny_teacher.spec
    assert len(seen) == 6
    for images in seen:
        for channel, (mean, std) in enumerate(zip(spec.mean, spec.std, strict=True)):
            assert images[:, channel].min() >= (0 - mean) / std - 1e-5
            assert images[:, channel].max() <= (1 - mean) / std + 1e-5


def test_the_classes_asked_for_are_what_a_trained_teacher_sees():
    teacher = load_teacher("embedded:digits")
    method = create("deepinversion", teacher, iterations=80)
    groups = Plan(count=20, batch=13, shard_size=20, seed=0).groups
    made = [method.synthesize(group, Silent()) for group in groups]
    targets = torch.cat([batch.targets_NK for batch in made]).argmax(1)
    assert targets.tolist() == [i % 10 for i in range(20)]
    with torch.no_grad():
        logits = teacher.logits(torch.cat([batch.standard_NCHW for batch in made]))
    assert (logits.argmax(1) == targets).float().mean() >= 0.5  # chance is 0.1


def test_published_settings_by_image_size():
    small = DeepInversionOptions.resolve("deepinversion", image_spec(size=(32, 32)), {})
    large = DeepInversionOptions.resolve("deepinversion", LARGE, {})
    assert (small.iterations, small.low_resolution_iterations, small.learning_rate) == (2000, 0, 0.1)
    assert (small.bn_weight, small.tv_weight, small.l2_weight, small.jitter) == (10.0, 2.5e-5, 0.0, 2)
    assert (large.iterations, large.low_resolution_iterations, large.learning_rate) == (3000, 2000, 0.2)
    assert (large.bn_weight, large.first_layer_weight, large.warmup) == (0.05, 10.0, 100)
    assert (large.tv_weight, large.l2_weight, large.jitter, large.betas) == (1e-4, 1e-5, 30, (0.5, 0.9))
    short = DeepInversionOptions.resolve("deepinversion", LARGE, {}, 30)
    assert (short.iterations, short.low_resolution_iterations, short.warmup) == (30, 20, 1)
    sizes = [DeepInversion.default_batch(image_spec(size=(side, side))) for side in (32, 64, 65, 224)]
    assert sizes == [256, 256, 64, 64]


def test_the_large_setting_runs_at_half_resolution_first(tiny_teacher):
    options = DeepInversionOptions.published(LARGE) | {"iterations": 30, "low_resolution_iterations": 20}
    method = create("deepinversion", tiny_teacher, options | {"warmup": 2, "jitter": 4})
    inversion = method.inversion(2)
    first, second = inversion.stages
    assert (first.iterations, second.iterations) == (20, 10)
    assert [type(view) for view in first.views] == [Halve, Roll, Flip] and first.views[1].pixels == 2
    assert [type(view) for view in second.views] == [Roll, Flip] and second.views[0].pixels == 4
    assert not second.views[1].per_image
    assert [term.name for term in inversion.terms] == ["ce", "bn", "tv", "l2"]
    (group,) = inversion.parameterisation.groups()
    assert isinstance(group.schedule(0.2, 10, "cpu"), Cosine) and group.betas == (0.5, 0.9)
    (plan,) = Plan(count=2, batch=2, shard_size=2, seed=0).groups
    images = method.synthesize(plan, Silent()).standard_NCHW
    assert images.shape == (2, *tiny_teacher.spec.shape)


def test_the_small_setting_is_one_stage_with_a_constant_rate(tiny_teacher):
    inversion = create("deepinversion", tiny_teacher).inversion(2)
    (stage,) = inversion.stages
    assert [type(view) for view in stage.views] == [Roll]
    assert [term.name for term in inversion.terms] == ["ce", "bn", "tv"]
    (group,) = inversion.parameterisation.groups()
    assert type(group.schedule(0.1, 10, "cpu")) is Schedule


def test_a_low_resolution_stage_longer_than_the_run_is_refused():
    with pytest.raises(OptionError, match="low_resolution_iterations: longer than the run"):
        DeepInversionOptions.resolve("deepinversion", LARGE, {"iterations": 100})


def test_bn_distance_falls_although_norms_are_not_squared(tiny_teacher):
    method = create("deepinversion", tiny_teacher, iterations=100)
    (group,) = Plan(count=16, batch=16, shard_size=16, seed=0).groups
    images = method.synthesize(group, Silent()).standard_NCHW
    noise = create("noise", tiny_teacher).synthesize(group, Silent()).standard_NCHW
    tapped, batch = TappedTeacher(tiny_teacher), Alignment("batch")
    assert batch(tapped(images)[1]) < batch(tapped(noise)[1]) / 5
