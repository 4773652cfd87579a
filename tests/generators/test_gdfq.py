"""GDFQ: its objective, its network at both sizes, and what its training reaches."""

import numpy as np
import pytest
import torch
from toys import NETWORKS, image_spec, make_teacher

from zsq.contract import Silent
from zsq.engine.conditional import NoiseNetwork
from zsq.engine.latent import BatchNorm
from zsq.engine.objectives import TeacherPass
from zsq.engine.statistics import TappedTeacher
from zsq.generators import create
from zsq.generators.gdfq import GDFQ, GDFQOptions
from zsq.plan import Plan


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_objective_against_numpy():
    """CE, and 0.1 times the mean over layers and channels of (m - M)^2 + (v - V)^2 of the batch, biased."""
    teacher = make_teacher(NETWORKS["downsample"], dtype=torch.float64)
    images = torch.randn(4, *teacher.spec.shape, generator=rng(), dtype=torch.float64)
    targets = torch.eye(5, dtype=torch.float64)[[1, 0, 4, 1]]
    terms = create("gdfq", teacher).terms()
    logits, layers = TappedTeacher(teacher)(images)
    forward = TeacherPass(images, logits, layers, targets)
    found = {term.name: (term.weight, term.function(forward).item()) for term in terms}

    inputs = {}
    bns = [m for m in teacher.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    hooks = [m.register_forward_pre_hook(lambda m, x: inputs.__setitem__(m, x[0].numpy())) for m in bns]
    with torch.no_grad():
        logits = teacher.network(images).numpy()
    for hook in hooks:
        hook.remove()
    per_layer = [
        np.square(x.mean((0, 2, 3)) - m.running_mean.numpy()).mean()
        + np.square(x.var((0, 2, 3)) - m.running_var.numpy()).mean()
        for m, x in inputs.items()
    ]
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    ce = -log_softmax[range(4), [1, 0, 4, 1]].mean()
    assert found == {
        "ce": (1.0, pytest.approx(ce, rel=1e-9)),
        "bn": (0.1, pytest.approx(np.mean(per_layer), rel=1e-9)),
    }


@pytest.mark.parametrize(("size", "conditional", "millions"), [(32, False, 1.05), (224, True, 41.4)])
def test_published_sizes(size, conditional, millions):
    with torch.device("meta"):
        spec, classes = image_spec(size=(size, size)), 1000 if conditional else 10
        network = NoiseNetwork(spec, classes, 100, 0.8, conditional)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("epsilon", [0.8, 1e-5])
def test_second_and_third_norm_have_the_epsilon_asked_for(tiny_teacher, epsilon):
    network = create("gdfq", tiny_teacher, {"bn_epsilon": epsilon}).network
    found = [module.epsilon for module in network.modules() if isinstance(module, BatchNorm)]
    assert found == [1e-5, epsilon, epsilon, 1e-5]
    assert GDFQOptions().bn_epsilon == 0.8


def test_small_images_multiply_noise_with_the_class_embedding(tiny_teacher):
    network = create("gdfq", tiny_teacher).network
    network.reset(rng())
    targets, noise = network.draw(6, rng(1))
    assert targets.shape == (6, 5) and noise.shape == (6, 100)
    wanted = network.embedding.weight[targets.argmax(1)] * noise
    torch.testing.assert_close(network.latent(targets, noise), wanted, rtol=0, atol=0)
    assert not any(m.conditional for m in network.modules() if isinstance(m, BatchNorm))


def test_large_images_have_conditional_norms_and_noise_alone(tiny_teacher):
    network = create("gdfq", tiny_teacher, {"conditional_bn": True}).network
    network.reset(rng())
    targets, noise = network.draw(6, rng(1))
    assert network.embedding is None and torch.equal(network.latent(targets, noise), noise)
    norms = [m for m in network.modules() if isinstance(m, BatchNorm) and m.conditional]
    assert [tuple(m.weight_KC.shape) for m in norms] == [(5, 128), (5, 128), (5, 64)]
    assert all((m.weight_KC == 1).all() and (m.bias_KC == 0).all() for m in norms)
    other = targets.roll(1, 1)
    torch.testing.assert_close(network(targets, noise), network(other, noise))
    with torch.no_grad():
        norms[0].weight_KC.normal_(generator=rng())
    assert not torch.allclose(network(targets, noise), network(other, noise))


def test_classes_are_uniform_and_noise_gaussian(tiny_teacher):
    targets, noise = create("gdfq", tiny_teacher).network.draw(5000, rng())
    counts = targets.sum(0)
    assert counts.sum() == 5000 and ((counts - 1000).square() / 1000).sum() < 18.5  # 4 degrees, 1 in 1000
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01


@pytest.mark.parametrize(("absent", "index"), [("bn_weight", 0), ("ce_weight", 1)])
def test_training_lowers_each_term(absent, index, tmp_path):
    """Each alone, below nine tenths of where one step leaves it: random weights are stubborn."""
    teacher = make_teacher(spec=image_spec(size=(8, 8)))
    (group,) = Plan(count=16, batch=16, shard_size=16, seed=0).groups
    term = create("gdfq", teacher).terms()[index]
    values = []
    for iterations in (1, 100):
        method = create("gdfq", teacher, {absent: 0.0, "decay": 1.0}, iterations, batch=16)
        method.prepare(0, tmp_path / str(iterations), Silent())
        batch = method.synthesize(group, Silent())
        logits, layers = TappedTeacher(teacher)(batch.standard_NCHW)
        values.append(
            term.function(TeacherPass(batch.standard_NCHW, logits, layers, batch.targets_NK)).item()
        )
        assert batch.losses.keys() == {term.name}
    assert values[1] < 0.9 * values[0], values


def test_published_constants():
    small = GDFQOptions.resolve("gdfq", image_spec(size=(32, 32)), {})
    large = GDFQOptions.resolve("gdfq", image_spec(size=(224, 224)), {})
    for options in (small, large):
        assert (options.iterations, options.decay, options.decay_every) == (80_000, 0.1, 20_000)
        assert (options.learning_rate, options.betas, options.latent) == (1e-3, (0.5, 0.999), 100)
        assert (options.ce_weight, options.bn_weight) == (1.0, 0.1)
    assert (small.training_batch, small.conditional_bn) == (200, False)
    assert (large.training_batch, large.conditional_bn) == (16, True)
    assert GDFQ.default_batch(image_spec(size=(64, 64))) == 200
    assert GDFQ.default_batch(image_spec(size=(224, 224))) == 16
    short = GDFQOptions.resolve("gdfq", image_spec(), {}, 100, batch=64)
    assert (short.decay_every, short.training_batch) == (25, 64)
    assert GDFQ.teacher_passes(short, 1000) == 6400
