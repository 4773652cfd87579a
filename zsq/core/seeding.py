"""Randomness without global state: (run seed, index, purpose) -> an independent generator."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_sequence(seed: int, index: int, purpose: str) -> np.random.SeedSequence:
    """Independent stream for one purpose of one group (or student, or shard set)."""
    return np.random.SeedSequence(entropy=seed, spawn_key=(index, zlib.crc32(purpose.encode())))


def torch_generator(seed: int, index: int, purpose: str) -> torch.Generator:
    """CPU generator of that stream. Draw on the CPU and move, so that no number depends on the device."""
    state = seed_sequence(seed, index, purpose).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def numpy_generator(seed: int, index: int, purpose: str) -> np.random.Generator:
    """Numpy counterpart of `torch_generator`, from the same stream."""
    return np.random.default_rng(seed_sequence(seed, index, purpose))


@contextmanager
def global_rng_of(generator: torch.Generator) -> Iterator[None]:
    """For what draws from torch's global generator, such as new layers: on the CPU it goes on from where
    `generator` is, which does not move, and has its own state again in the end."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(generator.get_state())
        yield
