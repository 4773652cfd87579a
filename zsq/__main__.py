"""`python -m zsq`, the command `zsq`, and what `torchrun -m zsq` starts."""

import signal

from zsq.core.interrupt import one_line_at_interrupt


def main() -> None:
    """The command line; Ctrl-C is one line from the first import on."""
    try:
        with one_line_at_interrupt():
            from zsq.cli import main as run

            run()
    finally:
        # All is said: leaving takes a moment more, and has nothing to be interrupted.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
