"""Numbers in sentences."""

from __future__ import annotations


def quantity(number: float, noun: str) -> str:
    """`1 image`, `2 classes`, `2.5 passes`, `2 identities`: the number with the noun in its form."""
    shown = f"{number:g}" if isinstance(number, float) else str(number)
    if number == 1:
        return f"{shown} {noun}"
    if noun.endswith("y"):
        return f"{shown} {noun[:-1]}ies"
    return f"{shown} {noun}{'es' if noun.endswith('s') else 's'}"
