"""Statistics and BN losses against element-wise float64 numpy, and where they are tapped."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import Downsample, PreActivation, SqueezeExcite, image_spec, make_teacher, without_bn
from user_networks import Pyramid, TokenNorm

from zsq.core.errors import NoBatchNormError
from zsq.engine.classes import class_moments
from zsq.engine.joint import StoredSums
from zsq.engine.statistics import (
    Alignment,
    SetSums,
    TappedTeacher,
    image_distances,
    input_sums,
    layer_sums,
    mean_gap_and_var,
    rows_of_images,
    set_sums,
)

NUM = 4
SHAPES = ((3, 5, 4), (6, 2, 3), (5, 1, 1))  # (C, H, W) of each layer; the last has one position
FORMS = [
    {"scope": scope, "moment": moment, "distance": distance, "unbiased": unbiased, "over_channels": c}
    for scope, moment, distance, unbiased, c in itertools.product(
        ("sample", "batch"), ("std", "var"), ("squared", "norm", "slack"), (False, True), ("sum", "mean")
    )
]
SLACKS = {"mean_slack_L": torch.tensor([0.2, 0.0, 0.1]), "spread_slack_L": torch.tensor([0.0, 0.3, 0.1])}


def ids(form):
    return "-".join(str(value) for value in form.values())


@pytest.fixture
def layers():
    """[(activations, target mean, target variance)] in float64."""
    rng = np.random.default_rng(0)
    return [
        (rng.normal(1.0, 2.0, (NUM, *shape)), rng.normal(size=shape[0]), rng.uniform(0.5, 3.0, shape[0]))
        for shape in SHAPES
    ]


def as_sums(layers):
    return [layer_sums(*(torch.from_numpy(np.asarray(part)) for part in layer)) for layer in layers]


def expected(layers, *, scope, moment, distance, unbiased, over_channels, over_layers="sum", weights=None,
             sample_weights=None):  # fmt: skip
    """The same loss from numpy's own means and variances of every element."""
    total = []
    for index, (activations, mean, var) in enumerate(layers):
        own = scope == "sample" and activations[0, 0].size > 1
        axes = (2, 3) if own else (0, 2, 3)
        found_mean, found_var = activations.mean(axes), activations.var(axes, ddof=int(unbiased))
        gaps = [found_mean - mean]
        if moment == "var":
            gaps.append(found_var - var)
        else:
            gaps.append(np.sqrt(found_var + 1e-6) - np.sqrt(var + 1e-6))
        loss = 0.0
        for gap, slack in zip(gaps, SLACKS.values(), strict=True):
            if distance == "norm":
                loss = loss + np.linalg.norm(gap, axis=-1)
                continue
            if distance == "slack":
                gap = np.maximum(np.abs(gap) - slack[index].item(), 0)
            loss = loss + (np.square(gap).sum(-1) if over_channels == "sum" else np.square(gap).mean(-1))
        if own and sample_weights is not None:
            loss = loss * sample_weights[:, index]
        total.append(np.mean(loss) * (1.0 if weights is None else weights[index]))
    return np.sum(total) if over_layers == "sum" else np.mean(total)


@pytest.mark.parametrize("over_layers", ["sum", "mean"])
@pytest.mark.parametrize("form", FORMS, ids=ids)
def test_every_form_against_numpy(layers, form, over_layers):
    weights = np.array([10.0, 1.0, 0.5])
    sample_weights = 1 + np.eye(NUM, len(layers))
    plain = Alignment(**form, over_layers=over_layers, **SLACKS)
    weighted = Alignment(
        **form,
        over_layers=over_layers,
        layer_weights_L=torch.from_numpy(weights),
        sample_weights_NL=torch.from_numpy(sample_weights),
        **SLACKS,
    )
    sums = as_sums(layers)
    np.testing.assert_allclose(plain(sums), expected(layers, **form, over_layers=over_layers), rtol=1e-9)
    wanted = expected(layers, **form, over_layers=over_layers, weights=weights, sample_weights=sample_weights)
    np.testing.assert_allclose(weighted(sums), wanted, rtol=1e-9)


@pytest.mark.parametrize("scope", ["sample", "batch", "set"])
@pytest.mark.parametrize("moment", ["std", "var"])
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("distance", ["squared", "norm", "slack"])
def test_no_loss_where_the_targets_are_the_images_own_statistics(layers, scope, moment, unbiased, distance):
    own = []
    for activations, *_ in layers:
        if scope == "sample":
            activations = np.repeat(activations[:1], NUM, axis=0)
        axes = (2, 3) if scope == "sample" and activations[0, 0].size > 1 else (0, 2, 3)
        mean, var = activations.mean(axes), activations.var(axes, ddof=int(unbiased))
        own.append((activations, *(m[0] if m.ndim == 2 else m for m in (mean, var))))
    zero = torch.zeros(len(layers), dtype=torch.float64)
    slacks = {"mean_slack_L": zero, "spread_slack_L": zero}
    loss = Alignment(scope, moment=moment, unbiased=unbiased, distance=distance, **slacks)(as_sums(own))
    assert 0 <= loss < 1e-5


@pytest.mark.parametrize("form", FORMS, ids=ids)
def test_gradients_against_finite_differences(layers, form):
    targets = [tuple(torch.from_numpy(part) for part in layer[1:]) for layer in layers[:2]]
    alignment = Alignment(**form, sample_weights_NL=1 + torch.eye(2, 2, dtype=torch.float64), **SLACKS)

    def loss(*activations):
        pairs = zip(activations, targets, strict=True)
        return alignment([layer_sums(a, mean, var) for a, (mean, var) in pairs])

    inputs = tuple(torch.from_numpy(layer[0][:2]).requires_grad_() for layer in layers[:2])
    assert torch.autograd.gradcheck(loss, inputs)


def test_whole_set_statistics_from_the_rest_and_the_current_batch(layers):
    form = {"moment": "std", "distance": "squared", "unbiased": True, "over_channels": "mean"}
    rng = np.random.default_rng(1)
    others, both = [], []
    for activations, mean, var in layers:
        rest = rng.normal(size=(7, *activations.shape[1:]))
        sums = layer_sums(*(torch.from_numpy(part) for part in (rest, mean, var)))
        others.append(SetSums(sums.s1_NC.sum(0), sums.s2_NC.sum(0), 7))
        both.append((np.concatenate([activations, rest]), mean, var))
    found = Alignment("set", **form)(as_sums(layers), others)
    np.testing.assert_allclose(found, expected(both, scope="batch", **form), rtol=1e-9)
    alone = Alignment("set", **form)(as_sums(layers))
    np.testing.assert_allclose(alone, expected(layers, scope="batch", **form), rtol=1e-9)


def test_whole_set_from_chunks_is_that_of_the_concatenated_set(tiny_teacher):
    tapped = TappedTeacher(tiny_teacher)
    images = torch.randn(11, *tiny_teacher.spec.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, whole = tapped(images)
    for chunked, direct in zip(set_sums(tapped, images.split(4)), whole, strict=True):
        found, wanted = mean_gap_and_var(chunked, "sample"), mean_gap_and_var(direct, "batch")
        torch.testing.assert_close(found[0][0], wanted[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[1][0], wanted[1], rtol=1e-5, atol=1e-5)
        assert chunked.num_positions == 11 * direct.num_positions


@pytest.mark.parametrize("scope", ["sample", "batch"])
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3, 4, 4), (2, 3, 1, 1), (1, 3)])
def test_single_images_and_single_positions_are_finite(scope, shape):
    activations = torch.zeros(shape, requires_grad=True)  # no variance either
    for distance, moment in itertools.product(("squared", "norm", "slack"), ("std", "var")):
        alignment = Alignment(scope, unbiased=True, distance=distance, moment=moment, **SLACKS)
        loss = alignment([layer_sums(activations, torch.ones(3), torch.ones(3))])
        (gradient,) = torch.autograd.grad(loss, activations)
        assert loss.isfinite() and gradient.isfinite().all()


def test_no_cancellation_far_from_zero():
    rng = np.random.default_rng(0)
    values = rng.normal(1000.0, 0.5, (NUM, 3, 8, 8)).astype(np.float32)
    wanted = values.astype(np.float64).var((0, 2, 3))
    sums = layer_sums(torch.from_numpy(values), torch.full((3,), 1000.0), torch.ones(3))
    assert sums.s2_NC.dtype == torch.float32
    np.testing.assert_allclose(mean_gap_and_var(sums, "batch")[1], wanted, rtol=1e-4)


def test_half_precision_activations_are_summed_in_float32():
    activations = torch.full((1, 1, 64, 64), 1.01, dtype=torch.bfloat16)
    sums = layer_sums(activations, torch.zeros(1), torch.ones(1))
    assert sums.s1_NC.dtype == torch.float32
    assert sums.s1_NC.item() == pytest.approx(4096 * activations[0, 0, 0, 0].item())


def test_input_statistics_aim_at_mean_0_and_variance_1(layers):
    images = layers[0][0]
    alignment = Alignment("sample", unbiased=True, over_channels="sum")
    form = {"moment": "std", "distance": "squared", "unbiased": True, "over_channels": "sum"}
    wanted = expected([(images, np.zeros(3), np.ones(3))], scope="sample", **form)
    np.testing.assert_allclose(alignment([input_sums(torch.from_numpy(images))]), wanted, rtol=1e-9)


def test_image_distances_against_numpy(layers):
    wanted = np.zeros(NUM)
    for activations, mean, var in layers:
        wanted += np.square(activations.mean((2, 3)) - mean).mean(1) / len(layers)
        if activations[0, 0].size > 1:
            gap = np.sqrt(activations.var((2, 3)) + 1e-6) - np.sqrt(var + 1e-6)
            wanted += np.square(gap).mean(1) / len(layers)
    np.testing.assert_allclose(image_distances(as_sums(layers)), wanted, rtol=1e-9)


def test_an_images_distance_does_not_depend_on_its_batch():
    teacher = make_teacher(SqueezeExcite)
    tapped = TappedTeacher(teacher)
    images = torch.randn(5, *teacher.spec.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = image_distances(tapped(images)[1])
        alone = torch.cat([image_distances(tapped(image[None])[1]) for image in images])
    torch.testing.assert_close(together, alone)


def pre_activation_inputs(network, x):
    first = network.conv1(x)
    return {"bn1": first, "bn2": network.conv2(F.relu(network.bn1(first)))}


def downsample_inputs(network, x):
    first = network.branch[0][0](x)
    second = network.branch[1](F.relu(network.branch[0][1](first)))
    return {"branch.0.1": first, "branch.2": second, "shortcut.1": network.shortcut[0](x)}


@pytest.mark.parametrize(
    ("build", "bn_inputs"), [(PreActivation, pre_activation_inputs), (Downsample, downsample_inputs)]
)
def test_taps_are_at_each_executed_bn_input(build, bn_inputs):
    teacher = make_teacher(build, dtype=torch.float64)
    images = torch.randn(3, *teacher.spec.shape, dtype=torch.float64)
    tapped = TappedTeacher(teacher)
    logits, layers = tapped(images)
    wanted = bn_inputs(teacher.network, images)
    assert tapped.names == list(wanted)
    for sums, (name, activations) in zip(layers, wanted.items(), strict=True):
        target = teacher.network.get_submodule(name)
        assert torch.equal(sums.mean_C, target.running_mean) and torch.equal(sums.var_C, target.running_var)
        mean, var = mean_gap_and_var(sums, "sample")
        torch.testing.assert_close(mean + target.running_mean, activations.mean((2, 3)))
        torch.testing.assert_close(var, activations.var((2, 3), correction=0))
    torch.testing.assert_close(logits, teacher.logits(images))


def test_the_teacher_itself_is_never_touched(tiny_teacher):
    before = {name: value.clone() for name, value in tiny_teacher.network.state_dict().items()}
    images = torch.randn(2, *tiny_teacher.spec.shape, requires_grad=True)
    logits, layers = TappedTeacher(tiny_teacher)(images)
    (logits.sum() + Alignment()(layers)).backward()
    assert all(torch.equal(before[name], value) for name, value in tiny_teacher.network.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in tiny_teacher.network.parameters())
    assert not any(module._forward_pre_hooks for module in tiny_teacher.network.modules())
    assert images.grad.abs().sum() > 0


def test_the_whole_way_from_pixels_in_finite_differences(tiny_teacher64):
    spec = image_spec(size=(4, 4))
    tapped = TappedTeacher(make_teacher(spec=spec, dtype=torch.float64))
    images = torch.randn(2, *spec.shape, dtype=torch.float64, requires_grad=True)
    alignment = Alignment("batch", distance="norm", moment="var")
    assert torch.autograd.gradcheck(lambda x: alignment(tapped(x)[1]), images)


def test_statistics_of_resized_images_are_those_the_network_sees():
    spec = image_spec(size=(8, 8), input_size=(16, 16), mean=(0.4, 0.5, 0.6))
    teacher = make_teacher(spec=spec, dtype=torch.float64)
    images = torch.randn(2, *spec.shape, dtype=torch.float64)
    large = F.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False)
    wanted = teacher.network[0][0](large).mean((2, 3))
    sums = TappedTeacher(teacher)(images)[1][0]
    torch.testing.assert_close(mean_gap_and_var(sums, "sample")[0] + sums.mean_C, wanted)


def test_networks_without_stored_statistics_are_refused():
    def batch_statistics(channels, outputs):
        conv, norm = nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)
        return nn.Sequential(conv, norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, outputs))

    for build in (without_bn, batch_statistics):
        with pytest.raises(NoBatchNormError, match=r"teacher 'toy' has no BatchNorm .* which zeroq matches"):
            TappedTeacher(make_teacher(build), "zeroq")


def test_tokens_give_statistics_of_each_image():
    teacher = make_teacher(TokenNorm, dtype=torch.float64)
    images = torch.randn(3, *teacher.spec.shape, dtype=torch.float64)
    _, layers = TappedTeacher(teacher)(images)
    network = teacher.network
    tokens = network.mix(network.stem(teacher.spec.standard_to_norm(images)).flatten(2).transpose(1, 2))
    mean, var = mean_gap_and_var(layers[1], "sample")
    torch.testing.assert_close(mean + network.norm.running_mean, tokens.mean(1))
    torch.testing.assert_close(var, tokens.var(1, correction=0))
    alone = [image_distances(TappedTeacher(teacher)(image[None])[1]) for image in images]
    torch.testing.assert_close(image_distances(layers), torch.cat(alone))


def test_rows_that_do_not_divide_by_the_images_give_the_batch_s_statistics():
    values, target = torch.randn(7, 4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    sums = rows_of_images(layer_sums(values, target, target + 1), 3)
    assert sums.s1_NC.shape == (3, 4)
    for scope in ("sample", "batch"):
        mean, var = mean_gap_and_var(sums, scope)
        torch.testing.assert_close(mean, values.mean(0).expand_as(mean))
        torch.testing.assert_close(var, values.var(0, correction=0).expand_as(var))
    empty = rows_of_images(layer_sums(values[:0], target, target + 1), 3)
    assert Alignment("batch")([empty]).item() == 0 and image_distances([empty]).eq(0).all()


@pytest.mark.parametrize("scope", ["sample", "batch", "set"])
def test_calls_of_one_layer_count_alike_whatever_their_size(scope):
    teacher = make_teacher(lambda channels, outputs: Pyramid(channels), dtype=torch.float64, task="detect")
    images = torch.randn(4, *teacher.spec.shape, dtype=torch.float64)
    tapped = TappedTeacher(teacher)
    outputs, layers = tapped(images)
    assert tapped.names == ["stem.1", "norm"] and len(layers) == 2 and len(outputs) == 3
    levels = teacher.network.levels(teacher.spec.standard_to_norm(images))
    axes = (2, 3) if scope == "sample" else (0, 2, 3)
    mean, var = mean_gap_and_var(layers[1], scope)
    wanted_mean = torch.stack([level.mean(axes) for level in levels]).mean(0)
    wanted_var = torch.stack([level.var(axes, correction=0) for level in levels]).mean(0)
    torch.testing.assert_close(mean + teacher.network.norm.running_mean, wanted_mean)
    torch.testing.assert_close(var, wanted_var)
    pooled = torch.cat([level.flatten(2) for level in levels], 2).var((0, 2), correction=0)
    assert scope == "sample" or not torch.allclose(var, pooled)


def test_calls_are_kept_apart_in_whole_set_and_class_statistics():
    teacher = make_teacher(lambda channels, outputs: Pyramid(channels), dtype=torch.float64, task="detect")
    images = torch.randn(6, *teacher.spec.shape, dtype=torch.float64)
    tapped = TappedTeacher(teacher)
    whole = mean_gap_and_var(tapped(images)[1][1], "batch")
    halves = set_sums(tapped, images.split(4))[1]
    stored = StoredSums((4, 2))
    for index, part in enumerate(images.split((4, 2))):
        stored.store(index, tapped(part)[1])
    joint = mean_gap_and_var(tapped(images[:4])[1][1], "set", others=stored.others(0)[1])
    one_class = class_moments(tapped(images)[1][1], torch.zeros(6, dtype=torch.int64), 2, images.new_ones(6))
    for found in (mean_gap_and_var(halves, "set"), joint):
        for got, want in zip(found, whole, strict=True):
            torch.testing.assert_close(got, want)
    torch.testing.assert_close(one_class.var_KC[0], whole[1])
    torch.testing.assert_close(one_class.mean_KC[0] - teacher.network.norm.running_mean, whole[0])
