"""Genie: its objective, what it optimises, and its schedules."""

import numpy as np
import pytest
import torch
from toys import NETWORKS, image_spec, make_teacher

from zsq.contract import Silent
from zsq.engine.invert import Inversion
from zsq.engine.objectives import TeacherPass
from zsq.engine.statistics import Alignment, TappedTeacher
from zsq.engine.swing import SwingConvolution
from zsq.generators import create
from zsq.generators.genie import GenieOptions
from zsq.plan import Plan


def losses(inversion, images):
    logits, layers = inversion.tapped(images)
    forward = TeacherPass(images, logits, layers, None)
    return {term.name: term.function(forward).item() for term in inversion.terms}


def test_objective_against_numpy():
    """sum_l [mean_c (m - M)^2 + mean_c (s - S)^2], unbiased std of the batch; at the input per image."""
    teacher = make_teacher(NETWORKS["downsample"], dtype=torch.float64)
    images = torch.randn(4, *teacher.spec.shape, generator=torch.Generator().manual_seed(0)).double()
    found = losses(create("genie", teacher, {"swing": False}).inversion(4), images)
    inputs, hooks = {}, []
    for module in teacher.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            hooks.append(
                module.register_forward_pre_hook(lambda m, x: inputs.__setitem__(m, x[0].detach().numpy()))
            )
    teacher.network(images)
    for hook in hooks:
        hook.remove()
    wanted = 0.0
    for module, x in inputs.items():
        spread = np.sqrt(x.var((0, 2, 3), ddof=1) + 1e-6) - np.sqrt(module.running_var.numpy() + 1e-6)
        gap = x.mean((0, 2, 3)) - module.running_mean.numpy()
        wanted += np.square(gap).mean() + np.square(spread).mean()
    x = images.numpy()
    spread = np.sqrt(x.var((2, 3), ddof=1) + 1e-6) - np.sqrt(1 + 1e-6)
    at_input = (np.square(x.mean((2, 3))) + np.square(spread)).sum(1).mean()
    assert found == pytest.approx({"bn": wanted, "input": at_input}, rel=1e-9)


def test_latent_vectors_and_network_both_have_a_gradient(tiny_teacher):
    inversion = create("genie", tiny_teacher).inversion(3)
    inversion.parameterisation.reset(torch.Generator().manual_seed(0))
    images = inversion.parameterisation()
    logits, layers = inversion.tapped(images)
    forward = TeacherPass(images, logits, layers, None)
    # Biases before a BN cancel: their gradient is rounding alone.
    steering = [(n, p) for n, p in inversion.parameterisation.named_parameters() if "bias" not in n]
    assert {"latent_ND", "network.0.linear.weight"} <= {name for name, _ in steering}
    for term in inversion.terms:
        inversion.parameterisation.zero_grad()
        term.function(forward).backward(retain_graph=True)
        for name, parameter in steering:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), (term.name, name)
            assert parameter.grad.abs().max() > 1e-9, (term.name, name)


def test_vectors_and_network_have_their_own_rates_and_schedules(tiny_teacher):
    vectors, network = create("genie", tiny_teacher).inversion(2).parameterisation.groups()
    assert (vectors.rate, network.rate) == (0.1, 0.01)
    plateau, decay = (group.schedule(group.rate, 4000, "cpu") for group in (vectors, network))
    assert (plateau.factor, plateau.patience, plateau.floor) == (0.1, 100, 1e-4)
    for iteration in range(4000):
        decay.step(iteration, torch.tensor(0.0))
    assert decay.rate.item() == pytest.approx(0.01 * 0.95**40)


def test_swing_is_on_for_the_teachers_strided_convolutions(tiny_teacher):
    (stage,) = create("genie", tiny_teacher).inversion(2).stages
    (swing,) = stage.views
    assert isinstance(swing, SwingConvolution) and swing.offsets.shape == (2, 2)
    (plain,) = create("genie", tiny_teacher, {"swing": False}).inversion(2).stages
    assert plain.views == ()
    (group,) = Plan(count=2, batch=2, shard_size=2, seed=0).groups
    made = [
        create("genie", tiny_teacher, {"swing": on}, iterations=5).synthesize(group, Silent())
        for on in (True, False)
    ]
    assert not torch.equal(made[0].standard_NCHW, made[1].standard_NCHW)


def test_the_bn_loss_falls_clearly(tiny_teacher):
    """To a fifth of its start in 200 steps, swing convolution and all, where nothing pulls the other way."""
    (group,) = Plan(count=16, batch=16, shard_size=16, seed=0).groups
    tapped, alignment = TappedTeacher(tiny_teacher), Alignment("batch", unbiased=True)
    found = []
    for iterations in (1, 200):
        method = create("genie", tiny_teacher, {"input_weight": 0.0}, iterations)
        _, layers = tapped(method.synthesize(group, Silent()).standard_NCHW)
        found.append(alignment(layers).item())
    assert found[1] < found[0] / 5


def test_every_batch_has_a_fresh_network(tiny_teacher, monkeypatch):
    starts = []
    run = Inversion.run

    def spy(self, generator, *arguments):
        made = run(self, generator, *arguments)
        starts.append([p.detach().clone() for p in self.parameterisation.network.parameters()])
        return made

    monkeypatch.setattr(Inversion, "run", spy)
    method = create("genie", tiny_teacher, iterations=1)
    groups = Plan(count=4, batch=2, shard_size=4, seed=0).groups
    for group in (*groups, groups[0]):
        method.synthesize(group, Silent())
    first, second, again = starts
    assert not torch.equal(first[0], second[0])
    assert all(torch.equal(p, q) for p, q in zip(first, again, strict=True))


def test_published_constants_and_scaling():
    for size in (32, 224):
        options = GenieOptions.resolve("genie", image_spec(size=(size, size)), {})
        assert (options.iterations, options.latent, options.patience) == (4000, 256, 100)
        assert (options.learning_rate, options.factor, options.min_learning_rate) == (0.1, 0.1, 1e-4)
        assert (options.generator_learning_rate, options.decay, options.decay_every) == (0.01, 0.95, 100)
        assert (options.input_weight, options.swing) == (1.0, True)
    short = GenieOptions.resolve("genie", image_spec(), {}, 400)
    assert (short.patience, short.decay_every) == (10, 10)
