"""CFWS: the error of the two parts, the merge of a RepVGG network, and its accuracy."""

import numpy as np
import pytest
import torch
from tiny_students import fit, outputs
from torch import nn

import zsq
from zsq.contract import Teacher
from zsq.core.errors import MismatchError, OptionError
from zsq.core.runtime import Runtime
from zsq.quantizers.grids import FakeQuantizer
from zsq.saved.cost import student_cost
from zsq.students import create


def kernel_teacher(weight, spec):
    conv = nn.Conv2d(1, len(weight), 3, padding=1)
    inner = nn.Conv2d(weight.shape[1], len(weight), 3, padding=1)
    inner.weight.data = torch.as_tensor(weight, dtype=torch.float32)
    network = nn.Sequential(conv, nn.ReLU(), inner, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Teacher("kernel", network, spec, len(weight), "0" * 64)


def kernel(centre, spread, channels=32, seed=0):
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, spread, (channels, channels, 3, 3))
    weight[:, :, 1, 1] += centre
    return weight.astype(np.float32)


@torch.no_grad()
def parts(fitted):
    """Coarse part, fine part and fine steps of the inner layer, in float64."""
    coarse, fine = (fitted.network.get_submodule(name) for name in ("2_coarse", "2"))
    values = [layer.weight_quantizer(layer.weight).double().numpy() for layer in (coarse, fine)]
    return *values, fine.weight_quantizer.step.double().numpy()


def sum_of(coarse, fine):
    total = fine.copy()
    total[:, :, 1, 1] += coarse[:, :, 0, 0]
    return total


@pytest.mark.parametrize("bits", ["W8A8", "W4A8", "W2A32"])
@pytest.mark.parametrize("coarse_steps", ["tensor", "channel"])
def test_error_is_at_most_half_a_fine_step(digits, images, bits, coarse_steps):
    weight = kernel(0.5, 0.05)
    teacher = kernel_teacher(weight, digits.spec)
    coarse, fine, step = parts(
        fit("cfws", teacher, images[:8], bits, first_last=None, coarse_steps=coarse_steps)
    )
    assert (abs(weight - sum_of(coarse, fine)) <= step / 2 * (1 + 1e-5) + 1e-7).all()
    assert np.unique(coarse / coarse[coarse != 0].min()).size <= 2 ** int(bits[1]) * 32


def test_steps_are_the_published_ones(digits, images):
    weight = kernel(0.5, 0.05)
    coarse, fine, step = parts(fit("cfws", kernel_teacher(weight, digits.spec), images[:8], "W8A8", None))
    centre = weight[:, :, 1, 1].astype(np.float64)
    coarse_step = abs(centre).max() / 127
    np.testing.assert_allclose(
        coarse[:, :, 0, 0], coarse_step * np.floor(centre / coarse_step + 0.5), atol=1e-6
    )
    rest = weight.astype(np.float64)
    rest[:, :, 1, 1] -= coarse[:, :, 0, 0]
    np.testing.assert_allclose(step[:, 0, 0, 0], abs(rest).reshape(32, -1).max(1) / 127, rtol=1e-5)
    np.testing.assert_allclose(fine, step * np.floor(rest / step + 0.5), atol=1e-5)


@pytest.mark.parametrize("centre, spread, times", [(2.0, 0.05, 150), (0.5, 0.05, 10)])
def test_error_against_minmax_per_tensor(digits, images, centre, spread, times):
    weight = kernel(centre, spread, channels=64)
    coarse, fine, _ = parts(fit("cfws", kernel_teacher(weight, digits.spec), images[:8], "W8A8", None))
    step = abs(weight).max() / 127
    minmax = ((np.rint(weight / step) * step - weight) ** 2).mean()
    assert minmax / ((sum_of(coarse, fine) - weight) ** 2).mean() >= times


def test_a_kernel_that_is_all_centre_is_nearly_exact(digits, images):
    weight = kernel(1.0, 0.0) * np.random.default_rng(1).uniform(-1, 1, (32, 32, 1, 1)).astype(np.float32)
    coarse, fine, _ = parts(fit("cfws", kernel_teacher(weight, digits.spec), images[:8], "W8A8", None))
    coarse_step = abs(weight).max() / 127
    assert abs(sum_of(coarse, fine) - weight).max() <= coarse_step / (4 * 127) * 1.001


def test_float_weights_are_not_split_and_activations_are_symmetric(digits, images):
    fitted = fit("cfws", digits, images[:16], "W32A8")
    assert not [name for name, _ in fitted.network.named_modules() if "coarse" in name]
    quantizers = [m for m in fitted.network.modules() if isinstance(m, FakeQuantizer)]
    assert quantizers
    assert all((q.lo, q.hi, q.zero_point.item()) == (-128, 127, 0) for q in quantizers)


def test_minmax_steps_reach_the_largest_activation(digits, images):
    fitted = fit("cfws", digits, images[:16], "W32A8", None, observer="minmax")
    seen = []
    handle = digits.network.relu.register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    outputs(digits, images[:16])
    handle.remove()
    step = fitted.network.get_submodule("block1.conv1.input_quantizer").step.item()
    assert step * 127 == pytest.approx(seen[0].max().item(), rel=1e-5)


def test_kl_clips_an_outlier_that_minmax_keeps(digits, images):
    with torch.no_grad():
        kl, minmax = (
            fit("cfws", digits, images[:64], "W32A4", None, observer=name).network
            for name in ("kl", "minmax")
        )
    name = "block1.conv1.input_quantizer"
    assert kl.get_submodule(name).step < minmax.get_submodule(name).step


def test_a_network_without_3x3_kernels_is_refused(digits, images):
    network = nn.Sequential(nn.Conv2d(1, 4, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(MismatchError, match=r"has no 3x3 convolution; expected 3x3 kernels.*use student ptq"):
        fit("cfws", Teacher("wide", network, digits.spec, 4, "0" * 64), images[:4])


def test_passes_that_compare_layer_by_layer_are_refused(digits):
    with pytest.raises(OptionError, match="student cfws takes no pass correct-bias: its layers are parts"):
        create("cfws", digits.spec, {}, Runtime(), passes=["correct-bias"])


def test_the_coarse_part_costs_a_ninth(digits, images):
    layers = {layer.name: layer for layer in student_cost(fit("cfws", digits, images[:8])).layers}
    assert layers["block1.conv1_coarse"].macs * 9 == layers["block1.conv1"].macs
    assert layers["block1.conv1_coarse"].bit_operations * 9 == layers["block1.conv1"].bit_operations
    assert "block2.shortcut.0_coarse" not in layers


@pytest.mark.data
def test_repvgg_at_eight_bits_is_within_half_a_point(data_folder):
    folder = data_folder / "cifar10_jpeg"
    teacher = zsq.load_teacher(f"file:{folder / 'repvgg.toml'}")
    test = zsq.load_images(str(folder / "test5000.zip"), teacher.spec, 500)
    fitted = fit("cfws", teacher, test.pixels[:32], "W8A8", first_last=None)
    assert not [name for name, _ in fitted.network.named_parameters() if "1x1" in name or "identity" in name]
    accuracies = [
        100 * (outputs(model, test.pixels).argmax(1) == test.labels).float().mean().item()
        for model in (teacher, fitted)
    ]
    assert abs(accuracies[0] - accuracies[1]) <= 0.5
    assert accuracies[0] > 75


@pytest.mark.data
def test_the_merged_repvgg_is_the_network(data_folder):
    folder = data_folder / "cifar10_jpeg"
    teacher = zsq.load_teacher(f"file:{folder / 'repvgg.toml'}")
    test = zsq.load_images(str(folder / "test5000.zip"), teacher.spec, 100)
    merged = fit("cfws", teacher, test.pixels[:8], "W32A32")
    convs = [m for m in merged.network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 7 and all(conv.kernel_size == (3, 3) for conv in convs)
    torch.testing.assert_close(
        outputs(merged, test.pixels), outputs(teacher, test.pixels), atol=1e-4, rtol=1e-4
    )
