"""Ctrl-C ends a run in one line; what is finished stays, and resuming completes it."""

import hashlib
import os
import signal
import subprocess
import time

import pytest
from commands import PYTHON, call, environment

from zsq.core.interrupt import KEPT, LINE
from zsq.shards.verify import verify_run, verify_shard

INTERRUPTED = 130
MAIN = "from zsq.__main__ import main; main()"


def arguments(out, iterations=8):
    teacher = ("--teacher", "embedded:digits", "--method", "zeroq", "--threads", 1, "--compile", "off")
    size = ("--count", 16, "--batch", 4, "--shard-size", 4, "--iterations", iterations)
    return ("generate", *teacher, *size, "--out", out)


def hashes(folder):
    files = sorted((folder / "shards").glob("*.h5"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# Stops where the third shard's images would be made, until somebody interrupts.
HELD = """
import time
from zsq.engine.invert import InversionMethod
synthesize = InversionMethod.synthesize
def held(self, group, log):
    if group.index == 2:
        print("held", flush=True)
        time.sleep(600)
    return synthesize(self, group, log)
InversionMethod.synthesize = held
"""


def test_interrupt_of_a_running_command(tmp_path, capsys):
    out = tmp_path / "run"
    process = started(HELD + MAIN, *arguments(out))
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=300)
    assert process.returncode == INTERRUPTED
    assert printed == ""
    lines = said.splitlines()
    assert lines[0].startswith("zeroq: 16 images")
    assert lines[-1] == LINE + KEPT == "zsq: interrupted; what is finished is kept, --resume continues"
    assert "Traceback" not in said
    kept = hashes(out)
    assert len(kept) == 2
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


# Interrupts itself where a module is imported for the first time.
AT_IMPORT = """
import os, signal, sys
def interrupt(event, arguments):
    if event == "import" and arguments[0] == "MODULE":
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(interrupt)
"""


@pytest.mark.parametrize("module", ["zsq.cli", "torch", "zsq.synthesis.synthesize"])
def test_interrupt_while_modules_are_imported(module, tmp_path):
    code = AT_IMPORT.replace("MODULE", module) + MAIN
    process = started(code, *arguments(tmp_path / "run", iterations=9999))
    said = process.communicate(timeout=300)[1].splitlines()
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
    assert process.communicate(timeout=50)[1] == f"{LINE}\n"
    assert process.returncode == INTERRUPTED


def test_an_interrupt_that_is_swallowed_ends_the_process_after_a_while():
    code = """
import time
from zsq.core import interrupt
interrupt.PATIENCE_SECONDS = 0.5
with interrupt.one_line_at_interrupt():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        pass
    time.sleep(60)
"""
    process = started(code)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=50)[1].splitlines()
    assert (process.returncode, said) == (INTERRUPTED, [LINE])
