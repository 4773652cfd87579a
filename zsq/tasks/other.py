"""Any outputs: nothing is known of them but how near a student's are to its teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from zsq.tasks.base import Meter, Scores, Task, Truth
from zsq.tasks.nesting import Outputs, named_tensors


@dataclass(frozen=True)
class Other(Task):
    """One tensor or any nesting of tensors; no labels."""

    name: ClassVar[str] = "other"
    wants: ClassVar[str] = "tensors"
    needs_truth: ClassVar[bool] = False

    def suits(self, outputs: Outputs) -> bool:
        """There is a tensor."""
        return any(True for _ in named_tensors(outputs))

    def meter(self) -> Meter:
        """The signal-to-quantization-noise ratio of each output."""
        return OnlyNoise()


class OnlyNoise(Meter):
    """No metric besides the signal-to-quantization-noise ratio."""

    def _add(self, student: Outputs, teacher: Outputs, truth: Truth | None, rows: slice) -> None:
        return None

    def _scores(self) -> Scores:
        return Scores({})
