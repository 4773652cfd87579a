"""Numbers and names in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

MOST_NEAR = 3  # names that one line says


def quantity(number: float, noun: str) -> str:
    """`1 image`, `2 classes`, `2.5 passes`, `2 identities`: the number with the noun in its form."""
    shown = f"{number:g}" if isinstance(number, float) else str(number)
    if number == 1:
        return f"{shown} {noun}"
    if noun.endswith("y"):
        return f"{shown} {noun[:-1]}ies"
    return f"{shown} {noun}{'es' if noun.endswith('s') else 's'}"


def printable(text: str, besides: str = "\n\t") -> str:
    """Without what a terminal would obey, `besides` left out: names of files may come from strangers."""
    return "".join(c if c.isprintable() or c in besides else "\N{REPLACEMENT CHARACTER}" for c in text)


def one_line(text: str) -> str:
    """`printable`, without line breaks."""
    return printable(" ".join(text.split()))


def other_than(usual: int, counts: Mapping[str, int]) -> str:
    """` (12 of zeroq)`: the names whose number is not the usual one, or nothing where there are none."""
    others = [f"{count} of {name}" for name, count in counts.items() if count != usual]
    return f" ({', '.join(others)})" if others else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question that names those of `known` that are spelled most alike, or nothing where none is."""
    near = one_of(f"'{each}'" for each in get_close_matches(name, list(known), n=MOST_NEAR))
    return near and f"did you mean {near}?"


def one_of(names: Iterable[str]) -> str:
    """`a, b or c`."""
    *rest, last = list(names) or [""]
    return f"{', '.join(rest)} or {last}" if rest else last
