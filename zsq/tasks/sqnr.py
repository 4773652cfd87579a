"""Signal-to-quantization-noise ratio of a student's outputs against its teacher's, in dB."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zsq.tasks.nesting import Outputs, named_tensors

# Beyond what float32 can tell: equal outputs have no noise at all.
LARGEST_DB = 150.0
# Before the name of one of several outputs.
EACH_OUTPUT = "sqnr."


@dataclass
class _Sums:
    """Of one output, in float64: t is the teacher's, moved by its first image's against cancellation."""

    origin: Tensor
    count: int
    sum_t: Tensor
    square: float = 0.0
    moved_square: float = 0.0
    noise: float = 0.0


class SignalToNoise:
    """Collects batches of outputs, each one tensor or a nesting of tensors with the images in front.

    sqnr = 10 log10(sum t^2 / sum (s - t)^2), s the student's and t the teacher's output;
    sqnr_centred = 10 log10(sum (t - m)^2 / sum (s - t)^2), m the mean of t over images at each position: what
    an output says of every image alike is no signal then. Of one image it is not defined.
    """

    def __init__(self) -> None:
        """Nothing yet."""
        self._sums: dict[str, _Sums] = {}

    def add(self, student: Outputs, teacher: Outputs) -> None:
        """Take a batch of both."""
        pairs = zip(named_tensors(student), named_tensors(teacher), strict=True)
        for (_, own), (name, other) in pairs:
            s, t = (part.detach().to(torch.float64) for part in (own, other))
            t = t if t.dim() else t[None]
            sums = self._sums.setdefault(name, _Sums(t[0], 0, torch.zeros_like(t[0])))
            moved = t - sums.origin
            sums.count += len(t)
            sums.sum_t += moved.sum(0)
            sums.square += t.square().sum().item()
            sums.moved_square += moved.square().sum().item()
            sums.noise += (s - t).square().sum().item()

    def metrics(self) -> dict[str, float]:
        """`sqnr`, and of more than one image `sqnr_centred`; of several outputs the lowest, then `sqnr.NAME`
        of each."""
        plain = {name: _ratio(sums.square, sums.noise) for name, sums in self._sums.items()}
        centred = [_ratio(_varying(sums), sums.noise) for sums in self._sums.values() if sums.count > 1]
        found = {"sqnr": min(plain.values())} if plain else {}
        if centred:
            found["sqnr_centred"] = min(centred)
        if len(plain) > 1:
            found |= {f"{EACH_OUTPUT}{name}": ratio for name, ratio in plain.items()}
        return found


def _varying(sums: _Sums) -> float:
    return sums.moved_square - (sums.sum_t.square().sum() / sums.count).item()


def _ratio(signal: float, noise: float) -> float:
    """In dB, within -`LARGEST_DB`..`LARGEST_DB`."""
    if noise <= 0:
        return LARGEST_DB
    if signal <= 0:
        return -LARGEST_DB
    return max(-LARGEST_DB, min(LARGEST_DB, 10 * math.log10(signal / noise)))
