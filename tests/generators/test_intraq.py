"""IntraQ: crops, distances to centres of earlier batches, soft targets."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import image_spec, make_teacher

from zsq.contract import Silent
from zsq.engine.classes import ClassCentres
from zsq.engine.executed import FeatureTap
from zsq.engine.objectives import TeacherPass, marginal_distance, soft_inception
from zsq.engine.statistics import TappedTeacher
from zsq.engine.targets import softened
from zsq.engine.views import ResizedCrop
from zsq.generators import create
from zsq.generators.intraq import IntraQOptions
from zsq.plan import Plan


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def forward(logits_NK=None, targets_NK=None, features_NF=None):
    return TeacherPass(torch.empty(0), logits_NK, [], targets_NK, features_NF=features_NF)


def at_distance(distance):
    """A unit vector in the plane with this cosine distance to (1, 0)."""
    cosine = 1 - distance
    return [cosine, np.sqrt(1 - cosine**2)]


def centre_on_axis():
    centres = ClassCentres(3, 2, "cpu")
    centres.sums_KF, centres.images_K = centres.sums_KF.double(), centres.images_K.double()
    centres.add(torch.tensor([[3.0, 0.0], [1.0, 0.0]]).double(), torch.tensor([1, 1]))
    return centres


@pytest.mark.parametrize(
    ("distance", "loss", "sign"), [(0.02, 0.03, 1), (0.05, 0, 0), (0.4, 0, 0), (0.8, 0, 0), (1.1, 0.3, -1)]
)
def test_the_distance_is_kept_between_its_limits(distance, loss, sign):
    """Below, descent turns the feature away from the centre, above towards it."""
    features = torch.tensor([at_distance(distance)], dtype=torch.float64, requires_grad=True)
    seen = forward(targets_NK=torch.eye(3)[[1]], features_NF=features)
    found = marginal_distance(centre_on_axis(), 0.05, 0.8)(seen)
    assert found.item() == pytest.approx(loss, abs=1e-9)
    (gradient,) = torch.autograd.grad(found, features)
    moved = features.detach() - 1e-4 * gradient
    change = F.cosine_similarity(moved, torch.tensor([[1.0, 0.0]]).double()) - (1 - distance)
    assert torch.sign(-change.round(decimals=9)).item() == sign


def test_images_without_a_centre_do_not_count():
    features = torch.tensor([at_distance(0.02), at_distance(1.9)], dtype=torch.float64)
    loss = marginal_distance(centre_on_axis(), 0.05, 0.8)
    assert loss(forward(None, torch.eye(3)[[1, 2]], features)).item() == pytest.approx(0.03)
    assert loss(forward(None, torch.eye(3)[[0, 2]], features)) == 0


def test_centres_are_those_of_earlier_batches_of_the_group(tiny_teacher, tmp_path):
    """The mean feature of each class over all finished batches, by hand; a new group starts without any."""
    method = create("intraq", tiny_teacher, iterations=2)
    method.prepare(0, tmp_path, Silent())
    seen, centres = [], method.centres
    variant = method.variant

    def watched(batch):
        seen.append((centres.sums_KF.clone(), centres.images_K.clone()))
        return variant(batch)

    method.variant = watched
    groups = Plan(count=18, batch=3, shard_size=18, seed=0, batches_per_group=5).groups
    assert [group.batch_sizes for group in groups] == [(3,) * 5, (3,)]
    made = method.synthesize(groups[0], Silent())
    method.synthesize(groups[1], Silent())
    assert len(seen) == 6 and not seen[0][0].any() and not seen[5][0].any()
    network = tiny_teacher.network
    with torch.no_grad():
        features = network[:-1](made.standard_NCHW)
        features = network[-1][:2](features)
    classes = made.targets_NK.argmax(1)
    for batch in range(5):
        before = slice(0, 3 * batch)
        wanted = torch.zeros_like(centres.sums_KF).index_add(0, classes[before], features[before])
        torch.testing.assert_close(seen[batch][0], wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(seen[batch][1].long(), torch.bincount(classes[before], minlength=5))


def test_the_first_batch_has_no_distance_term_and_imagenet_none_at_all(tiny_teacher, tmp_path):
    method = create("intraq", tiny_teacher, iterations=2)
    method.prepare(0, tmp_path, Silent())
    method.first = True
    assert [term.name for term in method.inversion(2).terms] == ["bn", "inception"]
    method.first = False
    assert [term.name for term in method.inversion(2).terms] == ["bn", "distance", "inception"]
    open_ended = create("intraq", tiny_teacher, {"lower": 0.0, "upper": 2.0}, iterations=2)
    open_ended.prepare(0, tmp_path, Silent())
    open_ended.first = False
    assert [term.name for term in open_ended.inversion(2).terms] == ["bn", "inception"]


def test_the_distance_term_steers_later_batches(tiny_teacher, tmp_path):
    def images(weight):
        method = create("intraq", tiny_teacher, {"distance_weight": weight, "lower": 2.0}, iterations=5)
        method.prepare(0, tmp_path, Silent())
        (group,) = Plan(count=16, batch=8, shard_size=16, seed=0, batches_per_group=2).groups
        return method.synthesize(group, Silent()).standard_NCHW

    on, off = images(1.0), images(0.0)
    assert torch.equal(on[:8], off[:8]) and not torch.equal(on[8:], off[8:])


def test_inception_gradient_through_the_logits():
    logits = torch.randn(4, 5, generator=rng(), dtype=torch.float64, requires_grad=True)
    targets = softened(torch.eye(5)[[0, 3, 3, 1]], 0.6, rng(1)).double()
    (gradient,) = torch.autograd.grad(soft_inception(forward(logits, targets)), logits)
    p, y, t = logits.detach().softmax(1).numpy(), [0, 3, 3, 1], targets.max(1).values.numpy()
    for n in range(4):
        delta = np.eye(5)[y[n]]
        wanted = 2 * (p[n, y[n]] - t[n]) * p[n, y[n]] * (delta - p[n]) / 4
        np.testing.assert_allclose(gradient[n].numpy(), wanted, atol=1e-12)


def test_soft_targets():
    hard = F.one_hot(torch.arange(4000) % 5, 5).float()
    soft = softened(hard, 0.6, rng())
    torch.testing.assert_close(soft.sum(1), torch.ones(4000))
    assert torch.equal(soft.argmax(1), hard.argmax(1))
    top = soft.max(1).values
    assert (top == 1).float().mean() == pytest.approx(0.5, abs=0.03)
    assert top.min() >= 0.6 and top[top < 1].mean() == pytest.approx(0.8, abs=0.02)
    assert torch.equal(softened(hard, 1.0, rng()), hard)
    assert softened(torch.ones(3, 1), 0.6, rng()).shape == (3, 1)


def test_labels_are_uniform(tiny_teacher):
    (group,) = Plan(count=5000, batch=5000, shard_size=5000, seed=0).groups
    counts = create("intraq", tiny_teacher).labels(group).argmax(1).bincount(minlength=5)
    assert (counts - 1000).abs().max() < 120


def test_crops_with_flip_and_a_coin_for_the_batch():
    shape, generator = (8, 3, 7, 9), rng()
    images = torch.randn(shape, generator=rng(1))
    plain = ResizedCrop((1.0, 1.0), flip=False)
    torch.testing.assert_close(plain(images, plain.draw(shape, generator)), images, rtol=1e-4, atol=1e-5)
    flipped = ResizedCrop((1.0, 1.0), flip=True)
    draw = flipped.draw((400, 3, 7, 9), generator)
    mirrored = draw[:, 0, 0] > draw[:, 1, 0]
    assert 0.4 < mirrored.float().mean() < 0.6
    result = flipped(images, draw[:8])
    for image, seen, mirror in zip(images, result, mirrored, strict=False):
        torch.testing.assert_close(seen, image.flip(2) if mirror else image, rtol=1e-4, atol=1e-4)
    coin = ResizedCrop((0.5, 0.6), flip=True, probability=0.5)
    whole = [bool(((d := coin.draw(shape, generator))[:, 2, 0] - d[:, 0, 0] == 8).all()) for _ in range(200)]
    assert 0.4 < np.mean(whole) < 0.6


def test_features_of_a_convolutional_head():
    """What enters the last convolution, averaged over its positions."""
    from torch import nn

    def build(channels, outputs):
        body = nn.Sequential(nn.Conv2d(channels, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU())
        return nn.Sequential(body, nn.Conv2d(6, outputs, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    teacher = make_teacher(build)
    tapped = TappedTeacher(teacher)
    tap = FeatureTap(tapped.network, teacher)
    images = torch.randn(3, *teacher.spec.shape)
    tapped(images)
    torch.testing.assert_close(tap.take(), teacher.network[0](images).mean((2, 3)))
    assert tap.length == 6


def test_published_constants():
    small, large = (IntraQOptions.resolve("intraq", image_spec(size=s), {}) for s in ((32, 32), (224, 224)))
    assert (small.iterations, small.learning_rate, small.patience, small.factor) == (1000, 0.5, 50, 0.1)
    assert (small.epsilon, small.lower, small.upper, small.crop_scale) == (0.95, 0.05, 0.8, (0.5, 1.0))
    assert (large.epsilon, large.lower, large.upper) == (1, 0, 2)
    assert IntraQOptions.resolve("intraq", image_spec(), {}, 100).patience == 5
