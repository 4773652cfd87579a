"""How long a method runs where nobody says: the three efforts by name, shortest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Effort = Literal["quick", "standard", "published"]


@dataclass(frozen=True)
class Curve:
    """What a measured curve of quality against iterations says of a method.

    `standard`: the iterations after which more of them gained next to nothing. `measured`: on which networks,
    and the figures, for one line of text.
    """

    standard: int
    measured: str
