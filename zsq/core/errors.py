"""What can go wrong and is not a defect of zsq: one class per cause, one line per message.

Every message says what was found, what was expected and what to do. The command line prints it without a
traceback and leaves with `exit_code`. It is 2 where the call cannot work, also because a file that it names
is missing, damaged or of something else. It is 1 where something failed that the call does not name: the
machine, the network, another process; and where a check found what it looks for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from zsq.core.wording import did_you_mean, one_line

MOST_NAMES = 12  # that one line says

# What a library was given in memory, at an address that is another in every process.
_OBJECT = re.compile(r" ?<[\w.]+ object at 0x[0-9a-f]+>")


def first_line(error: BaseException) -> str:
    """What an error of another library says, on one line, without addresses; its kind where it says
    nothing."""
    text = _OBJECT.sub("", str(error).strip("'\""))
    return next(iter(text.splitlines()), "") or type(error).__name__


class ZsqError(Exception):
    """Base of every error a user can meet; `exit_code` is the process's exit status.

    Example:
        >>> try:
        ...     zsq.load_teacher("resnet1")
        ... except zsq.ZsqError as error:
        ...     print(error, error.exit_code)
        unknown teacher 'resnet1'; expected a name of `zsq list teachers`; did you mean ...? 2
    """

    exit_code = 1

    def __init__(self, found: str, expected: str = "", remedy: str = "") -> None:
        """Join the parts into one line."""
        message = "; ".join(part for part in (found, expected and f"expected {expected}", remedy) if part)
        super().__init__(one_line(message))


class UsageError(ZsqError):
    """An option, or a combination of options, that cannot work."""

    exit_code = 2


class OptionError(UsageError):
    """An option with a value it cannot take, or one that has no effect."""


class UnknownNameError(OptionError):
    """A method, teacher, student, pass, recipe, format or tool that does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str], command: str) -> None:
        """Name the nearest of `known`, and all where they are few, else the `command` that prints them."""
        known = list(known)
        few = len(known) <= MOST_NAMES
        expected = f"one of {', '.join(known)}" if few else f"a name of `{command}`"
        super().__init__(f"unknown {kind} '{name}'", expected, did_you_mean(name, known))


class MismatchError(UsageError):
    """Two inputs that do not belong together: images and teacher, weights and architecture."""


class NoBatchNormError(UsageError):
    """A method that matches BN statistics was given a teacher without BN."""


class NoAttentionError(UsageError):
    """A method that reads attention was given a teacher without any, or with none that zsq can read."""


class UntraceableError(UsageError):
    """A network whose graph cannot be captured, or an operation that no quantizer handles."""


class RunFolderError(UsageError):
    """A run folder that is in the way, or that was made with other options."""


class ImagesError(UsageError):
    """A source of images that is missing, empty or not an image source."""


class MissingExtraError(UsageError):
    """An optional package that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        """Name the extra that brings it."""
        remedy = f"in the folder of zsq: pip install '.[{extra}]'"
        super().__init__(f"{package} is not installed", f"the extra '{extra}'", remedy)


class WeightsError(UsageError):
    """Weights that are missing, unreadable, unsafe or of another format."""


class StudentFileError(UsageError):
    """A saved student that is missing, truncated, altered or not in the format."""


class ShardError(UsageError):
    """A shard or manifest that is truncated, altered or not in the format."""


class ExportError(ZsqError):
    """An export that was altered or that shows other images than its source, or a network that the format
    cannot hold."""


class DownloadError(ZsqError):
    """A download that failed, or that brought another file."""


class StorageError(ZsqError):
    """The disk refused a write, or did not keep it."""


class NonFiniteError(ZsqError):
    """A teacher's output, a loss or an image that is NaN or infinite."""


class MemoryShortageError(ZsqError):
    """More memory is needed than the machine or its device has."""


class SealError(ZsqError):
    """A sealed run that wanted to open what it does not need."""

    def __init__(self, found: str) -> None:
        """Say what it may open."""
        super().__init__(found, "the teacher's files and its own alone", "run without --sealed to allow it")


class ProcessesError(ZsqError):
    """Another process of the same job failed or is gone."""

    def __init__(self, found: str) -> None:
        """Say what is left to do."""
        super().__init__(found, remedy="what is finished is kept, --resume continues")


class TeacherAccuracyError(ZsqError):
    """A teacher that measures another accuracy than its card or recipe states."""
