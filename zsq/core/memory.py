"""How much memory there is, and what running out of it looks like."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zsq.core.errors import MemoryShortageError

SHORTAGES = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


def available_bytes(root: Path = Path("/")) -> int:
    """Main memory that this process can still take: the least of what machine and control groups leave."""
    found = [_machine(root), _cgroup(root)]
    return min(number for number in found if number is not None)


def device_bytes(device: str) -> int | None:
    """Free memory of a CUDA device; None for the CPU, which has none of its own."""
    import torch

    return torch.cuda.mem_get_info(device)[0] if torch.device(device).type == "cuda" else None


def sharing(device: str, processes: int) -> int:
    """How many of `processes` on this machine work on one CUDA device at most: `cuda` is each one's own as
    long as there are some, see `zsq.core.processes.take_device`."""
    import torch

    return math.ceil(processes / torch.cuda.device_count()) if device == "cuda" else processes


def resident_bytes() -> int:
    """Main memory that this process has now, 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _machine(root: Path) -> int:
    """What can be had without swapping; all there is where the system does not say."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, LookupError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup(root: Path) -> int | None:
    """What the memory limits of this process's control groups, version 2 or 1, still allow; the page cache
    that can be dropped does not count as taken."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "-", "")
        version2 = controllers == ""
        if not version2 and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("" if version2 else "memory")
        group = top / path.lstrip("/")
        # A container sees its own group as the root, whatever its path.
        for folder in (group, *[parent for parent in group.parents if parent.is_relative_to(top)], top):
            found.append(_left(folder, version2))
    return min((number for number in found if number is not None), default=None)


def _left(folder: Path, version2: bool) -> int | None:
    limit, usage = (
        ("memory.max", "memory.current") if version2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    cache = "inactive_file" if version2 else "total_inactive_file"
    try:
        most, taken = (int((folder / name).read_text()) for name in (limit, usage))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, most - taken + int(stat.get(cache, 0)))
    except (OSError, ValueError):  # none, or "max"
        return None


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the machine or of a device."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in SHORTAGES)


@contextmanager
def shortage_said(remedy: str) -> Iterator[None]:
    """Turn running out of memory within the block into one line.

    Raises:
        MemoryShortageError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        raise MemoryShortageError("out of memory", remedy=remedy) from None
