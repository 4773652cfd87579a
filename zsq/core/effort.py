"""How long a method runs where nobody says: the three efforts by name, shortest first."""

from __future__ import annotations

from typing import Literal

Effort = Literal["quick", "standard", "published"]
