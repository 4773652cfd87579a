"""ClusterQ: class-wise statistics, their moving centroids, and terms that have a gradient."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import NETWORKS, image_spec, make_teacher

from zsq.contract import Silent
from zsq.engine.amortise import FreshInputs
from zsq.engine.classes import class_moments, first_deep_layer
from zsq.engine.memories import ClassCentroids, FreshNoise, class_alignment
from zsq.engine.objectives import TeacherPass
from zsq.engine.statistics import layer_sums
from zsq.generators import create
from zsq.generators.clusterq import NOISE, ClusterQOptions
from zsq.plan import Plan

CLASSES = torch.tensor([0, 2, 2, 0, 3])
TARGETS = F.one_hot(CLASSES, 5).double()
RIGHT = 9 * TARGETS  # logits of a teacher that sees every class as asked


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def activations(seed=0, shift=0.0):
    return shift + torch.randn(5, 4, 3, 2, generator=rng(seed), dtype=torch.float64)


def sums(values):
    return layer_sums(values, torch.linspace(-1, 1, 4).double(), torch.ones(4).double())


def forward(*layers, logits=RIGHT):
    return TeacherPass(torch.empty(0), logits, [sums(values) for values in layers], TARGETS)


def centroids(rate=0.2, warmup=0, skipped=0):
    made = ClassCentroids(5, [4], "cpu", rate, warmup, skipped)
    made.mean_KC, made.std_KC = [made.mean_KC[0].double()], [made.std_KC[0].double()]
    return made


def by_class(values, k):
    chosen = values[k == CLASSES].transpose(0, 1).flatten(1).numpy()
    return chosen.mean(1), np.sqrt(chosen.var(1) + 1e-6)


def test_statistics_by_class_against_numpy():
    values = activations()
    found = class_moments(sums(values), CLASSES, 5, torch.ones(5).double())
    assert found.images_K.tolist() == [2, 0, 2, 1, 0]
    for k in (0, 2, 3):
        mean, std = by_class(values, k)
        np.testing.assert_allclose(found.mean_KC[k], mean, atol=1e-12)
        np.testing.assert_allclose((found.var_KC[k] + 1e-6).sqrt(), std, atol=1e-12)
    weights = torch.tensor([1.0, 0, 1, 0, 1]).double()
    one = class_moments(sums(values), CLASSES, 5, weights)
    np.testing.assert_allclose(one.mean_KC[2], values[2].mean((1, 2)), atol=1e-12)


def test_two_classes_get_two_centroids_and_equal_input_leaves_them():
    made, values = centroids(), activations()
    made.after_step(0, forward(values))
    for k in (0, 2, 3):
        np.testing.assert_allclose(made.mean_KC[0][k], by_class(values, k)[0], atol=1e-12)
    assert made.known_K.tolist() == [True, False, True, True, False]
    assert not torch.allclose(made.mean_KC[0][0], made.mean_KC[0][2])
    before = made.mean_KC[0].clone(), made.std_KC[0].clone()
    made.after_step(1, forward(values))
    torch.testing.assert_close((made.mean_KC[0], made.std_KC[0]), before)


@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_centroids_are_moving_averages(rate):
    made = centroids(rate)
    made.after_step(0, forward(activations(0)))
    made.after_step(1, forward(activations(1)))
    for k in (0, 2, 3):
        for index, found in ((0, made.mean_KC[0][k]), (1, made.std_KC[0][k])):
            wanted = (1 - rate) * by_class(activations(0), k)[index] + rate * by_class(activations(1), k)[
                index
            ]
            np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_nothing_is_learned_in_warmup_from_skipped_layers_or_wrong_images():
    made = centroids(warmup=3)
    for iteration in (0, 1):
        made.after_step(iteration, forward(activations()))
        assert not made.known_K.any()
    made.after_step(2, forward(activations()))
    assert made.known_K.any()
    deep = centroids(skipped=1)
    deep.after_step(0, forward(activations(1), activations(0)))
    np.testing.assert_allclose(deep.mean_KC[0][0], by_class(activations(0), 0)[0], atol=1e-12)
    wrong = centroids()
    wrong.after_step(0, forward(activations(), logits=-RIGHT))
    assert not wrong.known_K.any()


def test_the_cluster_term_against_numpy():
    made, values = centroids(), activations(1)
    made.after_step(0, forward(activations(0)))
    gaps = {}
    for k in (0, 2, 3):
        pairs = zip(by_class(values, k), by_class(activations(0), k), strict=True)
        gaps[k] = [np.square(new - old) for new, old in pairs]
    mean = np.mean([(m + s).mean() for m, s in gaps.values()])
    total = np.sum([(m + s).sum() for m, s in gaps.values()])
    assert class_alignment(made)(forward(values)).item() == pytest.approx(mean, rel=1e-9)
    assert class_alignment(made, "sum")(forward(values)).item() == pytest.approx(total, rel=1e-9)
    assert class_alignment(made)(forward(activations(0))).item() == pytest.approx(0, abs=1e-12)


def test_wrong_images_contribute_nothing():
    made = centroids()
    made.after_step(0, forward(activations(0)))
    logits = RIGHT.clone()
    logits[[1, 2, 4]] = logits[[1, 2, 4]].roll(1, 1)
    values = activations(1).requires_grad_()
    loss = class_alignment(made)(forward(values, logits=logits))
    (gradient,) = torch.autograd.grad(loss, values)
    assert gradient[[0, 3]].any() and not gradient[[1, 2, 4]].any()
    assert class_alignment(made)(forward(values, logits=-RIGHT)) == 0


def test_diversity_has_a_gradient_towards_the_noisy_centroid():
    """Even where cluster and centroid agree and the cluster term has none."""
    made, noise = centroids(), FreshNoise(5, [4], "cpu")
    noise.before_step(0, rng())
    values = activations(0).requires_grad_()
    made.after_step(0, forward(values.detach()))
    term = class_alignment(made, "sum", noise, NOISE)
    loss = term(forward(values))
    (gradient,) = torch.autograd.grad(loss, values)
    assert gradient.isfinite().all() and gradient.abs().max() > 1e-3
    rows = [0, 1, 4]  # the first image of each class
    wanted = sum((NOISE[0] * noise.mean[0][r]).square().sum() for r in rows)
    wanted += sum((NOISE[1] * noise.spread[0][r]).square().sum() for r in rows)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    before = noise.mean[0].clone()
    noise.before_step(1, rng(1))
    assert not torch.equal(before, noise.mean[0])


def trained(teacher, tmp_path, overrides=None, **changes):
    values = {"iterations": 40, "batch": 16} | changes
    method = create("clusterq", teacher, overrides, values["iterations"], batch=values["batch"])
    method.prepare(0, tmp_path, Silent())
    return method


def test_training_uses_classes_or_follows_the_code(tiny_teacher, tmp_path):
    method = trained(tiny_teacher, tmp_path / "paper")
    assert set(method.losses) == {"ce", "bn", "cluster", "diversity"}
    assert method.losses["cluster"] > 0 and method.losses["diversity"] > method.losses["cluster"]
    code = trained(tiny_teacher, tmp_path / "code", {"centroids": "code", "over": "sum"})
    assert set(code.losses) == {"ce", "bn", "cluster"}
    (group,) = Plan(count=6, batch=6, shard_size=6, seed=0).groups
    one, other = (each.synthesize(group, Silent()).standard_NCHW for each in (method, code))
    assert not torch.equal(one, other)


def test_the_codes_cluster_term_is_that_of_the_whole_batch(tmp_path):
    teacher = make_teacher(NETWORKS["downsample"])
    method = create("clusterq", teacher, {"centroids": "code"}, 3, batch=4)
    training = method.training(FreshInputs(method.network, "cpu", method.options))
    (term,) = [term for term in training.terms if term.name == "cluster"]
    images = torch.randn(4, *teacher.spec.shape)
    logits, layers = training.tapped(images)
    found = term.function(TeacherPass(images, logits, layers, None)).item()
    wanted = []
    for s in layers[first_deep_layer(len(layers)) :]:
        count = 4 * s.num_positions
        gap = s.s1_NC.sum(0) / count
        std = (s.s2_NC.sum(0) / count - gap**2 + 1e-6).sqrt()
        wanted.append((gap.square().mean() + (std - (s.var_C + 1e-6).sqrt()).square().mean()).item())
    assert found == pytest.approx(np.mean(wanted), rel=1e-4)


def test_deep_layers():
    assert [first_deep_layer(n) for n in (1, 2, 3, 5, 20, 27, 52, 53)] == [0, 0, 0, 1, 8, 12, 24, 25]


def test_published_constants():
    small, large = (
        ClusterQOptions.resolve("clusterq", image_spec(size=s), {}) for s in ((32, 32), (224, 224))
    )
    assert (small.iterations, small.training_batch, small.latent, small.warmup) == (80_000, 512, 10, 2000)
    assert (large.training_batch, large.latent, large.warmup) == (16, 100, 10_000)
    assert (small.ce_weight, small.bn_weight, small.cluster_weight) == (1, 0.1, 0.9)
    assert (small.diversity_weight, small.rate, small.crop_scale) == (0.6, 0.2, (0.8, 1.0))
    assert ClusterQOptions.resolve("clusterq", image_spec(), {}, 400).warmup == 10
