"""What a refused write says: `--resume` where the command has one, and nowhere else."""

import pytest
from commands import call

from zsq.core import files
from zsq.core.interrupt import KEPT, LINE

DIGITS = ("--teacher", "embedded:digits")


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", *DIGITS, "--method", "noise", "--count", 4, "--out", "run"),
        ("import", "embedded:digits:val", "--out", "run"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_refused_write_names_resume_only_where_there_is_one(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    outcome = call(capsys, *arguments)
    assert outcome.status == 1
    *_, line = outcome.err.splitlines()
    assert "No space left on device" in line
    assert line.endswith(KEPT) == (arguments[0] == "generate")


def test_another_call_in_the_same_process_is_told_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "generate", *DIGITS, "--method", "noise", "--count", 4, "--out", "run").status == 0
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: (_ for _ in ()).throw(KeyboardInterrupt))
    assert call(capsys, "import", "embedded:digits:val", "--out", "new").err.splitlines() == [LINE]
