"""GZSQ: statistics that follow from the weights, in closed form and against samples."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models
from toys import NETWORKS, head, image_spec, make_teacher

from zsq.contract import Silent, Teacher
from zsq.core.errors import MismatchError
from zsq.engine.moments import Moments, Rules, SummedGaussians, channel_moments, matched_channels
from zsq.engine.objectives import mean_zscore, spread_zscore
from zsq.engine.statistics import layer_sums
from zsq.engine.walk import MomentWalk
from zsq.engine.weights import WeightTapped
from zsq.generators import create
from zsq.graph import capture
from zsq.graph.fold import fold_batch_norms
from zsq.plan import Plan


def teacher_of(network, spec=None, outputs=5):
    return Teacher("toy", network, spec or image_spec(), outputs, "0" * 64)


def targets(network, rules, spec):
    tapped = WeightTapped(teacher_of(network, spec), rules)
    with torch.no_grad():
        _, layers = tapped(torch.zeros(1, *spec.shape))
    return [(sums.mean_C.double().numpy(), sums.var_C.double().sqrt().numpy()) for sums in layers]


def plain_network(scale=1.0, depth=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    widths = [3, 24, 32, 32][: depth + 1]
    layers = []
    for before, after in itertools.pairwise(widths):
        conv = nn.Conv2d(before, after, 3)
        with torch.no_grad():
            conv.weight.copy_(
                torch.randn(conv.weight.shape, generator=generator) * scale * math.sqrt(2 / (9 * before))
            )
            conv.bias.copy_(0.1 * torch.randn(after, generator=generator))
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_the_published_recursion_is_its_closed_form():
    """With 3, 3 and 8 channels and one layer of 2: sums, filled channels, and contracted ones."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 12, 1), nn.MaxPool2d(2), nn.Conv2d(12, 2, 1)
    )
    first, second, third = (network[i] for i in (0, 2, 4))
    found = targets(network, SummedGaussians(), image_spec())

    def own(conv):
        filters = conv.weight.detach().double().flatten(1).numpy()
        return filters.mean(1) + conv.bias.detach().double().numpy(), filters.std(1)

    mean, std = own(first)[0], np.sqrt(own(first)[1] ** 2 + 1)

    def filled(values):
        low, mid, high = values.min(), values.mean(), values.max()
        extra = [low, mid - low, mid + low, mid, high - mid, high + mid, high, low, mid - low]
        return np.concatenate([values, extra])

    np.testing.assert_allclose(found[0][0], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[0][1], std, rtol=1e-5)
    mean, std = own(second)[0] + filled(mean), np.hypot(own(second)[1], filled(std).clip(0))
    np.testing.assert_allclose(found[1][0], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1][1], std, rtol=1e-5)
    np.testing.assert_allclose(found[2][0], own(third)[0] + mean.mean(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[2][1], np.hypot(own(third)[1], std.mean() + std.min()), rtol=1e-5)


def test_equal_numbers_of_channels_pass_unchanged():
    mean, std = torch.randn(4), torch.rand(4)
    assert all(torch.equal(a, b) for a, b in zip(matched_channels(mean, std, 4), (mean, std), strict=True))


def test_one_layer_of_moments_is_exact():
    network = plain_network(depth=1)
    weight = network[0].weight.detach().double().flatten(1).numpy()
    ((mean, std),) = targets(network, Rules(), image_spec())
    np.testing.assert_allclose(mean, network[0].bias.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(std, np.sqrt((weight**2).sum(1)), rtol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_moments_of_two_layers_against_samples(scale):
    """The std's average within 6 %, each channel's within 12 % rms; the published recursion cannot follow."""
    network, spec = plain_network(scale), image_spec(size=(12, 12))
    images = torch.randn(400, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        sampled = network(images).transpose(0, 1).flatten(1).double()
    mean, std = targets(network, Rules(), spec)[1]
    wanted_mean, wanted_std = sampled.mean(1).numpy(), sampled.std(1).numpy()
    ratio = std / wanted_std
    assert abs(ratio.mean() - 1) < 0.06 and np.sqrt(np.mean((ratio - 1) ** 2)) < 0.12
    assert np.sqrt(np.mean((mean - wanted_mean) ** 2)) < 0.1 * wanted_std.mean()
    if scale != 1:
        published = targets(network, SummedGaussians(), spec)[1][1] / wanted_std
        assert abs(published.mean() - 1) > 0.2


@pytest.mark.parametrize(
    "function",
    [
        *(nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.Sigmoid(), nn.Tanh(), nn.ELU()),
        *(nn.LeakyReLU(0.2), nn.PReLU(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.MaxPool2d(2)),
        *(nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, ceil_mode=True)),
    ],
    ids=str,
)
def test_moments_behind_activations_and_pools_against_samples(function):
    """Of independent N(0.3 + 1.5 x) values; Clark's formula for maxima is an approximation."""
    inputs = torch.randn(20_000, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.5 + 0.3
    walk = MomentWalk(capture(function, inputs[:2]).double(), Rules())
    with torch.no_grad():
        found = channel_moments(
            walk.run(Moments(*(torch.full((1, 1, 8, 8), v).double() for v in (0.3, 2.25))))
        )
        sampled = function(inputs).double()
    tolerance = 0.05 if isinstance(function, nn.MaxPool2d) else 0.01
    assert found.mean.item() == pytest.approx(sampled.mean().item(), abs=tolerance)
    assert found.var.sqrt().item() == pytest.approx(sampled.std().item(), rel=0.05, abs=tolerance)


def test_an_operation_without_moments_is_refused():
    class Sorts(nn.Module):
        def forward(self, x):
            return x.sort(1).values.flatten(1)

    network = nn.Sequential(nn.Conv2d(3, 4, 3), Sorts())
    with pytest.raises(MismatchError, match=r"aten\.sort"):
        WeightTapped(teacher_of(network), Rules())
    with pytest.raises(MismatchError, match="no convolution or linear layer"):
        WeightTapped(Teacher("toy", nn.Flatten(), image_spec(), 768, "0" * 64), Rules())


def z_layer(mean, std, target_mean, target_std):
    """A layer of one position per image whose batch has exactly these statistics."""
    mean, std = torch.as_tensor(mean).double(), torch.as_tensor(std).double()
    activations = torch.stack([mean - std, mean + std])[..., None, None]
    return layer_sums(
        activations, torch.as_tensor(target_mean).double(), torch.as_tensor(target_std).double() ** 2
    )


def test_the_distance_against_its_formula():
    m, s, big_m, big_s = ([0.3, -1.0], [0.5, 2.0], [0.1, 1.0], [1.5, 0.7])
    z = (np.array(m) - big_m) / np.sqrt((np.array(s) + 1e-6) ** 2 + (np.array(big_s) + 1e-6) ** 2)
    layer = z_layer(m, s, big_m, big_s)
    assert mean_zscore([layer, layer]).item() == pytest.approx(2 * np.linalg.norm(z), rel=1e-6)
    swapped = z_layer(big_m, big_s, m, s)
    assert mean_zscore([swapped]).item() == pytest.approx(mean_zscore([layer]).item(), rel=1e-6)
    assert spread_zscore([swapped]).item() == pytest.approx(spread_zscore([layer]).item(), rel=1e-6)


def test_the_distance_is_blind_to_the_std_where_the_means_agree():
    """The caveat of the published distance; `spread_zscore` is what sees it."""
    blind = z_layer([0.3, -1.0], [0.5, 2.0], [0.3, -1.0], [1.5, 0.7])
    assert mean_zscore([blind]).item() == pytest.approx(0, abs=1e-5) and spread_zscore([blind]) > 0.1
    wide, narrow = (mean_zscore([z_layer([1.0], [s], [0.0], [1.0])]) for s in (3.0, 0.5))
    assert 0 < wide < narrow


@pytest.mark.parametrize("rules", [Rules(), SummedGaussians()], ids=["moment", "published"])
@pytest.mark.parametrize("network", ["plain", "depthwise", "downsample", "dense", "squeeze-excite"])
def test_a_folded_teacher_gives_the_same_targets(rules, network):
    teacher = make_teacher(NETWORKS[network])
    folded = capture(teacher.network, teacher.example()).double()
    fold_batch_norms(folded)
    if network != "dense":
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    images = torch.randn(2, *teacher.spec.shape)
    torch.testing.assert_close(folded(images.double()).float(), teacher.network(images), rtol=1e-4, atol=1e-4)
    pairs = zip(
        targets(teacher.network, rules, teacher.spec),
        targets(folded.float(), rules, teacher.spec),
        strict=True,
    )
    for (mean, std), (folded_mean, folded_std) in pairs:
        np.testing.assert_allclose(mean, folded_mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(std, folded_std, rtol=1e-3, atol=1e-4)


class FixupBlock(nn.Module):
    """A residual block without BN: scalar biases and a scale (Fixup, Zhang et al., ICLR 2019)."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, 1, 1, bias=False) for _ in range(2))
        self.biases = nn.Parameter(0.1 * torch.ones(4))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        y = torch.relu(self.conv1(x + self.biases[0]) + self.biases[1])
        return torch.relu(x + self.conv2(y + self.biases[2]) * self.scale + self.biases[3])


def networks_without_bn():
    torch.manual_seed(0)
    fixup = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), FixupBlock(8), FixupBlock(8), head(8, 5))
    teacher = make_teacher(NETWORKS["downsample"])
    folded = capture(teacher.network, teacher.example())
    fold_batch_norms(folded)
    return {
        "squeezenet": (models.squeezenet1_1(num_classes=5), image_spec(size=(33, 35))),
        "fixup": (fixup, image_spec()),
        "folded": (folded, image_spec()),
    }


@pytest.mark.parametrize("name", ["gzsq", "gzsq_moment"])
@pytest.mark.parametrize("network", ["squeezenet", "fixup", "folded"])
def test_networks_without_bn_lower_the_loss(name, network):
    built, spec = networks_without_bn()[network]
    method = create(name, teacher_of(built, spec), iterations=15)
    (group,) = Plan(count=4, batch=4, shard_size=4, seed=0).groups
    batch = method.synthesize(group, Silent())
    inversion = method.inversion(4)
    first = torch.randn(4, *spec.shape, generator=group.generator("synthesis"))
    with torch.no_grad():
        before, after = (
            sum(mean_zscore([layer]).item() for layer in inversion.tapped(x)[1])
            for x in (first, batch.standard_NCHW)
        )
    assert after < before and all(np.isfinite(list(batch.losses.values())))
    assert set(batch.losses) == {"features", "input"} | ({"spread"} if name == "gzsq_moment" else set())
