"""Several widths by one call: one student fits all of them, each is written in its own folder."""

import pytest
import torch

import zsq
from zsq.core.errors import OptionError
from zsq.core.runtime import Runtime
from zsq.measure.protocol import StudentSpec, resolve_students
from zsq.widths import Bits

SOURCE = "embedded:digits:train"


def test_each_width_is_as_if_it_were_alone(tmp_path, digits, images):
    several = zsq.quantize("embedded:digits", SOURCE, "ptq", ["W8A8", "w4a4"], count=32, out=tmp_path / "all")
    assert [str(each.fitted.bits) for each in (several, *several.others)] == ["W8A8", "W4A4"]
    alone = zsq.quantize("embedded:digits", SOURCE, "ptq", "W4A4", count=32)
    loaded = zsq.load_student(tmp_path / "all" / "W4A4")
    standard = digits.spec.pixels_to_standard(images[:8])
    assert torch.equal(loaded.logits(standard), alone.fitted.logits(standard))
    assert (tmp_path / "all" / "W8A8" / "student.json").is_file() and not alone.others


@pytest.mark.parametrize(
    ("bits", "extra", "message"),
    [
        (["W4A4", "w4a4"], {}, "--bits W4A4 twice"),
        (["W4A4", "W1A4"], {}, "W1A4 with student ptq"),
        (["W8A8", "W4A8"], {"onnx": "x.onnx"}, "--onnx with 2 --bits"),
        ([], {}, "no bits"),
    ],
)
def test_widths_that_cannot_be(bits, extra, message):
    with pytest.raises(OptionError, match=message):
        zsq.quantize("embedded:digits", SOURCE, "ptq", bits, count=8, **extra)


def test_a_comparison_has_one_student_for_all_widths(digits):
    specs = [StudentSpec("ptq", Bits(8, 8)), StudentSpec("ptq", Bits(4, 4))]
    specs += [StudentSpec("ptq", Bits(4, 4), {"observer": "kl"}, passes=("fold",))]
    first, same, other = (each.student for each in resolve_students(specs, digits.spec, Runtime()))
    assert first is same and first is not other
