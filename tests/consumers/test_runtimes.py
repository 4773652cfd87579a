"""A student in other programs, each in its own environment: it gives the outputs that it gives in PyTorch."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from commands import REPOSITORY, run_python
from test_docs import script
from tiny_students import fit

import zsq

sys.path.append(str(REPOSITORY / "benchmarks"))
import runtime_tools
import runtimes

PACKAGES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "onnx2tf": "onnx2tf",
    "litert": "litert_torch",
    "executorch": "executorch",
}
# What these versions do instead is said in docs/runtimes.md.
FAILS = {
    "onnx2tf": "onnx2tf 1.29.24 drops the quantizers",
    "executorch": "the XNNPACK partitioner of ExecuTorch 1.5.1 fails on the student's graph",
}
PROGRAMS = [
    pytest.param(
        program, marks=[pytest.mark.xfail(strict=True, reason=FAILS[program])] if program in FAILS else []
    )
    for program in runtime_tools.RUNTIMES
]


def need(program):
    if find_spec(PACKAGES[program]) is None:
        environment = "openvino" if program == "onnxruntime" else program
        pytest.skip(f"{PACKAGES[program]} is not installed: use benchmarks/consumers/{environment}.txt")


@pytest.mark.consumers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("program", PROGRAMS)
def test_outputs_are_those_of_the_student(program, tmp_path):
    need(program)
    teacher = zsq.load_teacher("embedded:digits")
    images = zsq.load_images("embedded:digits:train", teacher.spec, limit=96).pixels
    fitted = fit("ptq", teacher, images[:64], "W8A8", symmetric_weights=True)
    quantized, floats = runtime_tools.RUNTIMES[program][0](fitted, teacher, tmp_path)
    norm = teacher.spec.pixels_to_norm(images[64:])
    found = runtimes.compared(quantized, fitted, teacher, norm)
    assert found["largest_percent"] < 1
    assert abs(found["sqnr"] - found["sqnr_student"]) < 1
    with torch.no_grad():
        exact = teacher.network(norm[:1])
    torch.testing.assert_close(floats.predict(norm[:1])[0], exact, rtol=1e-3, atol=1e-3)


@pytest.mark.consumers
def test_script_of_the_page(tmp_path):
    need("litert")
    assert float(run_python(script("runtimes.md"), cwd=tmp_path).split()[-1]) > 98


def test_every_program_has_its_versions_pinned():
    for program, (_, packages) in runtime_tools.RUNTIMES.items():
        environment = "openvino" if program == "onnxruntime" else program
        pins = Path(REPOSITORY / f"benchmarks/consumers/{environment}.txt").read_text().lower()
        assert all(f"\n{package}==" in pins for package in packages), program
