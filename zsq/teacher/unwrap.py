"""A network's tensors out of what a checkpoint holds, without the entry around them and prefixes of names.

Entries are compared with the network by names and shapes. No tensor is read, and no memory taken.
"""

from __future__ import annotations

import itertools
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zsq.core.errors import MismatchError

# Where several entries fit, these are taken before others.
_ENTRIES = ("model", "net", "state_dict", "model_state_dict", "ema", "params")

# Of DataParallel, torch.compile, and a network that is an attribute of another.
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")

# What the profiler thop leaves in a network.
_LEFT_OVER = frozenset({"total_ops", "total_params"})

# BN's counter has no effect in eval mode.
_COUNTER = "num_batches_tracked"

MAX_DEPTH = 4
_MAX_PREFIXES = 4

_short = reprlib.Repr()
_short.maxstring = 60


@dataclass(frozen=True)
class Reading:
    """One way to read a checkpoint: the tensors of the entry at `keys`, without `prefix` before every name.

    `ignored` are the endings of the names that were left out.
    """

    keys: tuple[str, ...]
    prefix: str
    ignored: frozenset[str]
    content: dict[Any, Any]

    @property
    def entry(self) -> str:
        """The keys as `weights_key` takes them."""
        return ".".join(self.keys)

    def fit(self, wanted: Mapping[str, Tensor]) -> tuple[int, int, bool, int]:
        """Ranks readings: tensors of the network that are there; of these in their shape; nothing else there.
        The number of tensors ranks those that have none of the network's."""
        tensors = {name: value for name, value in self.content.items() if isinstance(value, Tensor)}
        found = [name for name in tensors if name in wanted and not is_counter(name)]
        same = sum(tensors[name].shape == wanted[name].shape for name in found)
        others = any(name not in wanted and not is_counter(name) for name in self.content)
        return len(found), same, not others, 0 if found else len(tensors)

    @property
    def preference(self) -> tuple[bool, bool, int]:
        """Ranks readings that fit equally: averaged weights, a usual name, near the top."""
        averaged = any("ema" in re.split(r"\W|_", key) for key in self.keys)
        return averaged, bool(self.keys) and self.keys[-1] in _ENTRIES, -len(self.keys)


def unwrap(
    content: Mapping[Any, Any], wanted: Mapping[str, Tensor] | None, key: str | None, path: Path
) -> tuple[dict[Any, Any], str]:
    """The entry of `content` that fits `wanted`, the network's tensors, and a line of what was taken off.

    Without `wanted`, the entry with the most tensors, without any prefix. Where nothing was, no line.

    Raises:
        MismatchError: `content` has no entry `key`.
    """
    keys = () if key is None else tuple(key.split("."))
    chosen = _chosen_entry(content, keys, path)
    readings = [_best_of_entry(*entry, wanted) for entry in _entries(chosen, keys)]
    if not readings:
        return dict(chosen), ""
    fits = [reading.fit(wanted or {}) for reading in readings]
    best = max(fits)
    equal = [reading for reading, fit in zip(readings, fits, strict=True) if fit == best]
    taken = max(equal, key=lambda reading: reading.preference)
    others = [reading.entry for reading in equal if reading is not taken] if best[0] else []
    return taken.content, "; ".join(_taken_off(taken, others))


def is_counter(name: Any) -> bool:
    """Whether it is BN's `num_batches_tracked`."""
    return _ending(name) == _COUNTER


def three_of(names: Iterable[Any]) -> str:
    """The first three, quoted and cut to length."""
    return ", ".join(_short.repr(name) for name in itertools.islice(names, 3))


def _chosen_entry(content: Mapping[Any, Any], keys: tuple[str, ...], path: Path) -> Mapping[Any, Any]:
    entry: Any = content
    for key in keys:
        entry = entry.get(key) if isinstance(entry, Mapping) else None
    if isinstance(entry, Mapping) and entry:
        return entry
    names = [".".join(found) for found, _ in _entries(content, ()) if found]
    there = f"one of {three_of(names)}" if names else "none: its tensors stand in no entry"
    raise MismatchError(f"{path} has no entry {_short.repr('.'.join(keys))}", there, "correct weights_key")


def _entries(
    content: Mapping[Any, Any], keys: tuple[str, ...]
) -> list[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Every mapping in `content`, which is at `keys`, that holds a tensor. A mapping that stands in several
    places counts once, so that no file takes longer than its length."""
    found, seen = [], set()
    level = [(keys, content)]
    for _ in range(MAX_DEPTH + 1):
        deeper = []
        for where, mapping in level:
            if id(mapping) in seen:
                continue
            seen.add(id(mapping))
            if any(isinstance(value, Tensor) for value in mapping.values()):
                found.append((where, mapping))
            deeper += [
                ((*where, key), value)
                for key, value in mapping.items()
                if isinstance(key, str) and isinstance(value, Mapping)
            ]
        level = deeper
    return found


def _best_of_entry(
    keys: tuple[str, ...], entry: Mapping[Any, Any], wanted: Mapping[str, Tensor] | None
) -> Reading:
    """The reading that takes off as little as the network's own names ask for."""
    readings = _readings(keys, entry, wanted or {})
    return list(readings)[-1] if wanted is None else max(readings, key=lambda reading: reading.fit(wanted))


def _readings(
    keys: tuple[str, ...], entry: Mapping[Any, Any], wanted: Mapping[str, Tensor]
) -> Iterator[Reading]:
    endings = _LEFT_OVER - {_ending(name) for name in wanted}
    content = {name: value for name, value in entry.items() if _ending(name) not in endings}
    ignored = endings & {_ending(name) for name in entry}
    prefix = ""
    yield Reading(keys, prefix, ignored, content)
    for _ in range(_MAX_PREFIXES):
        common = next((text for text in _PREFIXES if content and _all_carry(content, text)), None)
        if common is None:
            return
        content = {name.removeprefix(common): value for name, value in content.items()}
        prefix += common
        yield Reading(keys, prefix, ignored, content)


def _all_carry(names: Iterable[Any], prefix: str) -> bool:
    return all(isinstance(name, str) and name.startswith(prefix) for name in names)


def _ending(name: Any) -> Any:
    return name.rpartition(".")[2] if isinstance(name, str) else name


def _taken_off(taken: Reading, others: list[str]) -> Iterator[str]:
    if taken.keys:
        yield f"entry {_short.repr(taken.entry)} is taken"
    if others:
        yield f"{three_of(others)} would fit too: weights_key in a teacher card takes another"
    if taken.prefix:
        yield f"'{taken.prefix}' is taken off every name"
    if taken.ignored:
        yield f"{' and '.join(sorted(taken.ignored))} are ignored"
    dtypes = {value.dtype for value in taken.content.values() if isinstance(value, Tensor)}
    halves = dtypes & {torch.float16, torch.bfloat16}
    if halves:
        yield f"{' and '.join(sorted(str(dtype) for dtype in halves))} weights are read as float32"
