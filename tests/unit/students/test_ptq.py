"""PTQ on the embedded digits teacher."""

import copy

import numpy as np
import pytest
import torch

import zsq
from zsq.core.errors import MismatchError, OptionError, UnknownNameError
from zsq.core.runtime import Runtime
from zsq.quantizers.grids import FakeQuantizer
from zsq.students import STUDENTS, create
from zsq.widths import Bits


def fit(teacher, images, bits, first_last=None, seed=0, **options):
    student = create("ptq", teacher.spec, options, Runtime())
    return student.fit(teacher, images, Bits.parse(bits), first_last=first_last, seed=seed)


@torch.no_grad()
def logits(model, pixels):
    return model.logits(model.spec.pixels_to_standard(pixels))


def quantizers(student):
    return {name: m for name, m in student.network.named_modules() if isinstance(m, FakeQuantizer)}


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse", "kl"])
@pytest.mark.parametrize("weight_observer", ["minmax", "mse"])
def test_w8a8_is_as_good_as_float(digits, images, accuracy, observer, weight_observer):
    student = fit(digits, images, "W8A8", observer=observer, weight_observer=weight_observer)
    assert accuracy(student) >= accuracy(digits) - 0.3


def test_w32a32_is_the_float_network(digits, images):
    student = fit(digits, images, "W32A32")
    assert student.tensors == ()
    torch.testing.assert_close(logits(student, images), logits(digits, images), rtol=1e-4, atol=1e-4)


def test_fewer_bits_err_more(digits, images):
    exact = logits(digits, images)
    errors = [
        (logits(fit(digits, images, bits), images) - exact).square().mean().item()
        for bits in ("W8A8", "W6A6", "W4A4", "W2A2")
    ]
    assert errors == sorted(errors)


@pytest.mark.parametrize("weight_observer", ["minmax", "mse"])
@pytest.mark.parametrize("first_last", [None, 8])
def test_weight_only_does_not_depend_on_the_images(digits, images, weight_observer, first_last):
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    real, foreign = (
        fit(digits, pixels, "W4A32", first_last=first_last, weight_observer=weight_observer)
        for pixels in (images, noise)
    )
    assert torch.equal(logits(real, images), logits(foreign, images))
    assert not [row for row in real.tensors if row.kind == "activation"]


def test_teacher_is_bit_identical_afterwards(digits, images):
    before = copy.deepcopy(digits.network.state_dict())
    fit(digits, images, "W4A4")
    after = digits.network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in digits.network.modules())


def test_weights_lie_on_the_minmax_grid_of_each_channel(digits, images):
    student = fit(digits, images, "W3A32", weight_observer="minmax")
    layer = student.network.get_submodule("block1.conv1")
    weight = layer.weight.detach().double().numpy().reshape(16, -1)
    low, high = np.minimum(weight.min(1), 0), np.maximum(weight.max(1), 0)
    step = (high - low) / 7
    zero = np.rint(-low / step)
    expected = step[:, None] * (
        np.clip(np.rint(weight / step[:, None]) + zero[:, None], 0, 7) - zero[:, None]
    )
    actual = layer.weight_quantizer(layer.weight).detach().numpy().reshape(16, -1)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert all(len(np.unique(row)) <= 8 for row in actual)


def test_relu_inputs_have_zero_point_zero(digits, images):
    student = fit(digits, images, "W4A4")
    inputs = [q for name, q in quantizers(student).items() if "input_quantizer" in name]
    assert inputs and all(q.zero_point == 0 and (q.lo, q.hi) == (0, 15) for q in inputs)


def test_minmax_and_percentile_ranges_are_those_of_the_float_activations(digits, images):
    seen = []
    handle = digits.network.relu.register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    logits(digits, images)
    handle.remove()
    values = seen[0].double().numpy()
    for options, top in (
        ({"observer": "minmax"}, values.max()),
        ({"observer": "percentile", "percentile": 99.0}, np.quantile(values, 0.99)),
    ):
        quantizer = quantizers(fit(digits, images, "W32A4", **options))["block1.conv1.input_quantizer"]
        assert quantizer.step.item() * 15 == pytest.approx(top, rel=2e-3)


def test_table_names_every_tensor(digits, images):
    student = fit(digits, images, "W4A3", first_last=8)
    by_name = {row.name: row for row in student.tensors}
    assert (by_name["conv1.weight"].bits, by_name["linear.weight"].bits, by_name["linear.input"].bits) == (
        8,
        8,
        8,
    )
    assert (by_name["block1.conv1.weight"].bits, by_name["block1.conv1.input"].bits) == (4, 3)
    assert by_name["block1.conv1.weight"].num_scales == 16 and by_name["block1.conv1.weight"].signed
    assert by_name["block1.conv1.input"].num_scales == 1 and not by_name["block1.conv1.input"].signed
    assert "conv1.input" not in by_name, "the image is not quantized"


def test_wrong_images_are_refused_in_one_line(digits, images):
    for pixels, found in (
        (images.expand(-1, 3, -1, -1), r"\(256, 3, 32, 32\) uint8; expected \(N, 1, 32, 32\) uint8"),
        (images.float(), "float32"),
        (images[:0], "no images"),
    ):
        with pytest.raises(MismatchError, match=found):
            fit(digits, pixels, "W4A4")


def test_table_of_students_and_its_errors(digits):
    reconstructing = {"adaround", "brecq", "qdrop", "genie-m"}
    assert {"ptq", "aac-abn", "kd", "gdfq-ft", "lsq-kd", "qfd"} | reconstructing <= set(STUDENTS)
    for name, student in STUDENTS.items():
        assert student.name == name and student.facts.summary and student.facts.paper
    with pytest.raises(UnknownNameError, match="did you mean 'ptq'"):
        create("ptqq", digits.spec, {}, Runtime())
    with pytest.raises(OptionError, match="has no option 'observr'"):
        create("ptq", digits.spec, {"observr": "mse"}, Runtime())
    with pytest.raises(OptionError, match=r"observer: .*, not 'median'"):
        create("ptq", digits.spec, {"observer": "median"}, Runtime())


@pytest.mark.parametrize("weight_observer", ["minmax", "mse"])
def test_symmetric_weights_have_no_zero_point_and_lose_little(
    digits, images, accuracy, weight_observer, tmp_path
):
    options = {"symmetric_weights": True, "weight_observer": weight_observer}
    student = fit(digits, images, "W8A8", **options)
    weights = [quantizer for quantizer in quantizers(student).values() if quantizer.kind == "weight"]
    assert weights and all(not quantizer.zero_point.any() for quantizer in weights)
    assert {quantizer.bounds for quantizer in weights} == {(-127, 127)}
    assert accuracy(student) >= accuracy(digits) - 0.3
    zsq.save_student(student, digits, tmp_path / "student")
    assert torch.equal(logits(zsq.load_student(tmp_path / "student"), images), logits(student, images))
    two = fit(digits, images, "W2A8", **options)
    levels = quantizers(two)["conv1.weight_quantizer"].integers(two.network.conv1.weight)
    assert set(levels.unique().tolist()) <= {-1, 0, 1}
