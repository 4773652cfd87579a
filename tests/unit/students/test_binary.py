"""One bit: the start is near the teacher, sharpness rises, and files hold one bit."""

import pytest
import torch

import zsq
from zsq.core.errors import MismatchError
from zsq.core.runtime import Runtime
from zsq.quantizers.signs import BinaryWeight
from zsq.saved.cost import student_cost
from zsq.students import create
from zsq.students.binary import BinaryOptions, _sharpen
from zsq.widths import Bits


def fit(digits, images, bits, **options):
    student = create("binary", digits.spec, {"iterations": 2, "batch": 32, **options}, Runtime())
    return student.fit(digits, images, Bits.parse(bits))


def test_one_bit_is_learned_saved_and_counted(digits, images, accuracy, tmp_path):
    fitted = fit(digits, images, "W1A4", iterations=20)
    assert accuracy(fitted) > 60
    zsq.save_student(fitted, digits, tmp_path)
    loaded = zsq.load_student(tmp_path)
    standard = digits.spec.pixels_to_standard(images)
    assert torch.equal(loaded.logits(standard), fitted.logits(standard))
    widths = {layer.name: layer.weight_bits for layer in student_cost(loaded).layers}
    assert widths.pop("conv1") == widths.pop("linear") == 8 and set(widths.values()) == {1}


def test_the_start_is_far_above_chance(digits, images, accuracy):
    """A scale keeps it there with the teacher's batch norm, or norms that train find it."""
    assert accuracy(fit(digits, images, "W1A32", iterations=0)) > 30


@pytest.mark.parametrize("rule", ["scale", "ir"])
def test_every_input_of_one_bit_has_two_values(digits, images, rule):
    fitted = fit(digits, images, "W1A1", rule=rule)
    table = {row.name: row for row in fitted.tensors}
    assert table["block1.conv2.input"].bits == 1 and not table["block1.conv2.input"].signed


def test_inputs_of_two_signs_take_two_bits(images):
    teacher = zsq.load_teacher("embedded:digits")
    for name in ("relu", "block1.relu2"):
        teacher.network.set_submodule(name, torch.nn.Identity())
    with pytest.raises(MismatchError, match=r"'block1\.conv1\.input' has values below zero"):
        fit(teacher, images, "W1A1")
    assert fit(teacher, images, "W1A2").tensors


def test_sharpness_rises_by_one_factor():
    signs, found = [BinaryWeight(torch.ones(1, 2), "scale")], []
    for step in (1, 51, 100):
        _sharpen(signs, BinaryOptions(), 100, step)
        found.append(signs[0].sharpness.item())
    assert found[0] == pytest.approx(0.1) and found[1] == pytest.approx(1.0) and 9 < found[2] < 10
