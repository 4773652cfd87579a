"""Ctrl-C ends a run in one line; what is finished stays, and resuming completes it."""

import hashlib
import os
import signal
import subprocess
import time

import pytest
from commands import PYTHON, call, environment, start

from zsq.core.interrupt import KEPT, LINE
from zsq.shards.verify import verify_run, verify_shard

INTERRUPTED = 130


def arguments(out, iterations=8):
    teacher = ("--teacher", "embedded:digits", "--method", "zeroq", "--threads", 1, "--compile", "off")
    size = ("--count", 80, "--batch", 4, "--shard-size", 4, "--iterations", iterations)
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
    assert estimate.startswith("zeroq: 80 images")
    assert line == LINE + KEPT == "zsq: interrupted; what is finished is kept, --resume continues"
    kept = hashes(out)
    assert 2 <= len(kept) < 20
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
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("zsq.synthesis.resolved.load_teacher" if "teacher" in where else where, interrupt)
    outcome = call(capsys, *arguments(tmp_path / "run", iterations=1))
    assert outcome.status == INTERRUPTED
    assert outcome.err.splitlines()[-1].startswith("zsq: interrupted")
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("delay", [0.03, 0.6, 2.4])
def test_interrupt_at_any_moment_of_the_start(delay, tmp_path):
    """While zsq and torch are imported, the teacher is built, the first images are made."""
    process = started("from zsq.__main__ import main; main()", *arguments(tmp_path / "run", iterations=9999))
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == INTERRUPTED
    assert said[-1] in (LINE, LINE + KEPT)  # the latter once the command itself runs
    assert not any("Traceback" in line for line in said)


def started(code, *arguments):
    """A process that has come as far as to run `code`."""
    process = subprocess.Popen(
        [PYTHON, "-c", f"print('ready', flush=True)\n{code}", *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_an_interrupt_that_became_another_error_is_one_line(tmp_path, monkeypatch, capsys):
    """As numpy's import and some callbacks do."""

    def load(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise ImportError("numpy cannot be imported") from None

    monkeypatch.setattr("zsq.synthesis.resolved.load_teacher", load)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        outcome = call(capsys, *arguments(tmp_path / "run"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (outcome.status, outcome.err) == (INTERRUPTED, f"{LINE}{KEPT}\n")


def test_a_second_interrupt_does_not_wait():
    process = started("""
import time
from zsq.core.interrupt import one_line_at_interrupt
with one_line_at_interrupt():
    try:
        print("working", flush=True)
        time.sleep(60)
    finally:
        print("cleaning", flush=True)
        time.sleep(60)
""")
    for word in ("working", "cleaning"):
        assert process.stdout.readline() == f"{word}\n"
        process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[1] == f"{LINE}\n"
    assert process.returncode == INTERRUPTED


def test_an_interrupt_that_is_swallowed_ends_the_process_after_a_while():
    code = """
import time
from zsq.core import interrupt
interrupt.PATIENCE_SECONDS = 0.5
with interrupt.one_line_at_interrupt():
    try:
        print("ready", flush=True)
        time.sleep(30)
    except KeyboardInterrupt:
        pass
    time.sleep(30)
"""
    process = started(code)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=20)[1].splitlines()
    assert (process.returncode, said) == (INTERRUPTED, [LINE])
