"""Ctrl-C ends a run in one line; what is finished stays, and resuming completes it."""

import hashlib
import signal
import time

import pytest
from commands import call, start

from zsq.shards.verify import verify_run, verify_shard

INTERRUPTED = 130


def arguments(out, iterations=8):
    teacher = ("--teacher", "embedded:digits", "--method", "zeroq", "--threads", 1, "--compile", "off")
    size = ("--count", 160, "--batch", 4, "--shard-size", 4, "--iterations", iterations)
    return ("generate", *teacher, *size, "--out", out)


def hashes(folder):
    files = sorted((folder / "shards").glob("*.h5"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_interrupt_of_a_running_command(tmp_path, capsys):
    out = tmp_path / "run"
    process = start(*arguments(out))
    while len(hashes(out)) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED
    assert printed == ""
    estimate, line = said.splitlines()
    assert estimate.startswith("zeroq: 160 images")
    assert line == "zsq: interrupted; what is finished is kept, --resume continues"
    kept = hashes(out)
    assert 2 <= len(kept) < 40
    for path in (out / "shards").glob("*.h5"):
        verify_shard(path)
    assert not list(out.rglob("*.tmp"))
    assert call(capsys, *arguments(out), "--resume").status == 0
    verify_run(out)
    assert call(capsys, *arguments(tmp_path / "unbroken")).status == 0
    assert hashes(out) == hashes(tmp_path / "unbroken")
    assert kept.items() <= hashes(out).items()


@pytest.mark.parametrize("where", ["zsq.teacher.load_teacher", "zsq.core.files.os.fsync"])
def test_interrupt_anywhere_is_one_line(where, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("zsq.synthesize.load_teacher" if "teacher" in where else where, interrupt)
    outcome = call(capsys, *arguments(tmp_path / "run", iterations=1))
    assert outcome.status == INTERRUPTED
    assert outcome.err.splitlines()[-1].startswith("zsq: interrupted")
    assert not list(tmp_path.rglob("*.tmp"))
