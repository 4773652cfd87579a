"""Exit code 2 where a file that the call names cannot work, 1 where a check finds damage."""

from pathlib import Path

import pytest
from commands import call

import zsq

FAILED, USAGE = 1, 2
DIGITS = ("--teacher", "embedded:digits")
FIT = ("quantize", *DIGITS, "--student", "ptq", "--bits", "W4A4", "--images")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A finished run."""
    return zsq.generate("embedded:digits", "noise", count=8, out=tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


WITH_WEIGHTS = ("generate", "--teacher", "cifar10:resnet20", "--method", "noise", "--count", 2, "--weights")


@pytest.mark.parametrize("content", [None, b"what is this"])
@pytest.mark.parametrize(
    "line",
    [
        WITH_WEIGHTS,
        ("generate", "--teacher", "file:{}"),
        FIT,
        (*FIT, "embedded:digits", "--widths"),
        (*FIT, "embedded:digits", "--eval", "embedded:digits:val", "--class-names"),
        ("run", "./{}"),
        ("inspect",),
        ("inspect", "--images", "embedded:digits"),
        ("verify",),
        ("verify", "{digits}", "--against"),
        ("export", "--to", "npy", "--out", "exported"),
        ("import", "--out", "imported"),
    ],
    ids=lambda line: " ".join(map(str, line[:1] + line[-1:])),
)
def test_a_named_file_that_cannot_work_is_a_wrong_call(line, content, digits, capsys):
    """Whatever it should be: missing, or of something else."""
    name = "named.toml" if "{}" in line[-1] else "named"
    if content is not None:
        Path(name).write_bytes(content)
    filled = [str(part).format(name, digits=digits) for part in line]
    outcome = call(capsys, *(filled if "{}" in line[-1] else [*filled, name]))
    assert outcome.status == USAGE
    assert name in outcome.complaint()


def test_the_folder_of_a_student_that_was_altered_is_a_wrong_call(capsys):
    call(capsys, *FIT, "embedded:digits", "--count", 8, "--out", "int4")
    with Path("int4/student.safetensors").open("ab") as file:
        file.write(b"more")
    outcome = call(capsys, "inspect", "int4")
    assert outcome.status == USAGE
    assert "truncated, altered or of another student" in outcome.complaint()


def test_an_export_that_was_altered_is_what_verify_finds(digits, capsys):
    call(capsys, "export", digits, "--to", "npy", "--out", "exported")
    with Path("exported/labels.npy").open("ab") as file:
        file.write(b"more")
    outcome = call(capsys, "verify", digits, "--against", "exported")
    assert outcome.status == FAILED
