"""A small share of what `python tests/robustness/fuzz.py` draws, and what it promises of its draws."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import PYTHON, environment

sys.path.insert(0, str(Path(__file__).parent))

from fuzz import _fault
from fuzz_example import Case
from fuzz_lines import lines

FUZZ = Path(__file__).with_name("fuzz.py")


def test_a_share_of_the_fuzz():
    command = [
        PYTHON,
        "-W",
        "ignore",
        FUZZ,
        "--lines",
        "14",
        "--files",
        "19",
        "--seed",
        "1",
        "--processes",
        "2",
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["14 lines", "19 files"]


def test_lines_are_drawn_from_the_seed_and_most_are_valid():
    drawn = list(lines(200, 0))
    assert [case.arguments for case in drawn] == [case.arguments for case in lines(200, 0)]
    assert [case.arguments for case in drawn] != [case.arguments for case in lines(200, 1)]
    valid = sum(" valid: " in case.name for case in drawn)
    assert 100 < valid < 160


@pytest.mark.parametrize(
    ("status", "said", "left", "fault"),
    [
        (0, "", [], ""),
        (2, "warning: x\nzsq: wrong\n", [], ""),
        (99, "zsq: wrong\n", [], "ends with status 99"),
        (1, "Traceback (most recent call last)\nzsq: wrong\n", [], "says a traceback"),
        (1, "killed\n", [], "does not end in a line of zsq"),
        (-signal.SIGSEGV, "", [], "ends with status -11"),
        (-signal.SIGKILL, "", [], "hangs, or takes more than 60 s"),
        (0, "", [".out.01234567.zsq.tmp"], "leaves .out.01234567.zsq.tmp"),
    ],
)
def test_what_counts_as_a_fault(status, said, left, fault):
    assert _fault(status, said, left) == fault


def test_a_hanging_case_is_ended(monkeypatch):
    import fuzz

    child = os.fork()
    if not child:
        signal.pause()
    assert fuzz._wait(child, 0.0) == -signal.SIGKILL
    assert isinstance(Case("line 0", ["list"]), Case)
