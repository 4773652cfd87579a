"""Boxes of objects, their classes and scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from zsq.tasks.base import Meter, Task
from zsq.tasks.nesting import Outputs, named_tensors
from zsq.tasks.other import OnlyNoise


@dataclass(frozen=True)
class Detect(Task):
    """The raw maps of a detector, any nesting of tensors."""

    name: ClassVar[str] = "detect"
    wants: ClassVar[str] = "raw maps"
    lead: ClassVar[str] = "sqnr"

    def suits(self, outputs: Outputs) -> bool:
        """There is a tensor."""
        return any(True for _ in named_tensors(outputs))

    def meter(self) -> Meter:
        """The signal-to-quantization-noise ratio of each map."""
        return OnlyNoise()
