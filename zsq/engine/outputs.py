"""What a network returned, as the engine reads it: the floating tensors that have one entry per image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# One tensor as the network returned it; of any nesting, the tensors of `per_image`.
Outputs = Tensor | tuple[Tensor, ...]

MAX_DEPTH = 8


def tensors(returned: Any, depth: int = MAX_DEPTH) -> Iterator[Tensor]:
    """Every tensor inside dicts, lists, tuples, dataclasses and other objects, in their order. What refers to
    itself ends after `depth` levels."""
    if isinstance(returned, Tensor):
        yield returned
        return
    for part in _parts(returned) if depth else ():
        yield from tensors(part, depth - 1)


def per_image(returned: Any, count: int) -> Outputs:
    """What a network returned of `count` images: one tensor as it is; of any nesting, its floating tensors
    whose first axis is that of the images. None of a detector that lists boxes."""
    if isinstance(returned, Tensor):
        return returned
    return tuple(
        tensor
        for tensor in tensors(returned)
        if tensor.is_floating_point() and tensor.dim() and len(tensor) == count
    )


def flat(outputs: Outputs) -> tuple[Tensor, ...]:
    """The tensors."""
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def in_float32(outputs: Outputs) -> Outputs:
    """With bfloat16 as float32, in which losses are computed."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.dtype == torch.bfloat16 else outputs
    return tuple(tensor.float() if tensor.dtype == torch.bfloat16 else tensor for tensor in outputs)


def joined(chunks: Sequence[Outputs]) -> Outputs:
    """The outputs of consecutive chunks of images. What not every chunk has is left out."""
    first = chunks[0]
    if isinstance(first, Tensor):
        return torch.cat([flat(chunk)[0] for chunk in chunks])
    if len({len(flat(chunk)) for chunk in chunks}) > 1:
        return ()
    return tuple(torch.cat(parts) for parts in zip(*map(flat, chunks), strict=True))


def finite(returned: Any) -> bool:
    """Whether every floating tensor inside is; without data, on the meta device, it is taken for so."""
    floats = (tensor for tensor in tensors(returned) if tensor.is_floating_point() and not tensor.is_meta)
    return all(bool(tensor.isfinite().all()) for tensor in floats)


def _parts(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return list(getattr(value, "__dict__", {}).values())
