"""Which operation and which class of module a name in a student's file stands for.

They are those of `zsq.graph.vocabulary` that may be saved. Nothing else is ever built or called for a file,
so that it holds data and no code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zsq.graph import vocabulary
from zsq.quantizers.layers import QUANTIZED

_SPACE = "aten"
_PYTHON_NAMES = {function: name for name, function in vocabulary.PYTHON_FUNCTIONS.items()}

MODULES: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (*vocabulary.MODULES, *QUANTIZED, *QUANTIZED.values())
}


def called(name: str) -> Callable[..., Any]:
    """What a file calls by `name`: "operator.NAME", or "aten.NAME.OVERLOAD" of an operation that makes new
    tensors and overwrites none.

    Raises:
        ValueError: nothing that a student may call.
    """
    if name in vocabulary.PYTHON_FUNCTIONS:
        return vocabulary.PYTHON_FUNCTIONS[name]
    space, packet, overload = [*name.split(".", 2), "", ""][:3]
    known = vocabulary.OPERATIONS.get(packet)
    if space == _SPACE and known is not None and known.saved:
        operation = getattr(torch.ops.aten, packet, None)
        if operation is not None and overload in operation.overloads():
            found = getattr(operation, overload)
            if not found._schema.is_mutable:
                return found
    raise ValueError(f"function {name} is not one of those a student may call")


def name_in_file(function: Any) -> str | None:
    """The name by which a file calls `function`; None where it may not."""
    if isinstance(function, torch._ops.OpOverload):
        name = str(function)
        try:
            return name if called(name) is function else None
        except ValueError:
            return None
    return _PYTHON_NAMES.get(function)
