"""A run's folder: new, resumed, or in the way."""

import json
from pathlib import Path

import pytest

from zsq.core.errors import RunFolderError, StorageError
from zsq.runfolder import (
    RUN_FILE,
    held_folder,
    latest_folder,
    next_folder,
    open_run,
    stored_options,
)

OPTIONS = {"count": 8, "set": {"epsilon": 0.9}, "batch": None, "folders": ("a", "b")}


def test_a_new_folder_holds_its_options(tmp_path):
    folder = tmp_path / "outputs" / "run"
    open_run(folder, OPTIONS, resume=False)
    assert json.loads((folder / RUN_FILE).read_text()) == OPTIONS | {"folders": ["a", "b"]}
    assert [path.name for path in folder.iterdir()] == [RUN_FILE]


@pytest.mark.parametrize("resume", [False, True])
def test_an_empty_folder_and_a_torn_start_are_fresh(tmp_path, resume):
    (tmp_path / f".{RUN_FILE}.0a1b2c3d.zsq.tmp").write_text('{"cou')
    open_run(tmp_path, OPTIONS, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == [RUN_FILE]
    assert json.loads((tmp_path / RUN_FILE).read_text())["count"] == 8


def test_the_same_options_are_resumed_and_nothing_is_rewritten(tmp_path):
    open_run(tmp_path, OPTIONS, resume=False)
    before = (tmp_path / RUN_FILE).stat()
    open_run(tmp_path, json.loads(json.dumps(OPTIONS)), resume=True)
    after = (tmp_path / RUN_FILE).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"count": 9}, r"--resume with count = 9; expected 8 as in .*run\.json"),
        ({"set": {"epsilon": 1.0}}, r"--resume with epsilon = 1.0; expected 0.9 as in "),
        ({"new": 1}, "--resume with new = 1; expected None"),
    ],
)
def test_other_options_are_refused_by_name(tmp_path, changed, message):
    open_run(tmp_path, OPTIONS, resume=False)
    with pytest.raises(RunFolderError, match=message):
        open_run(tmp_path, OPTIONS | changed, resume=True)


def test_what_grows_is_written_and_the_run_is_no_longer_whole(tmp_path):
    open_run(tmp_path, OPTIONS, resume=False)
    (tmp_path / "whole.json").touch()
    open_run(tmp_path, OPTIONS, resume=True, grows=("count",), whole="whole.json")
    assert (tmp_path / "whole.json").exists()
    with pytest.raises(RunFolderError):
        open_run(tmp_path, OPTIONS | {"count": 9, "batch": 1}, True, grows=("count",), whole="whole.json")
    assert (tmp_path / "whole.json").exists()
    open_run(tmp_path, OPTIONS | {"count": 9}, resume=True, grows=("count",), whole="whole.json")
    assert stored_options(tmp_path)["count"] == 9
    assert not (tmp_path / "whole.json").exists()


def test_a_folder_that_holds_anything_is_in_the_way(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(RunFolderError, match="is not empty; expected a new folder; pass --resume"):
        open_run(tmp_path, OPTIONS, resume=False)
    with pytest.raises(RunFolderError, match=r"holds no readable run\.json"):
        open_run(tmp_path, OPTIONS, resume=True)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_an_unreadable_run_file_is_not_taken_up(tmp_path, content):
    (tmp_path / RUN_FILE).write_bytes(content)
    with pytest.raises(RunFolderError, match=r"holds no readable run\.json"):
        open_run(tmp_path, OPTIONS, resume=True)


@pytest.mark.parametrize("content", [b"[1]", b"3", b"null"])
def test_a_run_file_of_another_kind_is_not_taken_up(tmp_path, content):
    (tmp_path / RUN_FILE).write_bytes(content)
    with pytest.raises(RunFolderError, match=r"holds no readable run\.json"):
        open_run(tmp_path, OPTIONS, resume=True)


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunFolderError, match="a file is in the way; expected a folder"):
            open_run(folder, OPTIONS, resume=False)


def test_a_folder_that_cannot_be_made():
    with pytest.raises(StorageError, match="cannot create /proc/none/run: No such file"):
        open_run(Path("/proc/none/run"), OPTIONS, resume=False)


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    refused = pytest.raises(RunFolderError, match="another zsq works in")
    with held_folder(tmp_path), refused, held_folder(tmp_path):
        pass
    with held_folder(tmp_path), held_folder(tmp_path.parent):
        pass


def test_next_and_latest_folder(tmp_path):
    base = tmp_path / "digits"
    assert next_folder(base) == latest_folder(base) == base
    for wanted in ("digits", "digits-2", "digits-3"):
        folder = next_folder(base)
        assert folder.name == wanted
        folder.mkdir()
        assert latest_folder(base) == folder
