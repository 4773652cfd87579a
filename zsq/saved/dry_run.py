"""A network without numbers: what it would take, before anything is taken.

Its tensors have shapes and types alone (torch's fake tensors). A file from a stranger may ask for a tensor of
any size, and so may a part of an operation that shows nowhere in the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zsq.core.memory import available_bytes
from zsq.core.runtime import one_thread
from zsq.quantizers.grids import Quantizer

MAX_BYTES = 16 * 2**30


class _Allocations(TorchDispatchMode):
    """Counts the memory of the tensors that live at the same time; refuses more than `most` bytes."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                # A view takes no memory, but what reads it takes as long as its values are many.
                self._check(tensor.numel() * tensor.element_size())
                storage = tensor.untyped_storage()
                self.alive[StorageWeakRef(storage)] = storage.nbytes()
        self.alive = {ref: size for ref, size in self.alive.items() if not ref.expired()}
        self._check(sum(self.alive.values()))
        return made

    def _check(self, size: int) -> None:
        if size > self.most:
            raise ValueError(f"one image takes more than {self.most / 2**30:.1f} GiB of memory")


@contextmanager
def without_numbers(network: nn.Module) -> Iterator[FakeTensorMode]:
    """Within the block `network` takes the fake tensors of the mode and gives such; its own stay as they are.

    Quantizers are passed over: what they give has the shape of what they take.
    """
    quantizers = [module for module in network.modules() if isinstance(module, Quantizer)]
    for quantizer in quantizers:
        quantizer.forward = Tensor.float
    try:
        with one_thread, torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        for quantizer in quantizers:
            del quantizer.forward


def dry_run(network: nn.Module, example: Tensor) -> None:
    """Run `network` on `example` without numbers.

    Raises:
        ValueError: it would take more memory than there is, or than `MAX_BYTES`.
        RuntimeError and others: it does not compute, or a length in it depends on values.
    """
    most = min(MAX_BYTES, available_bytes())
    with without_numbers(network) as mode, _Allocations(most):
        network(mode.from_tensor(example))
