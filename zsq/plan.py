"""The run as pure data: which images are made together, and which shards they end in."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from zsq.core.errors import OptionError
from zsq.core.seeding import torch_generator


@dataclass(frozen=True)
class Group:
    """Consecutive images that are made together; everything about them follows from this and the teacher."""

    index: int
    seed: int
    first_image: int
    batch_sizes: tuple[int, ...]

    @property
    def num_images(self) -> int:
        """Images in all batches of the group."""
        return sum(self.batch_sizes)

    def generator(self, purpose: str) -> torch.Generator:
        """The group's own random stream for one purpose; a fresh generator at each call."""
        return torch_generator(self.seed, self.index, purpose)


@dataclass(frozen=True)
class WorkUnit:
    """The least work that ends in whole shards: several small groups in one, or one group in several."""

    groups: tuple[Group, ...]
    first_shard: int
    shard_sizes: tuple[int, ...]

    @property
    def num_images(self) -> int:
        """Images in all groups of the unit."""
        return sum(self.shard_sizes)


@dataclass(frozen=True)
class Plan:
    """The run as data: the same for every process count, and the unit of resume.

    A set can be extended: `earlier` are the counts it had before, the oldest first. What an extension adds is
    cut into groups and shards of its own after the last ones, which stay as they are, short or not.
    """

    count: int
    batch: int
    shard_size: int
    seed: int
    batches_per_group: int | None = 1  # None: the whole set, or what an extension adds, is one group
    earlier: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse counts that make no plan."""
        for name in ("count", "batch", "shard_size"):
            if getattr(self, name) < 1:
                raise OptionError(f"--{name.replace('_', '-')} {getattr(self, name)}", "at least 1")
        if not all(before < after for before, after in pairwise((0, *self.counts))):
            raise OptionError(f"a set of {self.counts} images in turn", "each number larger than the last")
        if not 0 <= self.seed < 2**63:
            raise OptionError(f"--seed {self.seed}", "a number from 0 to 2**63 - 1")

    @property
    def counts(self) -> tuple[int, ...]:
        """Images after the first run and after each extension; the last is `count`."""
        return (*self.earlier, self.count)

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups in order."""
        return tuple(group for part in self._parts for group in part)

    @property
    def _parts(self) -> tuple[tuple[Group, ...], ...]:
        """The groups of the first run and of each extension."""
        parts: list[tuple[Group, ...]] = []
        index = 0
        for start, end in pairwise((0, *self.counts)):
            batches_each = self.batches_per_group
            per_group = end - start if batches_each is None else batches_each * self.batch
            groups = []
            for first in range(start, end, per_group):
                size = min(per_group, end - first)
                batches = tuple(min(self.batch, size - done) for done in range(0, size, self.batch))
                groups.append(Group(index, self.seed, first, batches))
                index += 1
            parts.append(tuple(groups))
        return tuple(parts)

    @property
    def units(self) -> tuple[WorkUnit, ...]:
        """Groups packed into shards of at most `shard_size` images; a larger group spans several, and an
        extension begins with a new shard."""
        units: list[WorkUnit] = []
        pending: list[Group] = []
        next_shard = filled = 0

        def close() -> None:
            nonlocal next_shard, filled
            if not pending:
                return
            sizes = tuple(min(self.shard_size, filled - done) for done in range(0, filled, self.shard_size))
            units.append(WorkUnit(tuple(pending), next_shard, sizes))
            next_shard, filled = next_shard + len(sizes), 0
            pending.clear()

        for part in self._parts:
            for group in part:
                if filled + group.num_images > self.shard_size:
                    close()
                pending.append(group)
                filled += group.num_images
            close()
        return tuple(units)

    @property
    def num_shards(self) -> int:
        """Number of shard files of the whole run."""
        last = self.units[-1]
        return last.first_shard + len(last.shard_sizes)
