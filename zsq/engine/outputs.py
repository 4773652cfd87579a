"""What a network returned, as the engine reads it: the floating tensors that have one entry per image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from zsq.tasks.nesting import named_tensors, plain

# One tensor as the network returned it; of any nesting, the tensors of `per_image`.
PerImage = Tensor | tuple[Tensor, ...]


def tensors(returned: Any) -> Iterator[Tensor]:
    """Every tensor inside, in its order."""
    return (tensor for _, tensor in named_tensors(plain(returned)))


def per_image(returned: Any, count: int) -> PerImage:
    """What a network returned of `count` images: one tensor as it is; of any nesting, its floating tensors
    whose first axis is that of the images. None of a detector that lists boxes."""
    if isinstance(returned, Tensor):
        return returned
    return tuple(
        tensor
        for tensor in tensors(returned)
        if tensor.is_floating_point() and tensor.dim() and len(tensor) == count
    )


def flat(outputs: PerImage) -> tuple[Tensor, ...]:
    """The tensors."""
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def in_float32(outputs: PerImage) -> PerImage:
    """With bfloat16 as float32, in which losses are computed."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.dtype == torch.bfloat16 else outputs
    return tuple(tensor.float() if tensor.dtype == torch.bfloat16 else tensor for tensor in outputs)


def joined(chunks: Sequence[PerImage]) -> PerImage:
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
