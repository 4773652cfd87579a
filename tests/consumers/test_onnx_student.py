"""Students as ONNX QDQ models: refused where widths do not fit, else the same grids and the same accuracy."""

from collections import Counter
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from commands import call
from tiny_students import fit, outputs

import zsq
from zsq.contract import Teacher
from zsq.core.errors import ExportError, OptionError
from zsq.quantizers.grids import FakeQuantizer
from zsq.saved.onnx_qdq import OnnxStudent, check_exportable
from zsq.students import STUDENTS
from zsq.teacher.digits import load_digits_images
from zsq.widths import Bits

# A scale before the integers and another one after them, and powers, have no QuantizeLinear.
WITHOUT_FORM = "qfd"
EXPORTED = [name for name, student in STUDENTS.items() if student.form == "affine"]
INSTALLED = all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
pytestmark = pytest.mark.filterwarnings("ignore")
needs_onnx = [
    pytest.mark.consumers,
    pytest.mark.skipif(not INSTALLED, reason="onnx, onnxscript and onnxruntime are not installed"),
]


def onnx(function):
    for mark in needs_onnx:
        function = mark(function)
    return function


@pytest.fixture(scope="module")
def digits():
    return zsq.load_teacher("embedded:digits")


@pytest.fixture(scope="module")
def images():
    return load_digits_images("train")[0][:64]


@pytest.mark.parametrize(
    "bits, ends", [("W4A4", None), ("W8A4", 8), ("W32A32", None), ("W8A32", 8), ("W8A8", 4), ("W4A8", 32)]
)
def test_other_widths_are_refused_in_one_line(bits, ends):
    with pytest.raises(OptionError) as caught:
        check_exportable("ptq", Bits.parse(bits), ends)
    assert "expected W8A8 or W4A8, with --first-last 8 if any" in str(caught.value)


def test_refused_before_the_fit(capsys, tmp_path):
    called = ["quantize", "--teacher", "embedded:digits", "--images", "nowhere", "--student", "ptq"]
    outcome = call(capsys, *called, "--bits", "W4A4", "--onnx", tmp_path / "x.onnx")
    assert outcome.status == 2 and outcome.complaint().startswith("--onnx of W4A4; expected W8A8 or W4A8")


def test_a_package_that_is_missing_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("zsq.saved.onnx_qdq.find_spec", lambda name: None)
    called = ["quantize", "--teacher", "embedded:digits", "--images", "nowhere", "--student", "ptq"]
    outcome = call(capsys, *called, "--bits", "W8A8", "--onnx", tmp_path / "x.onnx")
    assert outcome.complaint().startswith("onnx is not installed; expected the extra 'onnxruntime'")


@onnx
@pytest.mark.parametrize(
    "name, bits, ends",
    [
        *((name, "W8A8", None) for name in EXPORTED),
        *((name, "W4A8", 8) for name in ("ptq", "genie-m", "cfws")),
    ],
)
def test_accuracy_is_that_of_the_student(digits, images, tmp_path, name, bits, ends):
    fitted = fit(name, digits, images, bits, ends)
    zsq.export_onnx(fitted, tmp_path / "student.onnx")
    pixels, labels = load_digits_images("test")
    logits = OnnxStudent(tmp_path / "student.onnx", digits.spec).logits(
        digits.spec.pixels_to_standard(pixels)
    )
    expected = outputs(fitted, pixels)
    hits, expected_hits = (int((each.argmax(1) == labels).sum()) for each in (logits, expected))
    assert abs(hits - expected_hits) / len(labels) <= 0.003
    assert (logits - expected).abs().mean() < 0.02 * expected.std()


@onnx
@pytest.mark.parametrize("name", ["ptq", "lsq-kd", "cfws"])
def test_the_model_holds_the_students_grids_one_to_one(digits, images, tmp_path, name):
    from onnx import checker, load, numpy_helper

    fitted = fit(name, digits, images, "W4A8")
    zsq.export_onnx(fitted, tmp_path / "student.onnx")
    model = load(tmp_path / "student.onnx")
    checker.check_model(model, full_check=True)
    held = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    made = {output: each for each in model.graph.node for output in each.output}
    quantizers = [m for _, m in fitted.network.named_modules() if isinstance(m, FakeQuantizer)]
    kinds = Counter(quantizer.kind for quantizer in quantizers)
    operations = Counter(each.op_type for each in model.graph.node)
    assert operations["QuantizeLinear"] == kinds["activation"]
    assert operations["DequantizeLinear"] == kinds["activation"] + kinds["weight"]
    inputs = [each.input for each in model.graph.node if each.op_type == "DequantizeLinear"]
    grids = {key(held[step], held[zero]) for _, step, zero in inputs}
    assert grids == {key(q.step.detach().numpy(), q.zero_point.numpy()) for q in quantizers}
    weights = [held[integers] for integers, *_ in inputs if integers in held]
    assert len(weights) == kinds["weight"]
    assert all(array.dtype in (np.int8, np.uint8) and np.ptp(array.astype(int)) < 256 for array in weights)
    products = [each for each in model.graph.node if each.op_type in ("Conv", "Gemm", "MatMul")]
    assert all(made[each.input[1]].op_type in ("DequantizeLinear", "Transpose") for each in products)


def key(step, zero_point):
    return step.astype(np.float32).tobytes(), zero_point.astype(np.int64).tobytes()


@onnx
def test_a_student_without_the_form_is_one_line(digits, images, tmp_path):
    fitted = fit(WITHOUT_FORM, digits, images, "W8A8")
    with pytest.raises(OptionError, match="student qfd: its grids have an input scale and an output scale"):
        zsq.export_onnx(fitted, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


@onnx
def test_any_batch_and_negative_activations(digits, images, tmp_path):
    torch.manual_seed(0)
    convs = [torch.nn.Conv2d(1, 4, 3, stride=2), torch.nn.Conv2d(4, 4, 3, stride=2)]
    teacher = Teacher("signed", torch.nn.Sequential(*convs, torch.nn.Flatten()), digits.spec, 196, "0" * 64)
    for name in ("ptq", "lsq-kd"):
        fitted = fit(name, teacher, images, "W8A8")
        zsq.export_onnx(fitted, tmp_path / "a.onnx")
        student = OnnxStudent(tmp_path / "a.onnx", digits.spec)
        for count in (1, 7):
            standard = digits.spec.pixels_to_standard(images[:count])
            step = fitted.network.get_submodule("1.input_quantizer").step.item()
            torch.testing.assert_close(student.logits(standard), fitted.logits(standard), rtol=0, atol=step)


@onnx
def test_a_network_without_an_onnx_form_is_one_line(digits, images, tmp_path, monkeypatch):
    def fail(*arguments, **keywords):
        raise RuntimeError("no such\noperator")

    fitted = fit("ptq", digits, images, "W8A8")
    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ExportError, match="student ptq has no ONNX form: no such"):
        zsq.export_onnx(fitted, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


@onnx
def test_from_the_command_line(capsys, tmp_path):
    path = tmp_path / "a" / "student.onnx"
    called = ["quantize", "--teacher", "embedded:digits", "--images", "embedded:digits:train", "--count", 32]
    called += ["--student", "ptq", "--bits", "W8A8", "--eval", "embedded:digits:test", "--onnx", path]
    outcome = call(capsys, *called)
    assert outcome.status == 0, outcome.err
    *_, written, scores = outcome.out.splitlines()
    assert written == str(path) and path.is_file()
    assert "onnx accuracy 99." in scores
