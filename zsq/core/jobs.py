"""Further processes on this machine that share a call: this process is the first of them."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, TypeVar

from torch.distributed import PrefixStore, TCPStore

from zsq.core.errors import OptionError, ProcessesError, ZsqError
from zsq.core.processes import ENDED, Processes, connected, joined, take_device

HOST = "127.0.0.1"
PREFIX = "zsq 0"
MOST_JOBS = 1024
Result = TypeVar("Result")


def in_jobs(jobs: int | None, call: Callable[..., Result], **own: Any) -> Result:
    """`call(**own)` here, and `call()` in `jobs` - 1 processes beside it, which end with this one.

    Args:
        jobs: None is one process alone, as if there were none of this.
        call: something that pickles, such as a partial of a function of a module; it shares its work by
            `Processes.started()`.
        own: arguments for this process, such as a reporter.

    Raises:
        OptionError: fewer than one.
        ProcessesError: one of the others failed. ZsqError: what `call` raises here.
    """
    if jobs is None:
        return call(**own)
    if not 1 <= jobs <= MOST_JOBS:
        raise OptionError(f"--jobs {jobs}", f"1 to {MOST_JOBS}")
    if Processes.started().count > 1:
        raise OptionError("--jobs in a process that a launcher started", "one of both")
    with _others(jobs, call) as processes, joined(processes), processes.job():
        return call(**own)


@contextmanager
def _others(jobs: int, call: Callable[..., Any]) -> Iterator[Processes]:
    if jobs == 1:
        yield Processes(launched=True)
        return
    store = connected(HOST, 0, keeps=True)
    started = [_started(rank, jobs, store.port, call) for rank in range(1, jobs)]
    watches = [threading.Thread(target=_watch, args=(store.port, *each), daemon=True) for each in started]
    for watch in watches:
        watch.start()
    try:
        yield _member(store, 0, jobs)
    finally:
        for _, process in started:
            process.terminate()
        for watch in watches:
            watch.join()


def _member(store: TCPStore, rank: int, jobs: int) -> Processes:
    return Processes(rank, jobs, jobs, True, PrefixStore(PREFIX, store), f"{HOST}:{store.port}")


def _started(
    rank: int, jobs: int, port: int, call: Callable[..., Any]
) -> tuple[int, subprocess.Popen[bytes]]:
    """Process `rank`, which has read what to do."""
    with tempfile.TemporaryFile() as told:
        # The path first: with it, what is to be called can be imported.
        for part in (sys.path, (rank, jobs, port), call):
            pickle.dump(part, told)
        told.seek(0)
        # Not of this terminal's group: Ctrl-C is for the first process, which ends the others.
        command = [sys.executable, "-c", "from zsq.core.jobs import take_part; take_part()"]
        process = subprocess.Popen(command, stdin=told, env=_environment(), process_group=0)
    return rank, process


def _environment() -> dict[str, str]:
    """This process's own, with its modules."""
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
    return {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _watch(port: int, rank: int, process: subprocess.Popen[bytes]) -> None:
    """Tell all where process `rank` ends without having said why."""
    status = process.wait()
    if not status:
        return
    reason = f"signal {-status}" if status < 0 else f"status {status}"
    store = _member(connected(HOST, port, keeps=False), rank, 1).store
    assert store is not None
    if not store.check([ENDED]):
        store.set(ENDED, f"process {rank} ended ({reason})")


def _end_with_parent() -> None:
    """However it ends. Where the system has no such thing, a fit under way is finished first."""
    with suppress(AttributeError, OSError, TypeError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def take_part() -> None:
    """What a started process runs: the call that its standard input tells."""
    _end_with_parent()
    told: IO[bytes] = sys.stdin.buffer
    sys.path[:] = pickle.load(told)
    rank, jobs, port = pickle.load(told)
    take_device(rank)
    processes = _member(connected(HOST, port, keeps=False), rank, jobs)
    try:
        with joined(processes), processes.job():
            pickle.load(told)()
    except ProcessesError:
        sys.exit(1)  # said by the one that failed
    except ZsqError as error:
        sys.exit(error.exit_code)  # said by the first process
