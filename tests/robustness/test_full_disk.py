"""A disk that fills up ends a run in one line; finished shards stay, and resuming completes them."""

import hashlib
import os
import resource
import shutil
import signal
import subprocess
from contextlib import contextmanager

import pytest
from commands import call

from zsq.shards.verify import verify_run, verify_shard

FAILED = 1


def arguments(out, count=16):
    teacher = ("--teacher", "embedded:digits", "--method", "zeroq", "--threads", 1, "--compile", "off")
    return (
        *("generate", *teacher, "--count", count, "--batch", 4, "--shard-size", 4),
        *("--iterations", 2, "--out", out),
    )


def hashes(folder):
    files = sorted((folder / "shards").glob("*.h5"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root mounts a small tmpfs")
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small tmpfs here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@contextmanager
def file_size_limit(size):
    """Of this process, as a quota would; the signal that comes along is ignored."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def assert_resumes(out, unbroken, capsys):
    assert call(capsys, *arguments(out), "--resume").status == 0
    verify_run(out)
    assert call(capsys, *arguments(unbroken)).status == 0
    assert hashes(out) == hashes(unbroken)


def last_complaint(outcome):
    """The lines before are the estimate, said before the disk was full."""
    assert outcome.status == FAILED
    assert outcome.out == ""
    *said, complaint = outcome.err.splitlines()
    assert all(line.startswith("zeroq: 16 images") for line in said)
    assert complaint.startswith("zsq: cannot ")
    assert "--resume" in complaint
    return complaint


@pytest.mark.parametrize("ballast_kb", [8, 20, 32, 44])
def test_disk_full_and_freed(ballast_kb, small_disk, tmp_path, capsys):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(ballast_kb * 1024))
    out = small_disk / "run"
    assert "No space left on device" in last_complaint(call(capsys, *arguments(out)))
    kept = hashes(out)
    for path in (out / "shards").glob("*.h5"):
        verify_shard(path)
    assert not list(out.rglob("*.tmp"))
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    assert_resumes(out, tmp_path / "unbroken", capsys)
    assert kept.items() <= hashes(out).items()


def test_quota_on_shards(tmp_path, capsys):
    out = tmp_path / "run"
    with file_size_limit(6000):
        complaint = last_complaint(call(capsys, *arguments(out)))
    assert "shard-00000.h5" in complaint
    assert not list(out.rglob("*.tmp"))
    assert hashes(out) == {}
    assert_resumes(out, tmp_path / "unbroken", capsys)


@pytest.mark.parametrize("command", ["import", "export"])
def test_quota_on_what_is_whole_or_absent(command, tmp_path, capsys):
    out = tmp_path / "run"
    assert call(capsys, *arguments(out)).status == 0
    given = ("import", out) if command == "import" else ("export", out, "--to", "npz")
    with file_size_limit(3000):
        outcome = call(capsys, *given, "--out", tmp_path / "copy")
    assert (outcome.status, outcome.out) == (FAILED, "")
    assert f"cannot write {tmp_path / 'copy'}" in outcome.err.splitlines()[-1]
    assert ".zsq.tmp" not in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_quota_on_the_event_log(tmp_path, capsys):
    """The log outgrows what the shards need, in the middle of the run."""
    out = tmp_path / "run"
    assert call(capsys, *arguments(tmp_path / "unbroken")).status == 0
    shard_bytes = max(path.stat().st_size for path in (tmp_path / "unbroken/shards").iterdir())
    shutil.copytree(tmp_path / "unbroken", out)
    for name in ("shards/shard-00002.h5", "shards/shard-00003.h5", "manifest.json"):
        (out / name).unlink()
    events = out / "events.jsonl"
    one_shard = sum(map(len, events.read_text().splitlines(keepends=True)[:2]))  # the estimate and a step
    events.write_text("\n" * shard_bytes)
    with file_size_limit(shard_bytes + one_shard + 50):
        complaint = last_complaint_of_resume(call(capsys, *arguments(out), "--resume"))
    assert "events.jsonl" in complaint
    assert len(hashes(out)) == 3
    shutil.rmtree(tmp_path / "unbroken")
    assert_resumes(out, tmp_path / "unbroken", capsys)


def last_complaint_of_resume(outcome):
    assert outcome.status == FAILED
    complaint = outcome.err.splitlines()[-1]
    assert complaint.startswith("zsq: cannot write ")
    return complaint
