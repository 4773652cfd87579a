"""Regular files alone are read; what a kill leaves is removed, what a process works on is not."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import PYTHON, environment

from zsq.core.errors import OptionError, StorageError
from zsq.core.files import (
    atomic_write_text,
    open_regular,
    output_path,
    read_regular,
    remove_leftovers,
    temporary_sibling,
)
from zsq.core.progress import append_line

# Makes a temporary file and a temporary folder, says so, and waits to be killed.
WORKER = """
import sys, time
from pathlib import Path
from zsq.core.files import temporary_sibling
out = Path(sys.argv[1])
with temporary_sibling(out / "file", Path.touch), temporary_sibling(out / "folder", Path.mkdir) as folder:
    (folder / "inside").touch()
    print("ready", flush=True)
    time.sleep(60)
"""


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [fifo, device, Path.mkdir])
def test_what_is_no_regular_file_is_neither_read_nor_appended_to(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "odd"
    make(path)
    with pytest.raises(OSError, match=r"Not a regular file|Is a directory"):
        read_regular(path, 100)
    with pytest.raises(StorageError, match=r"odd: (Not a regular file|Is a directory)"):
        append_line(path, "line")


def test_no_more_is_read_than_was_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="larger than the 4 bytes"):
        read_regular(tmp_path / "file", 4)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
    # As /proc does: a size of zero says nothing.
    with pytest.raises(OSError, match="other than the 0 bytes"):
        read_regular(Path("/proc/self/status"), 4)
    (tmp_path / "file").write_bytes(b"12345")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**40, before[1]))
    try:
        assert read_regular(tmp_path / "file", 2**50) == b"12345"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--out ''; expected the name of a file or folder"),
        ("  ", "expected the name"),
        ("/", "expected a folder other than the root"),
        ("/tmp/..", "expected a folder other than the root"),
        ("a\0b", "expected the name"),
        (os.fsdecode(b"a\xff"), r"--out 'a\\udcff'; expected a name in UTF-8"),
    ],
)
def test_names_that_nothing_can_be_written_to(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        output_path(text)


def test_other_names_stay_as_they_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert output_path("a/../b") == Path("a/../b")
    assert (output_path("."), output_path("..")) == (tmp_path / "inner", tmp_path)


def test_what_a_kill_left_goes_and_what_a_process_works_on_stays(tmp_path: Path) -> None:
    command = [PYTHON, "-c", WORKER, str(tmp_path)]
    worker = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
        before = sorted(path.name for path in tmp_path.iterdir())
        assert [name.split(".")[1] for name in before] == ["file", "folder"]
        atomic_write_text(tmp_path / "other", "whole")
        assert sorted(path.name for path in tmp_path.iterdir()) == [*before, "other"]
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
    assert len(list(tmp_path.iterdir())) == 3
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_temporary_taken_for_a_leftover_is_made_again(tmp_path: Path) -> None:
    """Between its making and its lock."""
    made: list[Path] = []

    def make(path: Path) -> None:
        path.mkdir()
        made.append(path)
        if len(made) == 1:
            remove_leftovers(tmp_path)

    with temporary_sibling(tmp_path / "out", make) as temporary:
        assert temporary.is_dir() and len(made) == 2 and made[1] == temporary
    assert list(tmp_path.iterdir()) == []


def test_a_link_called_like_a_leftover_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    link = tmp_path / ".out.01234567.zsq.tmp"
    link.symlink_to(tmp_path / "mine")
    remove_leftovers(tmp_path)
    assert link.is_symlink() and (tmp_path / "mine").read_text() == "mine"


def test_no_file_has_a_zero_byte_in_its_name() -> None:
    with pytest.raises(OSError, match="no file has such a name"):
        open_regular(Path("a\0b"))
