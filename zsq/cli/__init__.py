"""The command line: joins the parts, holds no logic. Heavy imports happen inside the commands.

A command's parameters are those of the API function that it stands for; `zsq.cli.options.asked` hands them
over.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from zsq.cli.checking import audit, verify
from zsq.cli.comparing import gap, run
from zsq.cli.describing import inspect, list_
from zsq.cli.exchanging import export, import_
from zsq.cli.generating import generate
from zsq.cli.quantizing import quantize
from zsq.core.errors import StorageError, ZsqError
from zsq.core.interrupt import INTERRUPTED, kept, one_line_at_interrupt
from zsq.core.memory import is_shortage
from zsq.core.version import __version__
from zsq.core.wording import one_line

app = typer.Typer(
    help="Make calibration images from a trained network, without its training data, and quantize it with "
    "them.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# A wrong call. Newer typer has a click of its own inside, so that click's name for it is another class.
CallError: Any = typer.BadParameter.__base__

# In the order of the help.
COMMANDS: dict[str, Callable[..., None]] = {
    "generate": generate,
    "quantize": quantize,
    "gap": gap,
    "run": run,
    "list": list_,
    "inspect": inspect,
    "verify": verify,
    "export": export,
    "import": import_,
    "audit": audit,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of all commands."""


def main() -> None:
    """Entry point: every foreseeable failure is one line on standard error and an exit code."""
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        # File names need not be text of any encoding.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with one_line_at_interrupt():
        try:
            status = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
        except StorageError as error:
            _leave(f"{error}{kept()}", error.exit_code)
        except ZsqError as error:
            _leave(str(error), error.exit_code)
        except CallError as error:
            _leave(f"{error.format_message().rstrip('.')}; see `{_help_of(error)}`", error.exit_code)
        except OSError as error:
            _leave(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
        except (MemoryError, RuntimeError) as error:
            if not is_shortage(error):
                raise
            _leave("out of memory; use fewer images or a smaller batch", 1)
        # What typer makes of a Ctrl-C.
        if status == INTERRUPTED:
            raise KeyboardInterrupt
    sys.exit(status)


def _help_of(error: Any) -> str:
    """`zsq generate --help` where the call of that command is wrong."""
    command = error.ctx.info_name if error.ctx is not None and error.ctx.parent is not None else None
    return f"zsq {command} --help" if command else "zsq --help"


def _leave(message: str, status: int) -> NoReturn:
    print(f"zsq: {one_line(message)}", file=sys.stderr)
    sys.exit(status)
