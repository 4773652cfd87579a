"""Ctrl-C: one line and status 130, whatever it interrupts."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
LINE = "zsq: interrupted; what is finished is kept, --resume continues"


@contextmanager
def one_line_at_interrupt() -> Iterator[None]:
    """Leave with the line where the block is interrupted, also where that made another error of it, as an
    import or a callback does. A second Ctrl-C, while the first still cleans up, ends the process at once:
    what it leaves is removed by whoever writes there next."""
    seen = False

    def first(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen = True
        signal.signal(signal.SIGINT, _at_once)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    # One that is ignored, as in the background of a script, stays so.
    ours = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, first)
    try:
        yield
    except BaseException as error:
        said = isinstance(error, SystemExit) and error.code == INTERRUPTED  # by such a block inside this one
        if said or not (seen or isinstance(error, KeyboardInterrupt)):
            raise
        print(LINE, file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def _at_once(number: int, frame: FrameType | None) -> None:
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
    os.write(2, f"{show_cursor}{LINE}\n".encode())
    os._exit(INTERRUPTED)
