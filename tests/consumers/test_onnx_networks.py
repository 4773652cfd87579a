"""ONNX students of every layer and output beside the students themselves.

Two programs that add in another order round some values to other integers, and every layer makes the
difference larger. A shallow network is the same within `SHALLOW` of its outputs' range. Of a deep one, the
difference is of the size of the quantization itself, and both are as near to the teacher.
"""

from importlib.util import find_spec

import pytest
import torch
from commands import call
from tiny_students import fit
from torch import nn
from toys import image_spec, structured_images
from user_networks import Pair, SelfAttention, SignalStrip, Transposed, Upscaler, Volume

import zsq
from zsq.contract import Teacher
from zsq.core.errors import ExportError
from zsq.saved.onnx_qdq import OnnxStudent, check_network_exportable
from zsq.tasks import TASKS
from zsq.tasks.nesting import named_tensors

INSTALLED = all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
pytestmark = [
    pytest.mark.consumers,
    pytest.mark.skipif(not INSTALLED, reason="onnx, onnxscript and onnxruntime are not installed"),
    pytest.mark.filterwarnings("ignore"),
]

SHALLOW = 0.01
FAST = {"first_last": None, "observer": "minmax", "weight_observer": "minmax"}
NETWORKS = {
    "signal": (SignalStrip, (4, 1, 64), "classify"),
    "volume": (Volume, (8, 12, 12), "classify"),
    "transposed": (Transposed, (3, 16, 16), "classify"),
    "transposed-groups": (lambda: Transposed(groups=2), (3, 16, 16), "classify"),
    "attention": (SelfAttention, (3, 16, 16), "classify"),
    "image": (Upscaler, (3, 12, 12), "image"),
    "nested": (Pair, (3, 16, 16), "other"),
}


def a_teacher(kind):
    build, shape, task = NETWORKS[kind]
    torch.manual_seed(0)
    return Teacher(kind, build().eval(), image_spec(shape[0], shape[1:]), None, "0" * 64, task=TASKS[task]())


@torch.no_grad()
def three(teacher, pixels, path, bits="W8A8"):
    """Outputs of teacher, student and ONNX file."""
    fitted = fit("ptq", teacher, pixels, bits, **FAST)
    zsq.export_onnx(fitted, path)
    standard = teacher.spec.pixels_to_standard(pixels)
    models = (teacher, fitted, OnnxStudent(path, teacher.spec))
    return [model.logits(standard) for model in models]


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("count", [2, 5])
def test_a_shallow_network_is_the_same(tmp_path, kind, count):
    teacher = a_teacher(kind)
    check_network_exportable(teacher)
    pixels = teacher.spec.standard_to_pixels(structured_images((count, *teacher.spec.shape)))
    _, student, onnx = three(teacher, pixels, tmp_path / "a.onnx")
    assert type(onnx) is type(student)
    student, onnx = dict(named_tensors(student)), dict(named_tensors(onnx))
    assert student.keys() == onnx.keys()
    for name, expected in student.items():
        assert onnx[name].shape == expected.shape
        largest = (expected.max() - expected.min()).clamp(min=expected.abs().max())
        assert (onnx[name] - expected).abs().max() <= SHALLOW * largest, name


def test_the_nesting_comes_back(tmp_path):
    teacher = a_teacher("nested")
    pixels = teacher.spec.standard_to_pixels(structured_images((2, *teacher.spec.shape)))
    *_, onnx = three(teacher, pixels, tmp_path / "a.onnx")
    assert list(onnx) == ["maps", 1] and type(onnx["maps"]) is list and type(onnx[1]) is tuple


DEEP = {
    "image": ("sr/carn_m_x4.toml", "sr/bsd100_lr48_train.npz"),
    "detect": ("detector/fastestdet.toml", "detector/calibration80.zip"),
}


@pytest.mark.parametrize("task", DEEP)
def test_a_deep_network_is_as_near_to_its_teacher(data_folder, tmp_path, task):
    card, images = (data_folder / part for part in DEEP[task])
    teacher = zsq.load_teacher(f"file:{card}")
    assert teacher.task.name == task
    pixels = zsq.load_images(str(images), teacher.spec, limit=8).pixels
    outputs = [dict(named_tensors(each)) for each in three(teacher, pixels, tmp_path / "a.onnx")]
    for name in outputs[0]:
        exact, student, onnx = (each[name] for each in outputs)
        own, of_onnx = ((each - exact).square().mean() for each in (student, onnx))
        # 1 dB more or less, and no farther from each other than two roundings of one tensor.
        assert 10 * (of_onnx / own).log10().abs() < 1
        assert (onnx - student).square().mean() < 1.5 * own


def test_a_network_without_an_onnx_form_is_refused_before_the_fit(tmp_path, monkeypatch, capsys):
    def fail(*arguments, **keywords):
        raise RuntimeError("no such\noperator")

    teacher = Teacher("own", nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), image_spec(), None, "0" * 64)
    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ExportError, match=r"teacher own has no ONNX form: no such$"):
        check_network_exportable(teacher)
    called = ["quantize", "--teacher", "embedded:digits", "--images", "nowhere", "--student", "ptq"]
    outcome = call(capsys, *called, "--bits", "W8A8", "--onnx", tmp_path / "x.onnx")
    assert outcome.complaint().startswith("teacher embedded:digits has no ONNX form: no such")


def test_a_student_without_an_onnx_form_is_refused_before_the_fit(tmp_path, capsys):
    called = ["quantize", "--teacher", "embedded:digits", "--images", "nowhere", "--student", "qfd"]
    outcome = call(capsys, *called, "--bits", "W8A8", "--onnx", tmp_path / "x.onnx")
    assert outcome.status == 2 and "its grids have an input scale and an output scale" in outcome.complaint()
