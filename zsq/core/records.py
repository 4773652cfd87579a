"""The base of what is read from outside: options, recipes, cards, manifests, students' files."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from zsq.core.errors import OptionError
from zsq.core.files import read_regular
from zsq.core.wording import did_you_mean

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

MOST_TOML_BYTES = 2**20
MOST_CSV_BYTES = 2**20
MOST_SHOWN = 60  # characters of a wrong value

# What pydantic says in words of its own.
_WORDS = {
    "extra_forbidden": "no such key",
    "tuple_type": "Input should be a list in brackets",
    "list_type": "Input should be a list in brackets",
}

# Where the message says it all, or where the value is everything that was read.
_WITHOUT_VALUE = frozenset({"missing", "extra_forbidden", "json_invalid", "value_error"})


class Record(BaseModel):
    """Base of all: immutable, unknown keys and numbers that are not finite refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StrictRecord(Record, strict=True):
    """A record that converts nothing: the text "1" is no number."""


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The content of a TOML file, which messages call `what`.

    Raises:
        OptionError: no file that can be read, or no TOML.
    """
    try:
        return tomllib.loads(read_regular(path, MOST_TOML_BYTES).decode())
    except OSError as error:
        raise OptionError(f"{what} {path} cannot be read ({error.strerror})", "a TOML file") from None
    # Not only a TOMLDecodeError: integers of thousands of digits, thousands of brackets.
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{what} {path} is not TOML ({error})") from None


def read_csv(path: Path, what: str, columns: Sequence[str]) -> list[list[str]]:
    """The lines of a CSV file below its header, which is `columns`; messages call the file `what`. A line may
    have any number of cells.

    Raises:
        OptionError: no file that can be read, no CSV, or another header.
    """
    header_wanted = ",".join(columns)
    try:
        text = read_regular(path, MOST_CSV_BYTES).decode()
        header, *lines = [line for line in csv.reader(text.splitlines(), strict=True) if line] or [[""]]
    except OSError as error:
        raise OptionError(f"{what} {path} cannot be read ({error.strerror})", "a CSV file") from None
    except (ValueError, csv.Error) as error:
        raise OptionError(f"{what} {path} is not CSV ({error})", f"a header {header_wanted}") from None
    if [name.strip() for name in header] != list(columns):
        raise OptionError(f"{what} {path} begins with {','.join(header)[:60]!r}", f"a header {header_wanted}")
    return [[cell.strip() for cell in line] for line in lines]


def valid(kind: Any, value: Any, name: str) -> Any:
    """`value` as `kind` has it, a type with or without constraints.

    Raises:
        OptionError: it is something else.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise OptionError(f"{name}: {first_fault(error)}") from None


def first_fault(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """The first thing that is wrong, as `key: message, not VALUE`; without the key where it is the whole.

    Args:
        model: what was not valid; of a key that it does not have, the nearest that it has is said.
    """
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    message = _WORDS.get(first["type"], first["msg"].removeprefix("Value error, "))
    if first["type"] == "extra_forbidden" and model is not None:
        message += _nearest(first["loc"], model)
    value = first["input"]
    if first["type"] not in _WITHOUT_VALUE and isinstance(value, str | int | float | bool | None):
        message = f"{message}, not {_shown(value)}"
    return f"{key}: {message}" if key else message


def _nearest(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """`; did you mean 'size'?`, or nothing."""
    for part in loc[:-1]:
        field = model.model_fields.get(str(part))
        inside = [] if field is None else _models(field.annotation)
        if inside:
            model = inside[0]
        elif isinstance(part, str):
            return ""
    near = did_you_mean(str(loc[-1]), model.model_fields)
    return near and f"; {near}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _shown(value: object) -> str:
    try:
        text = repr(value)
    # Python writes no integer of more than 4,300 digits.
    except ValueError:
        return "an integer of thousands of digits"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
