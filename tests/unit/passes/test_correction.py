"""Bias correction and BN statistics against numpy, closed forms and the float network."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from toys import conv_bn, head, make_teacher

from zsq.fitting.calibration import minmax_weight
from zsq.graph import capture
from zsq.graph.fold import Gaussian, fold_batch_norms
from zsq.passes.correction import adapt_batch_norms, correct_bias, correct_bias_analytically, walk
from zsq.passes.expectations import clipped, expected_inputs
from zsq.placement.sites import place
from zsq.widths import Bits

EXAMPLE = torch.zeros(2, 3, 16, 16)
BATCHES = list(torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0)).split(5))


def quantized(network, bits=2, fold=False):
    placement = place(network, EXAMPLE, Bits(bits, 32), fold=fold)
    for site in placement.of_kind("weight"):
        placement.put(site, minmax_weight(placement.weight(site), site.bits))
    return placement.network


@torch.no_grad()
def channel_means(network, names):
    seen = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.setdefault(name, []).append(output)
        )
        for name in names
    ]
    for batch in BATCHES:
        network(batch)
    for handle in handles:
        handle.remove()
    return {
        name: torch.cat(parts).double().transpose(0, 1).flatten(1).mean(1).numpy()
        for name, parts in seen.items()
    }


LAYERS = ("0.0", "1.0", "2.2")


@pytest.mark.parametrize("fold", [False, True])
def test_output_means_are_the_float_ones_after_correction(tiny_teacher, fold):
    reference, student = capture(tiny_teacher.network, EXAMPLE), quantized(tiny_teacher.network, fold=fold)
    if fold:
        fold_batch_norms(reference)
    wanted = channel_means(reference, LAYERS)
    before = channel_means(student, LAYERS)
    correct_bias(student, reference, BATCHES)
    after = channel_means(student, LAYERS)
    for name in LAYERS:
        np.testing.assert_allclose(after[name], wanted[name], atol=1e-6)
        assert np.abs(before[name] - wanted[name]).max() > 1e-3


def test_the_correction_of_a_float_network_is_none(tiny_teacher):
    reference, same = capture(tiny_teacher.network, EXAMPLE), capture(tiny_teacher.network, EXAMPLE)
    correct_bias(same, reference, BATCHES)
    adapt_batch_norms(same, reference, BATCHES)
    for batch in BATCHES:
        torch.testing.assert_close(same(batch), tiny_teacher.network(batch), rtol=1e-5, atol=1e-6)


def test_walking_gives_what_running_gives(tiny_teacher):
    network, seen = capture(tiny_teacher.network, EXAMPLE), {}
    walk(network, BATCHES, lambda node, module, inputs: seen.update({node.target: (module, inputs)}))
    module, inputs = seen["2.2"]
    for index, batch in enumerate(BATCHES):
        torch.testing.assert_close(module(inputs[index]), tiny_teacher.network(batch))


@pytest.mark.parametrize("cap", [np.inf, 6.0, 1.5])
def test_moments_of_a_clipped_gaussian(cap):
    mean, std = np.array([-3.0, -0.5, 0.0, 1.0, 5.0]), np.array([1.0, 2.0, 0.5, 1.0, 3.0])
    samples = np.clip(
        mean[:, None] + std[:, None] * np.random.default_rng(0).normal(size=(5, 400_000)), 0, cap
    )
    found = clipped(Gaussian(torch.tensor(mean), torch.tensor(std)), cap)
    np.testing.assert_allclose(found.mean_C.numpy(), samples.mean(1), atol=0.01)
    np.testing.assert_allclose(found.std_C.numpy(), samples.std(1), atol=0.01)


def test_analytic_correction_is_the_closed_form(tiny_teacher):
    reference = capture(tiny_teacher.network, EXAMPLE)
    outputs = fold_batch_norms(reference)
    student = quantized(tiny_teacher.network, fold=True)
    start = student.get_submodule("1.0").bias.detach().double().numpy()
    inputs = expected_inputs(reference, outputs)
    assert set(inputs) == {"1.0", "2.2"}, "the image has no batch norm before it"
    correct_bias_analytically(student, reference, inputs)
    norm = tiny_teacher.network[0][1]
    beta, gamma = (x.detach().double().numpy() for x in (norm.bias, norm.weight.abs()))
    from scipy import stats

    mean = gamma * stats.norm.pdf(-beta / gamma) + beta * (1 - stats.norm.cdf(-beta / gamma))
    layer = student.get_submodule("1.0")
    error = (layer.weight_quantizer(layer.weight) - reference.get_submodule("1.0").weight).detach().double()
    expected = start - np.einsum("oikl,i->o", error.numpy(), mean)
    np.testing.assert_allclose(layer.bias.detach().numpy(), expected, atol=1e-5)


def test_analytic_correction_of_groups_and_sums():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = conv_bn(3, 4), conv_bn(3, 4)
            self.grouped = nn.Conv2d(4, 6, 1, groups=2)
            self.head = head(6, 5)

        def forward(self, x):
            return self.head(self.grouped(self.one(x) + self.two(x)))

    teacher = make_teacher(lambda channels, outputs: Sum())
    reference = capture(teacher.network, EXAMPLE)
    inputs = expected_inputs(reference, fold_batch_norms(reference))
    assert set(inputs) == {"grouped"}, "nothing is known behind a layer without batch norm"
    parts = [teacher.network.get_submodule(name)[1] for name in ("one", "two")]
    rectified = [clipped(Gaussian(part.bias.detach(), part.weight.detach().abs()), np.inf) for part in parts]
    mean = (rectified[0].mean_C + rectified[1].mean_C).double().numpy()
    student = quantized(teacher.network, fold=True)
    start = student.get_submodule("grouped").bias.detach().clone().double().numpy()
    correct_bias_analytically(student, reference, inputs)
    layer = student.get_submodule("grouped")
    float_weight = teacher.network.grouped.weight
    error = (layer.weight_quantizer(layer.weight) - float_weight).detach().double().numpy()
    for out in range(6):
        group = out // 3
        expected = start[out] - error[out, :, 0, 0] @ mean[2 * group : 2 * group + 2]
        assert layer.bias[out].item() == pytest.approx(expected, abs=1e-5)


def disturbed(network):
    """Each convolution's output times a positive scale plus a shift, per channel."""
    copied = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(3)
    for module in copied.modules():
        if isinstance(module, nn.Conv2d):
            channels = len(module.weight)
            scale = torch.rand(channels, generator=generator) + 0.5
            module.weight.data.mul_(scale.view(-1, 1, 1, 1))
            module.bias = nn.Parameter(torch.randn(channels, generator=generator))
    return capture(copied, EXAMPLE)


def test_relative_statistics_undo_a_scale_and_shift_and_absolute_ones_do_not(tiny_teacher):
    reference = capture(tiny_teacher.network, EXAMPLE)
    relative, absolute = disturbed(tiny_teacher.network), disturbed(tiny_teacher.network)
    assert adapt_batch_norms(relative, reference, BATCHES, "relative") == 2
    adapt_batch_norms(absolute, reference, BATCHES, "absolute")
    with torch.no_grad():
        exact = reference(BATCHES[0])
        torch.testing.assert_close(relative(BATCHES[0]), exact, rtol=1e-4, atol=1e-5)
        assert (absolute(BATCHES[0]) - exact).abs().max() > 0.1


def test_absolute_statistics_are_those_of_the_images(tiny_teacher):
    student = quantized(tiny_teacher.network)
    adapt_batch_norms(student, capture(tiny_teacher.network, EXAMPLE), BATCHES, "absolute")
    with torch.no_grad():
        z = student.get_submodule("0.0")(torch.cat(BATCHES)).double().transpose(0, 1).flatten(1).numpy()
    norm = student.get_submodule("0.1")
    np.testing.assert_allclose(norm.running_mean.numpy(), z.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.running_var.numpy(), z.var(1), rtol=1e-5)


def test_statistics_do_not_depend_on_the_batches(tiny_teacher):
    students = [quantized(tiny_teacher.network) for _ in range(2)]
    for student, batches in zip(students, (BATCHES, [torch.cat(BATCHES)]), strict=True):
        adapt_batch_norms(student, capture(tiny_teacher.network, EXAMPLE), batches)
    for name, tensor in students[0].state_dict().items():
        torch.testing.assert_close(tensor, students[1].state_dict()[name])
