"""How tests call the command line: in this process for speed, or as a process of its own."""

import functools
import io
import os
import signal
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from unittest import mock

from zsq.cli import main
from zsq.core.progress import Reporter

REPOSITORY = Path(__file__).parents[1]
PYTHON = sys.executable


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str

    def complaint(self):
        """The single line on standard error, without its `zsq: `."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("zsq: ")
        assert "Traceback" not in self.err
        return lines[0].removeprefix("zsq: ")


def _status(arguments):
    """Of `zsq ARGUMENTS` in this process."""
    argv = mock.patch.object(sys, "argv", ["zsq", *map(str, arguments)])
    with argv, mock.patch.object(warnings, "showwarning", warnings.showwarning):
        try:
            main()
        except SystemExit as leaving:
            return leaving.code or 0
    return 0


def call(capsys, *arguments):
    """`zsq ARGUMENTS` in this process."""
    capsys.readouterr()
    return Outcome(_status(arguments), *capsys.readouterr())


def call_for_all(*arguments):
    """The same for a fixture of many tests, which can have no capsys."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = _status(arguments)
    return Outcome(status, out.getvalue(), err.getvalue())


def run_script(code, folder, monkeypatch, capsys):
    """A script in this process, started in `folder`; what it prints."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    capsys.readouterr()
    exec(compile(code, "script.py", "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out


def environment(**extra):
    """Of a child process: one thread, this repository's zsq."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **extra}


class Spoken(Reporter):
    """A silent reporter that keeps what is said, in `lines`."""

    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def say(self, line):
        self.lines.append(line)
        super().say(line)


def start(*arguments, cwd=None):
    """`python -m zsq ARGUMENTS` as a process of its own, its output piped."""
    command = [PYTHON, "-m", "zsq", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(),
        stdout=pipe,
        stderr=pipe,
        text=True,
        # A test run started in the background ignores SIGINT, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run_python(code, *arguments, cwd=None, **extra):
    """A script in a process of its own; its standard output."""
    command = [PYTHON, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=environment(**extra), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def alone(test):
    """Run a test in a process of its own, where it needs one.

    On torch 2.10 threads that play ranks in other tests leave the compiler idle: it then counts nothing.
    """
    if tuple(map(int, version("torch").split(".")[:2])) > (2, 10):
        return test

    @functools.wraps(test)
    def outer(*arguments, **fixtures):
        if "ZSQ_TEST_ALONE" in os.environ:
            return test(*arguments, **fixtures)
        node = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", node]
        variables = environment(ZSQ_TEST_ALONE="1", PYTHONPATH=f"{REPOSITORY}:{REPOSITORY / 'tests'}")
        done = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True)
        assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr

    return outer
