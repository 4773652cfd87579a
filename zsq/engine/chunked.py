"""A teacher pass in chunks of images, where the activations of the whole batch would not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from zsq.core.runtime import compiled_for, inside_compiled

# Of activations kept for the backward pass. A network keeps about two values of 4 bytes for each that its
# layers put out.
MEMORY_BUDGET = 12 * 2**30
BYTES_PER_VALUE = 8


def images_in_memory(num_values: int) -> int:
    """How many images' activations fit into memory, where the layers put out `num_values` of one image."""
    return max(1, MEMORY_BUDGET // (BYTES_PER_VALUE * num_values))


class InChunks:
    """A function of images, chunk by chunk. The gradient computes the activations of each chunk again, as
    gradient checkpointing does (Chen et al., arXiv 2016).

    A compiled step calls it from outside of its graph, which would else hold every layer once per chunk. It
    compiles the function by itself instead.
    """

    def __init__(self, function: Callable[[Tensor], Any], num_values: int) -> None:
        """`function`: images (N, ...) -> tensors of one row per image, in tuples and lists. `num_values`: as
        in `images_in_memory`."""
        self.function = function
        self.most = images_in_memory(num_values)
        self._compiled: Callable[[Tensor], Any] | None = None

    def needed(self, images: Tensor) -> bool:
        """Whether so many images, with gradient, do not fit into memory at once."""
        return len(images) > self.most and torch.is_grad_enabled()

    def __call__(self, images: Tensor) -> list[Any]:
        """What the function returns of each chunk of at most `most` images, in their order."""
        return self._apart(images, even_size(len(images), self.most))

    @torch.compiler.disable
    def _apart(self, images: Tensor, size: int) -> list[Any]:
        function, compiled = self.function, inside_compiled()
        if compiled:
            self._compiled = function = self._compiled or compiled_for(images.device, function)
        found = []
        for chunk in images.split(size):
            structure: list[TreeSpec] = []
            tensors = _Again.apply(function, structure, compiled, chunk)
            found.append(tree_unflatten(tensors, structure[0]))
        return found


def even_size(count: int, most: int) -> int:
    """The size of chunks of at most `most` images: all alike where that takes no more than twice as many, so
    that a compiler meets one shape."""
    fewest = -(-count // most)
    even = (number for number in range(fewest, 2 * fewest + 1) if count % number == 0)
    number = next(even, None)
    return most if number is None else count // number


class _Again(torch.autograd.Function):
    """Tensors of a function of images; its activations are forgotten, and computed again for the gradient."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable[[Tensor], Any], structure: list[TreeSpec], compiled: bool, images: Tensor
    ) -> tuple[Tensor, ...]:
        """The tensors; how they stand in what the function returns goes to `structure`."""
        ctx.function, ctx.autocast = function, _autocast(images)
        ctx.save_for_backward(images)
        # What is compiled for the gradient serves here too: else it would be compiled twice.
        with torch.set_grad_enabled(compiled):
            leaves, spec = tree_flatten(function(images.detach().requires_grad_(compiled)))
        structure.append(spec)
        return tuple(leaf.detach() for leaf in leaves)

    @staticmethod
    def backward(ctx: Any, *of_outputs: Tensor) -> tuple[None, None, None, Tensor]:
        """The gradient of the images."""
        (saved,) = ctx.saved_tensors
        images = saved.detach().requires_grad_()
        with torch.enable_grad(), ctx.autocast():
            outputs, _ = tree_flatten(ctx.function(images))
        pairs = zip(outputs, of_outputs, strict=True)
        reached, gradients = zip(*((out, of) for out, of in pairs if out.requires_grad), strict=True)
        (of_images,) = torch.autograd.grad(reached, images, gradients)
        return None, None, None, of_images


def _autocast(images: Tensor) -> Callable[[], AbstractContextManager[Any]]:
    """Autocasting as it is in force now, for later."""
    kind = images.device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype, enabled)


def columns(rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The n-th tensors of all chunks, joined, for every n."""
    return [torch.cat(parts) for parts in zip(*rows, strict=True)]
