"""Print the lowest versions that pyproject.toml allows, one a line: `python .ci/floors.py EXTRA...`.

The dependencies come first, then those of the extras that are named.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def floors(extras: list[str]) -> list[str]:
    """Every requirement at its lower bound.

    Raises:
        ValueError: a requirement does not read `name>=version`.
    """
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    pinned = []
    for requirement in (line for group in groups for line in group):
        if not (found := re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement)):
            raise ValueError(f"{requirement}: expected name>=version")
        pinned.append("==".join(found.groups()))
    return pinned


if __name__ == "__main__":
    print("\n".join(floors(sys.argv[1:])))
