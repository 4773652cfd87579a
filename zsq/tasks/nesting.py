"""Outputs of a network, whatever holds them: a tensor, a dict, list, tuple, dataclass or any object."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

# One tensor, or dicts, lists and tuples of such.
Outputs = Any

MAX_DEPTH = 8


def plain(outputs: Any, depth: int = MAX_DEPTH) -> Outputs:
    """`outputs` with mappings, dataclasses and other objects as dicts, without anything but tensors.

    None where there is no tensor. What refers to itself ends after `depth` levels.
    """
    if isinstance(outputs, Tensor) or depth == 0:
        return outputs if isinstance(outputs, Tensor) else None
    if isinstance(outputs, list | tuple) and not hasattr(outputs, "_fields"):
        kept = [part for part in (plain(item, depth - 1) for item in outputs) if part is not None]
        return type(outputs)(kept) if kept else None
    found = {key: plain(item, depth - 1) for key, item in _entries(outputs).items()}
    return {key: part for key, part in found.items() if part is not None} or None


def named_tensors(outputs: Outputs, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """(dotted path, tensor) of every tensor in what `plain` returns; the path of a lone tensor is empty."""
    if isinstance(outputs, Tensor):
        yield prefix, outputs
        return
    items = enumerate(outputs) if isinstance(outputs, list | tuple) else (outputs or {}).items()
    for key, part in items:
        yield from named_tensors(part, f"{prefix}.{key}" if prefix else str(key))


def mapped(function: Callable[[Tensor], Tensor], outputs: Outputs) -> Outputs:
    """The same nesting with `function` of every tensor."""
    if isinstance(outputs, Tensor):
        return function(outputs)
    if isinstance(outputs, list | tuple):
        return type(outputs)(mapped(function, part) for part in outputs)
    return {key: mapped(function, part) for key, part in outputs.items()}


def pick(outputs: Any, path: str) -> Any:
    """What stands at the dotted `path` of keys, attributes and indices.

    Raises:
        KeyError: with the part of the path at which nothing stands.
    """
    for part in path.split("."):
        outputs = _pick(outputs, part)
    return outputs


def shapes(outputs: Any) -> str:
    """`logits (1, 10), aux.0 (1, 5)`: every tensor inside."""
    found = [f"{name or 'a tensor'} {tuple(tensor.shape)}" for name, tensor in named_tensors(plain(outputs))]
    return ", ".join(found) or f"a {type(outputs).__name__} without a tensor"


def _entries(outputs: Any) -> Mapping[Any, Any]:
    if isinstance(outputs, Mapping):
        return outputs
    names = getattr(outputs, "_fields", None)
    if isinstance(outputs, tuple) and names is not None:
        return dict(zip(names, outputs, strict=True))
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        return {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    return getattr(outputs, "__dict__", {})


def _pick(outputs: Any, part: str) -> Any:
    entries = _entries(outputs) if not isinstance(outputs, Tensor) else {}
    if part in entries:
        return entries[part]
    if part.lstrip("-").isdigit():
        index = int(part)
        if index in entries:
            return entries[index]
        if isinstance(outputs, list | tuple) and -len(outputs) <= index < len(outputs):
            return outputs[index]
    raise KeyError(part)
