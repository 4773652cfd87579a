"""Students as modules of `quantized_decomposed`: the same outputs, integers where the student has them."""

from collections import Counter
from importlib import import_module
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from commands import call
from tiny_students import fit
from toys import image_spec
from user_networks import Transposed

import zsq
from zsq.contract import Teacher
from zsq.core.errors import ExportError, OptionError
from zsq.quantizers.grids import FakeQuantizer
from zsq.saved.pt2e import export_pt2, pt2e_student

SYMMETRIC = {"symmetric_weights": True, "observer": "minmax", "weight_observer": "minmax"}


@pytest.fixture(scope="module")
def images(digits):
    return zsq.load_images("embedded:digits:train", digits.spec, limit=32).pixels


@torch.no_grad()
@pytest.mark.parametrize("bits", ["W8A8", "W4A8"])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_outputs_are_the_students(digits, images, bits, granularity):
    fitted = fit("ptq", digits, images, bits, granularity=granularity, **SYMMETRIC)
    norm = digits.spec.pixels_to_norm(images)
    module = pt2e_student(fitted)
    assert torch.equal(module(norm), fitted.network(norm))
    program = torch.export.export(module, (norm[:1],))
    made = Counter(
        str(node.target).split(".")[0:2][-1] for node in program.graph.nodes if node.op == "call_function"
    )
    kinds = Counter(row.kind for row in fitted.tensors)
    assert made["quantize_per_channel"] == made["dequantize_per_channel"] == kinds["weight"]
    assert made["quantize_per_tensor"] == made["dequantize_per_tensor"] == kinds["activation"]
    torch.testing.assert_close(program.module()(norm[:1]), fitted.network(norm[:1]))


@torch.no_grad()
def test_transposed_convolutions_and_negative_activations(images):
    torch.manual_seed(0)
    teacher = Teacher("own", Transposed().eval(), image_spec(3, (16, 16)), 5, "0" * 64)
    pixels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    fitted = fit("ptq", teacher, pixels, "W8A8", **SYMMETRIC)
    norm = teacher.spec.pixels_to_norm(pixels)
    assert torch.equal(pt2e_student(fitted)(norm), fitted.network(norm))


def test_weights_with_a_zero_point_and_other_widths_are_refused(digits, images, monkeypatch):
    fast = {"observer": "minmax", "weight_observer": "minmax"}
    with pytest.raises(
        OptionError, match=r"weights of conv1.weight have a zero point.*symmetric_weights=true"
    ):
        pt2e_student(fit("ptq", digits, images, "W8A8", **fast))
    with pytest.raises(OptionError, match="W4A4 --first-last 8; expected W8A8 or W4A8"):
        pt2e_student(fit("ptq", digits, images, "W4A4", **SYMMETRIC))
    fitted = fit("ptq", digits, images, "W8A8", **SYMMETRIC)
    monkeypatch.setattr(FakeQuantizer, "no_onnx_form", "an input scale")
    with pytest.raises(OptionError, match="student ptq: its grids have an input scale"):
        pt2e_student(fitted)


QUANTIZE = ["quantize", "--teacher", "embedded:digits", "--images", "embedded:digits:train", "--count", 32]
FAST = ["--set", "observer=minmax", "--set", "weight_observer=minmax"]


def test_a_program_from_the_command_line_gives_the_students_outputs(digits, images, capsys, tmp_path):
    path, out = tmp_path / "new" / "student.pt2", tmp_path / "student"
    called = [*QUANTIZE, "--student", "ptq", "--bits", "W8A8", *FAST, "--set", "symmetric_weights=true"]
    outcome = call(capsys, *called, "--out", out, "--pt2", path)
    assert outcome.status == 0, outcome.err
    assert str(path) in outcome.out.splitlines()
    import_module("torch.ao.quantization.fx._decomposed")
    program = torch.export.load(path)
    norm = digits.spec.pixels_to_norm(images[:1])
    expected = zsq.load_student(out).network(norm)
    torch.testing.assert_close(program.module()(norm), expected)
    operations = {str(node.target) for node in program.graph.nodes}
    assert "quantized_decomposed.quantize_per_channel.default" in operations
    # Nothing of the machine leaves with it.
    own = str(Path(zsq.__file__).parent).encode()
    with ZipFile(path) as archive:
        assert not any(own in archive.read(name) for name in archive.namelist())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--bits", "W8A8"], "weights of student ptq have a zero point"),
        (["--bits", "W4A4"], "--pt2 of W4A4; expected W8A8 or W4A8"),
        (["--bits", "W8A8", "--bits", "W4A8"], "--pt2 with 2 --bits; expected one"),
        (["--bits", "W8A8", "--passes", "fold"], "weights of student ptq have a zero point"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_fit(given, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("zsq.students.ptq.PTQ.run", None)
    outcome = call(capsys, *QUANTIZE, "--student", "ptq", *given, "--pt2", tmp_path / "x.pt2")
    assert outcome.status == 2 and outcome.complaint().startswith(message), outcome.err
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_place_for_a_program(capsys, tmp_path):
    outcome = call(capsys, *QUANTIZE, "--student", "lsq-kd", "--bits", "W8A8", "--pt2", tmp_path)
    assert outcome.status == 2 and outcome.complaint().endswith("is a folder; expected a file")


def test_a_network_that_pytorch_refuses_is_said_in_one_line(digits, images, tmp_path, monkeypatch):
    fitted = fit("ptq", digits, images, "W8A8", **SYMMETRIC)

    def refuse(*_):
        raise RuntimeError("no such\nthing")

    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(ExportError, match="student ptq cannot be exported by PyTorch: no such"):
        export_pt2(fitted, tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())
