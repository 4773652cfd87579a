"""What callers give, as the configuration models take it; and where a run goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zsq.config import RUNTIME, RuntimeConfig
from zsq.core.errors import OptionError
from zsq.core.files import input_path
from zsq.core.processes import Processes
from zsq.runfolder import OUTPUTS, folder_out, latest_folder, next_folder
from zsq.widths import Rows, read_widths

RuntimeGiven = RuntimeConfig | Mapping[str, Any] | None


def text_of(path: str | Path | None) -> str | None:
    """A path as a configuration holds it; what is none stays as it is, and the configuration refuses it."""
    return str(path) if isinstance(path, Path) else path


def several(values: Any) -> tuple[Any, ...]:
    """A sequence as a configuration holds it, of one where a single value is given."""
    single = isinstance(values, str | Path) or not isinstance(values, Iterable)
    return (values,) if single else tuple(values)


def teacher_of(teacher: str | Path) -> str:
    """A teacher's name; a path is that of its card. What is neither stays as it is, and is refused later."""
    return f"file:{teacher}" if isinstance(teacher, Path) else teacher


def path_of(path: str | Path | None) -> Path | None:
    """A path to read from."""
    return None if path is None else input_path(path, "weights")


def images_given(fit: str | None, class_names: str | Path | None) -> dict[str, Any]:
    """The fields of ImagesConfig."""
    return {"fit": fit, "class_names": text_of(class_names)}


def check_read(given: Mapping[str, Any], options: str, *sources: object) -> None:
    """Refuse a wish how to read images where none of `sources` names any; they are those of `options`.

    Raises:
        OptionError: there is one.
    """
    for name, value in given.items() if all(source is None for source in sources) else ():
        if value is not None:
            found = f"--{name.replace('_', '-')} {value} without {options}"
            raise OptionError(found, "images that are read with it")


def runtime_given(runtime: RuntimeGiven, default: RuntimeConfig = RUNTIME) -> RuntimeConfig:
    """What to compute with; `default` where nothing is said.

    Raises:
        OptionError: something else than a RuntimeConfig or its fields, or fields that it does not have.
    """
    if runtime is None or isinstance(runtime, RuntimeConfig):
        return default if runtime is None else runtime
    if not isinstance(runtime, Mapping):
        raise OptionError(f"runtime {runtime!r}", "a dict such as {'device': 'cpu', 'threads': 4}")
    return type(default)(**runtime)


def widths_given(widths: str | Path | Rows | None) -> dict[str, int]:
    """Rows and their widths as a configuration holds them, where a file has them too."""
    if widths is None:
        return {}
    if not isinstance(widths, str | Path | Mapping):
        raise OptionError(f"widths {widths!r}", "rows and their bits, or a file of them")
    return dict(widths) if isinstance(widths, Mapping) else read_widths(widths)


def folder_of(out: str | Path | None, name: str, resume: bool) -> Path:
    """`out`, or a folder called `name` below `OUTPUTS`: the last of them to resume, else a new one."""
    if out is not None:
        return folder_out(out)
    base = OUTPUTS / name
    # Of several processes the first decides: the others may find its folder already.
    found = latest_folder(base) if resume else next_folder(base)
    return folder_out(Processes.started().agreed(str(found)))
