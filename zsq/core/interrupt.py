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
# What was interrupted should be over by then; else a callback has swallowed the interrupt.
PATIENCE_SECONDS = 10.0
AGAIN_SECONDS = 0.05
LINE = "zsq: interrupted"
KEPT = "; what is finished is kept, --resume continues"
_can_resume = False


def can_resume() -> None:
    """Said by a command that takes up what an earlier call of it finished: from now on, who ends it early is
    told so."""
    global _can_resume
    _can_resume = True


def kept() -> str:
    """`KEPT` where the command that runs has said so."""
    return KEPT if _can_resume else ""


@contextmanager
def one_line_at_interrupt() -> Iterator[None]:
    """Leave with the line where the block is interrupted, also where that made another error of it, as a
    callback does. An import is finished first.

    A second Ctrl-C, while the first still cleans up, ends the process at once, and so does one that something
    swallows, after `PATIENCE_SECONDS`: what is left is removed by whoever writes there next.
    """
    global _can_resume
    seen = _can_resume = False
    watch = threading.Timer(PATIENCE_SECONDS, _leave)
    watch.daemon = True

    def first(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        if _imports(frame):
            # Native code that an import runs may end the process over an exception, or swallow it.
            again = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), signal.SIGINT))
            again.daemon = True
            again.start()
            return
        seen = True
        signal.signal(signal.SIGINT, _at_once)
        watch.start()
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
        print(LINE + kept(), file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        watch.cancel()
        if ours:
            signal.signal(signal.SIGINT, before)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _at_once(number: int, frame: FrameType | None) -> None:
    _leave()


def _leave() -> None:
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
    os.write(2, f"{show_cursor}{LINE}{kept()}\n".encode())
    os._exit(INTERRUPTED)
