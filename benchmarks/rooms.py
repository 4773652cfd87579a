"""The picture of zsq's rooms as a mermaid graph, made from the imports: `python benchmarks/rooms.py`.

A room is a folder or a file directly below zsq/. An arrow says "imports", and is left out where a chain of
other arrows says the same; `core`, `contract`, `config`, `tasks`, `plan` and `widths`, which nearly all
import, stand in one box.
"""

from __future__ import annotations

import grimp
import typer

FOUNDATION = ("config", "contract", "tasks", "plan", "widths", "core")
# The package itself imports for type checkers alone; recipes are data.
LEFT_OUT = ("recipes", "__main__")


def imports() -> dict[str, set[str]]:
    """Room -> rooms that it imports; the foundation is one of them."""
    graph = grimp.build_graph("zsq")
    found: dict[str, set[str]] = {}
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            above, below = _room(module), _room(other)
            if above and below and above != below:
                found.setdefault(above, set()).add(below)
                found.setdefault(below, set())
    return found


def _room(module: str) -> str | None:
    parts = module.split(".")
    if len(parts) == 1 or parts[1] in LEFT_OUT:
        return None
    return "foundation" if parts[1] in FOUNDATION else parts[1]


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same reachability with as few arrows as possible; the graph has no cycles."""

    def reach(room: str) -> set[str]:
        return graph[room].union(*(reach(below) for below in graph[room]))

    return {
        room: {one for one in below if not any(one in reach(other) for other in below - {one})}
        for room, below in graph.items()
    }


def mermaid() -> str:
    """The graph as GitHub draws it."""
    arrows = reduced(imports())
    lines = ["```mermaid", "flowchart TD", f'    foundation["{", ".join(FOUNDATION)}"]']
    lines += [f"    {above} --> {below}" for above in sorted(arrows) for below in sorted(arrows[above])]
    return "\n".join([*lines, "```"])


if __name__ == "__main__":
    typer.echo(mermaid())
