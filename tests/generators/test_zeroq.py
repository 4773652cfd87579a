"""ZeroQ: its objective and its start."""

import numpy as np
import pytest
import torch
from toys import NETWORKS, image_spec, make_teacher

from zsq.contract import Silent
from zsq.engine.objectives import TeacherPass
from zsq.engine.schedules import Plateau
from zsq.engine.statistics import TappedTeacher
from zsq.generators import create
from zsq.generators.zeroq import STARTS, ZeroQOptions
from zsq.plan import Plan


def losses(method, batch, images, tapped=None):
    """Term name -> value of the method's objective on these images."""
    inversion = method.inversion(batch)
    tapped = tapped or inversion.tapped
    logits, layers = tapped(images)
    forward = TeacherPass(images, logits, layers, None)
    return {term.name: term.function(forward).item() for term in inversion.terms}


@pytest.fixture(scope="module")
def teacher64():
    return make_teacher(NETWORKS["downsample"], dtype=torch.float64)


def double_images(teacher, count=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *teacher.spec.shape, generator=generator, dtype=torch.float64)


def gap(activations, mean, var):
    """sum_c (m - M)^2 + (s - S)^2 of one image, unbiased."""
    flat = activations.reshape(len(mean), -1)
    spread = np.sqrt(flat.var(1, ddof=1) + 1e-6) - np.sqrt(var + 1e-6)
    return np.square(flat.mean(1) - mean).sum() + np.square(spread).sum()


def test_objective_against_numpy(teacher64):
    images = double_images(teacher64)
    found = losses(create("zeroq", teacher64), 4, images)
    network = teacher64.network
    inputs, hooks = {}, []
    for name in ("branch.0.1", "branch.2", "shortcut.1"):
        module = network.get_submodule(name)
        hook = module.register_forward_pre_hook(
            lambda m, x, name=name: inputs.__setitem__(name, x[0].numpy())
        )
        hooks.append(hook)
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    wanted = 0.0
    for name, activations in inputs.items():
        module = network.get_submodule(name)
        mean, var = module.running_mean.numpy(), module.running_var.numpy()
        wanted += np.mean([gap(image, mean, var) for image in activations])
    assert found["bn"] == pytest.approx(wanted, rel=1e-9)
    own = np.mean([gap(image.numpy(), np.zeros(3), np.ones(3)) for image in images])
    assert found["input"] == pytest.approx(own, rel=1e-9)


def test_a_batch_is_the_mean_of_its_images_in_any_order(teacher64):
    method, images = create("zeroq", teacher64), double_images(teacher64)
    together = losses(method, 4, images)
    alone = [losses(method, 1, image[None]) for image in images]
    permuted = losses(method, 4, images[[2, 0, 3, 1]])
    for name, value in together.items():
        assert value == pytest.approx(np.mean([single[name] for single in alone]), rel=1e-9)
        assert value == pytest.approx(permuted[name], rel=1e-9)


def test_a_constant_image_at_the_input(teacher64):
    constant = torch.full((1, *teacher64.spec.shape), 0.7, dtype=torch.float64)
    wanted = 3 * (0.7**2 + (np.sqrt(1e-6) - np.sqrt(1 + 1e-6)) ** 2)
    assert losses(create("zeroq", teacher64), 1, constant)["input"] == pytest.approx(wanted, rel=1e-6)


def test_200_steps_lower_the_bn_loss_by_a_factor_of_5(tiny_teacher):
    method = create("zeroq", tiny_teacher, iterations=200)
    (group,) = Plan(count=4, batch=4, shard_size=4, seed=0).groups
    images = method.synthesize(group, Silent()).standard_NCHW
    noise = create("noise", tiny_teacher).synthesize(group, Silent()).standard_NCHW
    tapped = TappedTeacher(tiny_teacher)
    after, before = (losses(method, 4, x, tapped)["bn"] for x in (images, noise))
    assert after < before / 5


def test_the_codes_start_is_narrow_uniform():
    start = STARTS["code"]((8, 3, 32, 32), torch.Generator().manual_seed(0))
    levels = np.arange(255) - 127.5
    assert start.std().item() == pytest.approx((levels / 5418.75).std(), rel=0.02)
    assert start.abs().max() <= 127.5 / 5418.75 + 1e-6
    np.testing.assert_allclose(start.unique(), (levels / 5418.75).astype(np.float32), rtol=1e-4)


def test_published_constants_and_scaling():
    options = ZeroQOptions.resolve("zeroq", image_spec(), {}, None)
    assert (options.iterations, options.learning_rate, options.patience) == (500, 0.5, 100)
    assert (options.factor, options.min_learning_rate, options.init) == (0.1, 1e-4, "gaussian")
    assert ZeroQOptions.resolve("zeroq", image_spec(), {}, 50).patience == 10


def test_the_plateau_gets_its_constants(tiny_teacher):
    method = create("zeroq", tiny_teacher, {"factor": 0.5, "patience": 7}, iterations=20)
    (group,) = method.inversion(2).parameterisation.groups()
    schedule = group.schedule(group.rate, 20, "cpu")
    assert isinstance(schedule, Plateau)
    assert (schedule.initial, schedule.factor, schedule.patience, schedule.floor) == (0.5, 0.5, 7, 1e-4)
