"""What a refused write says: `--resume` where the command has one, and nowhere else."""

import inspect

import pytest
from commands import call

from zsq.cli import COMMANDS
from zsq.core import files
from zsq.core.interrupt import KEPT, RESUMABLE

DIGITS = ("--teacher", "embedded:digits")


def test_resumable_commands_are_those_with_the_option():
    has = [name for name, command in COMMANDS.items() if "resume" in inspect.signature(command).parameters]
    assert sorted(RESUMABLE) == sorted(has)


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
    assert line.endswith(KEPT) == (arguments[0] in RESUMABLE)
