"""Students as modules of `quantized_decomposed`: the same outputs, integers where the student has them."""

from collections import Counter

import pytest
import torch
from tiny_students import fit
from toys import image_spec
from user_networks import Transposed

import zsq
from zsq.contract import Teacher
from zsq.core.errors import OptionError
from zsq.quantizers.grids import FakeQuantizer
from zsq.saved.pt2e import pt2e_student

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
