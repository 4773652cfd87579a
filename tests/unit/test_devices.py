"""Where to compute, as users say it: one line where that is not there, from Python and the command line."""

import re

import pytest
import torch
from commands import call

import zsq
from zsq.config import RuntimeConfig
from zsq.core.errors import OptionError

DIGITS = "embedded:digits"
TRAIN, VAL = "embedded:digits:train", "embedded:digits:val"
WRONG = {
    "nowhere": "expected cpu, cuda or cuda:N",
    "meta": "expected cpu, cuda or cuda:N",
    "": "expected cpu, cuda or cuda:N",
    "cuda:x": "expected cpu, cuda or cuda:N",
    "cuda:9": "expected a CUDA device that torch can use",
}
COMMANDS = {
    "generate": ("generate", "--teacher", DIGITS, "--method", "noise", "--out", "x"),
    "quantize": ("quantize", "--teacher", DIGITS, "--bits", "W8A8", "--images", VAL),
    "gap": (
        "gap",
        "--teacher",
        DIGITS,
        "--shards",
        "run",
        "--real",
        TRAIN,
        "--eval",
        VAL,
        "--student",
        "ptq",
        "--bits",
        "W8A8",
        "--out",
        "x",
    ),
    "run": ("run", "digits", "--out", "x"),
    "audit": (
        "audit",
        "--teacher",
        DIGITS,
        "--shards",
        "run",
        "--train",
        TRAIN,
        "--holdout",
        VAL,
        "--out",
        "x",
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    zsq.generate(DIGITS, "noise", count=4, out=folder / "run")
    zsq.quantize(DIGITS, folder / "run", "ptq", "W8A8", out=folder / "student")
    return folder


@pytest.mark.parametrize("device", WRONG)
@pytest.mark.parametrize("command", COMMANDS)
def test_of_a_command(command, device, made, capsys, monkeypatch):
    monkeypatch.chdir(made)
    outcome = call(capsys, *COMMANDS[command], "--device", device)
    assert outcome.status == 2
    assert outcome.complaint().startswith(f"--device {device}; {WRONG[device]}")
    assert not (made / "x").exists()


@pytest.mark.parametrize("device", [*WRONG, 3, torch.device("meta")])
def test_from_python(device, made, monkeypatch):
    monkeypatch.chdir(made)
    teacher, runtime = zsq.load_teacher(DIGITS), RuntimeConfig(device=device)
    for ask in (
        lambda: zsq.load_teacher(DIGITS, device=device),
        lambda: zsq.load_student("student", device=device),
        lambda: teacher.to(device),
        lambda: zsq.generate(DIGITS, "noise", out="x", runtime=runtime),
        lambda: zsq.quantize(DIGITS, VAL, "ptq", "W8A8", runtime=runtime),
        lambda: zsq.audit(DIGITS, "run", TRAIN, VAL, runtime=runtime),
        lambda: zsq.inspect_teacher(DIGITS, runtime=runtime),
        lambda: zsq.inspect_student("student", VAL, runtime=runtime),
    ):
        with pytest.raises(OptionError, match=f"device {re.escape(str(device))}; expected"):
            ask()


@pytest.mark.parametrize("device", ["auto", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)])
def test_forms_of_the_cpu(device, made):
    assert zsq.load_teacher(DIGITS, device=device).network.conv1.weight.device.type == "cpu"
    assert zsq.load_student(made / "student", device=device).device.type == "cpu"


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ({"device": "nowhere"}, "--device nowhere; expected"),
        ({"devise": "cpu"}, "runtime: devise: no such key; did you mean 'device'"),
        ({"threads": 0}, "runtime: threads: Input should be greater"),
        ("cpu", "runtime 'cpu'; expected a dict such as"),
    ],
)
def test_a_runtime_that_is_given_as_its_fields(runtime, message, made, monkeypatch):
    monkeypatch.chdir(made)
    for ask in (
        lambda: zsq.generate(DIGITS, "noise", out="x", runtime=runtime),
        lambda: zsq.quantize(DIGITS, VAL, "ptq", "W8A8", runtime=runtime),
        lambda: zsq.measure_gap(DIGITS, ["run"], TRAIN, VAL, ["ptq"], ["W8A8"], "x", runtime=runtime),
        lambda: zsq.run("digits", out="x", runtime=runtime),
        lambda: zsq.audit(DIGITS, "run", TRAIN, VAL, runtime=runtime),
        lambda: zsq.inspect_teacher(DIGITS, runtime=runtime),
        lambda: zsq.inspect_student("student", VAL, runtime=runtime),
    ):
        with pytest.raises(OptionError, match=message):
            ask()


def test_a_runtime_made_by_hand():
    with pytest.raises(OptionError, match="runtime: threads: Input should be a valid integer"):
        RuntimeConfig(threads="many")
    assert RuntimeConfig(device=torch.device("cuda", 1)).device == "cuda:1"
