"""The suite computes on the CPU, also on a machine that has a GPU."""

import re

import torch
from commands import run_python

from zsq.core.runtime import Runtime

PRETENDING = """
import os, sys, torch
# As CUDA does: no device where the variable is empty.
torch.cuda.is_available = lambda: os.environ.get("CUDA_VISIBLE_DEVICES") != ""
torch.cuda.get_device_capability = lambda device: (9, 0)
"""
RESOLVED = (
    PRETENDING
    + """
from zsq.core.runtime import Runtime
print(Runtime.resolve().device)
# What hides the device is the variable.
os.environ["CUDA_VISIBLE_DEVICES"] = "0"
print(Runtime.resolve().device)
"""
)


def test_auto_is_the_cpu_here_and_in_child_processes():
    assert not torch.cuda.is_available() and Runtime.resolve().device == "cpu"
    assert run_python(RESOLVED).split() == ["cpu", "cuda"]


def test_tests_marked_gpu_see_it(tmp_path):
    (tmp_path / "test_it.py").write_text(
        """
import pytest, torch

@pytest.mark.gpu
def test_marked():
    assert torch.cuda.is_available()

def test_other():
    assert not torch.cuda.is_available()
"""
    )
    code = (
        PRETENDING
        + """
import pytest
for chosen in ([], ["-m", "gpu"]):
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    pytest.main([*chosen, *sys.argv[1:], "-q", "-p", "no:cacheprovider", "-p", "conftest"])
"""
    )
    folder = __file__.rsplit("/", 2)[0]
    options = ["--rootdir", tmp_path, "-c", "/dev/null", tmp_path]
    said = run_python(code, *options, PYTHONPATH=f"{folder}:{folder}/..")
    assert re.findall(r"1 passed, 1 \w+", said) == ["1 passed, 1 skipped", "1 passed, 1 deselected"]
