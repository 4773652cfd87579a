"""The processes of one job: whatever is split over them is split by rank and count, or taken in turn.

They meet in a store of torch.distributed, which the launcher or the first of them keeps. No tensor is ever
exchanged: each process computes pieces of its own, whose bytes are the same wherever they are computed.
"""

from __future__ import annotations

import itertools
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from zsq.core.errors import ProcessesError, first_line
from zsq.core.progress import Reporter, reporter_or_silent

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore

# The others should have begun by then.
MEET_SECONDS = 600.0
# Between two looks for the others.
LOOK_SECONDS = (0.005, 0.25)
ENDED = "ended"  # the key of the store under which a process says that it failed
Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """This process among those of one job; one alone by default.

    `local_count` are those on this machine. `launched`: something started the processes as ranks, even if it
    is one rank. `address` is where they meet. All of them make the same calls in the same order.

    Raises:
        ProcessesError: by every call that looks for the others, once one of them failed.
    """

    rank: int = 0
    count: int = 1
    local_count: int = 1
    launched: bool = False
    store: Store | None = None
    address: str | None = None
    numbers: Iterator[int] = field(default_factory=itertools.count, compare=False, repr=False)

    @classmethod
    def started(cls) -> Processes:
        """Those that `torchrun`, `accelerate launch` or `--jobs` started."""
        return _joined if _joined is not None else _of_environment()

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks, and writes what is written once."""
        return self.rank == 0

    def threads(self, asked: int | None) -> int | None:
        """Threads per process: 1 where nothing is asked of ranks, so that no number of them changes bytes."""
        return asked or (1 if self.launched else None)

    def spoken(self, reporter: Reporter | None) -> Reporter:
        """`reporter` in the first process, a silent one in the others."""
        given = reporter_or_silent(reporter)
        return given if self.first else Reporter(quiet=True)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.store is None:
            return
        key = f"met {next(self.numbers)}"
        self._until(key, self.count)
        # Who keeps the store leaves last.
        self._until(f"{key} left", self.count if self.first else 1)

    def agreed(self, value: Any) -> Any:
        """What the first process gives here, as JSON holds it, in all."""
        if self.store is None:
            return value
        key = f"said {next(self.numbers)}"
        if self.first:
            with self._lost_said():
                self.store.set(key, json.dumps(value))
            return value
        self._look(lambda store: store.check([key]))
        with self._lost_said():
            return json.loads(self.store.get(key))

    def gathered(self, value: Any) -> list[Any]:
        """What each process gives here, as JSON holds it, by rank; empty in all but the first process."""
        if self.store is None:
            return [value]
        key = f"given {next(self.numbers)}"
        with self._lost_said():
            self.store.set(f"{key} {self.rank}", json.dumps(value))
        self.wait()
        ranks = range(self.count if self.first else 0)
        with self._lost_said():
            return [json.loads(self.store.get(f"{key} {rank}")) for rank in ranks]

    def taken(self, items: Sequence[Item]) -> Iterator[Item]:
        """Items that this process takes: each goes to the one that asks first. All name the same items."""
        if self.store is None:
            yield from items
            return
        key = f"taken {next(self.numbers)}"
        while True:
            self.check()
            with self._lost_said():
                index = self.store.add(key, 1) - 1
            if index >= len(items):
                return
            yield items[index]

    def counted(self) -> Callable[[], int]:
        """A function to call after each finished piece: how many pieces the job finished since the last call
        of it in this process."""
        store, key, seen = self.store, f"done {next(self.numbers)}", 0
        if store is None:
            return lambda: 1

        def more() -> int:
            nonlocal seen
            with self._lost_said():
                before, seen = seen, store.add(key, 1)
            return seen - before

        return more

    def check(self) -> None:
        """Raise where another process failed."""
        if self.store is None:
            return
        with self._lost_said():
            message = self.store.get(ENDED).decode() if self.store.check([ENDED]) else None
        if message is not None:
            raise ProcessesError(message)

    @contextmanager
    def job(self) -> Iterator[None]:
        """Tell the others where the block fails, so that they end too. All see the same to warn of, and the
        first alone says it."""
        try:
            with nullcontext() if self.first else warnings.catch_warnings(action="ignore"):
                yield
        except ProcessesError:
            raise
        except BaseException as error:
            self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """Say that this process fails by `error`."""
        if self.store is None:
            return
        with suppress(RuntimeError):  # nobody may be left to be told
            self.store.set(ENDED, f"process {self.rank} of {self.count} failed ({first_line(error)})")

    def _until(self, key: str, wanted: int) -> None:
        assert self.store is not None
        with self._lost_said():
            self.store.add(key, 1)
        if wanted > 1:
            self._look(lambda store: store.add(key, 0) >= wanted)

    def _look(self, there: Callable[[Store], bool]) -> None:
        """Look again and again until `there(store)`."""
        assert self.store is not None
        pause, longest = LOOK_SECONDS
        while True:
            with self._lost_said():
                if there(self.store):
                    return
            self.check()
            time.sleep(pause)
            pause = min(2 * pause, longest)

    @contextmanager
    def _lost_said(self) -> Iterator[None]:
        """One line where the store is gone with the process that kept it."""
        try:
            yield
        except ProcessesError:
            raise
        except RuntimeError:
            raise ProcessesError("another process of this job is gone") from None


_joined: Processes | None = None


@contextmanager
def failing_together() -> Iterator[None]:
    """`Processes.started().job()`, for a block or as a decorator of what a job calls."""
    with Processes.started().job():
        yield


@contextmanager
def joined(processes: Processes) -> Iterator[Processes]:
    """`Processes.started()` are these within the block."""
    global _joined
    before, _joined = _joined, processes
    try:
        yield processes
    finally:
        _joined = before


def take_device(local_rank: int) -> None:
    """Work on the GPU of the process with this number on its machine: its own where there are enough."""
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())


@cache
def _of_environment() -> Processes:
    """From the variables that `torchrun` sets, and `accelerate launch` and others after it."""
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        return Processes()
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    take_device(local_rank)
    local_count = min(count, int(os.environ.get("LOCAL_WORLD_SIZE", count)))
    if count == 1:
        return Processes(launched=True)
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return Processes(rank, count, local_count, True, _store_of_environment(rank), address)


def _store_of_environment(rank: int) -> Store:
    """The launcher's own store where it keeps one, else that of rank 0."""
    from torch.distributed import PrefixStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = connected(host, port, keeps=rank == 0 and not kept)
    except RuntimeError:
        raise ProcessesError(f"the first process at {host}:{port} does not answer") from None
    # After a restart by the launcher nothing said before counts.
    return PrefixStore(f"zsq {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def connected(host: str, port: int, *, keeps: bool) -> TCPStore:
    """The store at an address; `keeps`: this process is the one that keeps it.

    Raises:
        RuntimeError: nobody answers.
    """
    from torch.distributed import TCPStore

    return TCPStore(
        host,
        port,
        is_master=keeps,
        timeout=timedelta(seconds=MEET_SECONDS),
        wait_for_workers=False,
        multi_tenant=keeps and port != 0,
    )
