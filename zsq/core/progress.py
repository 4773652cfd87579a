"""One stream of progress: a rich bar on a terminal, plain lines in a log, `events.jsonl` on disk."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from zsq.core.errors import OptionError, StorageError
from zsq.core.files import append_regular
from zsq.core.wording import printable

LINE_EVERY_SECONDS = 10.0


class EventLog:
    """Appends one JSON object per event to a file; a torn last line (a killed run) is harmless."""

    def __init__(self, path: Path | None) -> None:
        """`path`: the run's events.jsonl, None to write nothing."""
        self.path = path

    def write(self, event: str, **values: Any) -> None:
        """Append `event` with the time and its values."""
        if self.path is None:
            return
        record = {"time": round(time.time(), 3), "event": event, **values}
        append_line(self.path, json.dumps(record))


def append_line(path: Path, line: str) -> None:
    """Add one line to a file.

    Raises:
        StorageError: the disk refused.
    """
    try:
        append_regular(path, f"{line}\n".encode())
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror}",
            remedy="free disk space or choose another folder",
        ) from None


class Job:
    """The StepLog of one piece of work of known size: moves the bar, or prints a line every 10 s."""

    def __init__(self, title: str, total: int, console: Console, bar: Progress | None, events: EventLog):
        """`total` in the units that `advance` counts."""
        self.title, self.total, self.console, self.bar, self.events = title, total, console, bar, events
        self.done = 0
        self.started = self.printed = time.monotonic()
        self.task: TaskID | None = bar.add_task(title, total=total, losses="") if bar else None

    def advance(self, amount: int, **values: float) -> None:
        """`amount` more is done; `values` are the latest losses."""
        self.done += amount
        self.events.write("step", title=self.title, done=self.done, total=self.total, **values)
        losses = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self.bar is not None and self.task is not None:
            latest: dict[str, Any] = {"losses": losses} if values else {}
            self.bar.update(self.task, advance=amount, **latest)
            return
        now = time.monotonic()
        if now - self.printed >= LINE_EVERY_SECONDS:
            self.printed = now
            left = (now - self.started) * (self.total - self.done) / max(self.done, 1)
            self.console.print(
                f"{self.title}: {self.done}/{self.total}, {duration(left)} left {losses}",
                highlight=False,
                markup=False,
            )


class Reporter:
    """Where a command speaks: `say` prints a line to standard error, `job` shows progress."""

    def __init__(self, events: Path | None = None, quiet: bool = False) -> None:
        """`events`: an events.jsonl to append to; `quiet`: print nothing."""
        self.console = Console(file=sys.stderr, quiet=quiet, soft_wrap=True)
        self.events = EventLog(events)

    def logging_to(self, events: Path | None) -> Self:
        """A reporter that speaks in the same place and appends its events to another file."""
        other = copy.copy(self)
        other.events = EventLog(events)
        return other

    def say(self, line: str) -> None:
        """One line, also in the event log."""
        self.console.print(printable(line), highlight=False, markup=False)
        self.events.write("say", text=line)

    @contextmanager
    def job(self, title: str, total: int) -> Iterator[Job]:
        """A StepLog for `total` units of work."""
        if not self.console.is_terminal or self.console.quiet:
            yield Job(title, total, self.console, None, self.events)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}", markup=False),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            yield Job(title, total, self.console, bar, self.events)


def reporter_or_silent(given: Reporter | None) -> Reporter:
    """What is given, a silent one in place of None.

    Raises:
        OptionError: it is no Reporter.
    """
    if given is None:
        return Reporter(quiet=True)
    if not isinstance(given, Reporter):
        found, wanted = type(given).__name__, "a zsq.core.progress.Reporter, or None for silence"
        raise OptionError(f"reporter: a {found}", wanted)
    return given


def duration(seconds: float) -> str:
    """`95` -> "1 min 35 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
