"""Statistics that a network stores, wherever it stores them, as the batch norms of a private copy.

Which layers count as a batch norm, `zsq.graph.norms` says. Of batch norms that are called as functions, the
captured graph has layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from zsq.core.errors import UntraceableError
from zsq.core.imagespec import ImageSpec
from zsq.core.layout import channels_last
from zsq.engine.executed import blank
from zsq.graph import capture
from zsq.graph.norms import equal_batch_norm, stores_statistics, with_batch_norms

# Function -> where its running mean stands, and the argument, number 5, that asks for the batch's own.
NORMALISING: dict[Any, tuple[int, str, bool]] = {
    F.batch_norm: (1, "training", False),
    F.instance_norm: (1, "use_input_stats", True),
    torch.batch_norm: (3, "training", False),
    torch.instance_norm: (3, "use_input_stats", True),
}


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """The layers that store running statistics and normalise by them."""
    return [
        module
        for module in network.modules()
        if stores_statistics(module) or equal_batch_norm(module) is not None
    ]


def count_norms(network: nn.Module, spec: ImageSpec) -> int:
    """How many batch norms methods match: layers, and calls of functions where it can be captured."""
    if calls_batch_norm(network, spec):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                network = private_copy(network, spec)
            except UntraceableError:
                return 0
    return len(batch_norms(network))


def stores_any(network: nn.Module, spec: ImageSpec) -> bool:
    """Whether the network normalises by running statistics anywhere."""
    return bool(batch_norms(network)) or calls_batch_norm(network, spec)


def private_copy(network: nn.Module, spec: ImageSpec) -> nn.Module:
    """A copy, channels_last, in which all that normalises by running statistics is torch's batch norm: under
    the layers' own names, or those that the captured graph gives to calls of functions.

    Raises:
        UntraceableError: functions alone normalise, and the network cannot be captured.
    """
    if calls_batch_norm(network, spec):
        two = blank(network, spec).expand(2, *spec.shape)
        try:
            network = capture(network, spec.standard_to_norm(two))
        except UntraceableError as error:
            if not batch_norms(network):
                raise
            warnings.warn(f"batch norms that are called as functions are left out: {error}", stacklevel=3)
    return channels_last(with_batch_norms(network))


class _Calls(TorchFunctionMode):
    """Looks for functions that normalise by running statistics which no layer stores."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.stored = {id(layer.running_mean) for layer in layers}
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in NORMALISING:
            position, by_batch, default = NORMALISING[func]
            mean = kwargs.get("running_mean", args[position] if len(args) > position else None)
            own = kwargs.get(by_batch, args[5] if len(args) > 5 else default)
            self.found |= mean is not None and not own and id(mean) not in self.stored
        return func(*args, **kwargs)


@torch.no_grad()
def calls_batch_norm(network: nn.Module, spec: ImageSpec) -> bool:
    """Whether batch norm is called as a function in a forward pass, with stored statistics of no layer."""
    calls = _Calls(batch_norms(network))
    with calls:
        network(spec.standard_to_norm(blank(network, spec)))
    return calls.found
