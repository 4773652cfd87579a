"""What methods and students have in common: what they declare, and where they say how far they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class StepLog(Protocol):
    """Receives the progress of a loop."""

    def advance(self, amount: int, **values: float) -> None:
        """`amount` units of work are done; `values` are current figures to show, such as losses."""


class Silent:
    """The StepLog that drops everything."""

    def advance(self, amount: int, **values: float) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Facts:
    """What a method or student declares about itself.

    `needs_labels`: it asks each image for a class; `takes_labels`: where the teacher has classes.
    `needs_attention`: attention whose logits, weights and outputs can be read. `needs_moments`: statistics of
    the layers that follow from the weights. `needs_boxes`: a detector that can be asked for boxes.
    `needs_layer_norm`: a LayerNorm in front of a linear layer. `data_read` is what of the real world it
    reads: "none", or e.g. "1 image per class". `own_rows`: of a student, why its rows are not those of the
    network with a width each; `mixed` chooses no bits for such a student. `recommended`: it is named before
    others that suit a network alike, see docs/choosing.md.
    """

    paper: str
    summary: str
    needs_labels: bool = False
    takes_labels: bool = False
    needs_batch_norm: bool = False
    needs_attention: bool = False
    needs_moments: bool = False
    needs_boxes: bool = False
    needs_layer_norm: bool = False
    needs_real: bool = False
    trains_network: bool = False
    data_read: str = "none"
    own_rows: str = ""
    recommended: bool = False
    deviations: tuple[str, ...] = ()

    @property
    def needs_gradients(self) -> bool:
        """Whether a method changes images by what reaches them from the teacher: it asks for something."""
        asked = self.needs_batch_norm or self.needs_labels or self.needs_boxes
        return asked or self.needs_moments or self.needs_attention
