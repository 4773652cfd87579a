import hashlib
import os
import resource
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import run_python, run_script

from zsq.core.errors import ShardError, StorageError
from zsq.core.files import atomic_write_bytes, atomic_write_text
from zsq.shards.reader import read_shard
from zsq.shards.writer import write_shard


def test_file_holds_the_arrays_as_plain_hdf5(tmp_path, make_content, provenance):
    content = make_content()
    path = tmp_path / "shard-00000.h5"
    write_shard(path, content, provenance)
    with h5py.File(path) as file:
        assert list(file) == ["bn_distance", "labels", "logits", "pixels", "targets"]
        for name, array in content.arrays():
            assert file[name].fletcher32
            assert file[name].dtype == array.dtype
            np.testing.assert_array_equal(file[name][:], array)
        assert file["pixels"].chunks == (1, 3, 6, 5)
        assert file["logits"].chunks == (1, 10)
        assert file.attrs["method"] == b'"dsg"'
        assert file.attrs["groups"] == b"[0]"
        assert file.attrs["format_version"] == b"1"


def test_entry_states_the_hash_of_the_file(tmp_path, make_content, provenance):
    path = tmp_path / "shard-00003.h5"
    entry = write_shard(path, make_content(3), provenance)
    assert entry.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (entry.file, entry.num_images) == ("shard-00003.h5", 3)


def test_same_content_gives_the_same_bytes_at_another_time_and_place(tmp_path, make_content, provenance):
    first = write_shard(tmp_path / "a" / "shard-00000.h5", make_content(), provenance)
    time.sleep(1.1)  # HDF5 timestamps count seconds
    second = write_shard(tmp_path / "b" / "shard-00000.h5", make_content(), provenance)
    assert first == second
    assert write_shard(tmp_path / "shard-00000.h5", make_content(seed=1), provenance) != first


GOLDEN = """
import numpy as np, sys
from pathlib import Path
from zsq.core.imagespec import ImageSpec
from zsq.shards.schema import ShardContent, ShardProvenance
from zsq.shards.writer import write_shard
pixels = np.arange(2 * 1 * 4 * 4, dtype=np.uint8).reshape(2, 1, 4, 4)
content = ShardContent(pixels, np.array([0, -1]), np.eye(2, dtype=np.float32), np.ones(2, np.float32))
spec = ImageSpec(channels=1, size=(4, 4), mean=(0.5,), std=(0.5,))
origin = ShardProvenance("t", "0" * 64, spec, "noise", {}, 0, (0,), 0, "none")
sys.stdout.write(write_shard(Path(sys.argv[1]) / "shard-00000.h5", content, origin).sha256)
"""


def test_another_process_writes_the_same_bytes(tmp_path, monkeypatch, capsys):
    here = run_script(GOLDEN.replace("sys.argv[1]", '"a"'), tmp_path, monkeypatch, capsys)
    assert run_python(GOLDEN, tmp_path / "b") == here
    if h5py.version.hdf5_version_tuple[:2] == (2, 0):  # the library decides about a few header bytes
        assert here == "48252811a44a0411192051ec3ca54988d0de60e68ba5755b915bde3ad6a8e635"


def test_writing_over_a_shard_replaces_it_whole(tmp_path, make_content, provenance):
    path = tmp_path / "shard-00000.h5"
    write_shard(path, make_content(4), provenance)
    before = path.open("rb")
    write_shard(path, make_content(2), provenance)
    with before, h5py.File(before) as old:
        assert len(old["pixels"]) == 4  # a reader that has the old file open keeps it
    assert read_shard(path)[0].num_images == 2


def test_wrong_content_writes_nothing(tmp_path, make_content, provenance):
    content = make_content()
    content.logits[0, 0] = np.nan
    with pytest.raises(ShardError, match="logits"):
        write_shard(tmp_path / "shard-00000.h5", content, provenance)
    assert list(tmp_path.iterdir()) == []


def test_refused_write_is_one_line_and_leaves_the_old_file_alone(tmp_path, make_content, provenance):
    path = tmp_path / "shard-00000.h5"
    write_shard(path, make_content(), provenance)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"shard-00000\.h5: File too large; free disk space") as caught:
            write_shard(path, make_content(64), provenance)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert [child.name for child in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disk_full_at_any_step_leaves_nothing_behind(call, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    if call == "replace":
        monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(StorageError, match="No space left on device"):
        atomic_write_bytes(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write_bytes(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_file_and_folder_are_synced_around_the_rename(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, type(tmp_path).replace

    def spy_fsync(descriptor):
        events.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def spy_replace(self, target):
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(type(tmp_path), "replace", spy_replace)
    atomic_write_bytes(tmp_path / "file", b"content")
    assert events[0].startswith(f"{tmp_path}/.file.")
    assert events[1:] == ["rename", str(tmp_path)]


def test_leftovers_of_killed_writers_go_with_the_next_write(tmp_path):
    (tmp_path / ".file.0123abcd.zsq.tmp").write_bytes(b"half")
    (tmp_path / ".other.0123abcd.zsq.tmp").write_bytes(b"of another file")
    (tmp_path / ".mine.0123abcd.tmp").write_bytes(b"of another program")
    atomic_write_text(tmp_path / "file", "é")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.0123abcd.tmp", "file"]
    assert (tmp_path / "file").read_bytes() == "é".encode()


def test_folder_in_the_way_is_a_storage_error(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(StorageError, match="file"):
        atomic_write_text(tmp_path / "file", "text")
