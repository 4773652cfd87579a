"""Statistics that a network stores, wherever it stores them, as the batch norms of a private copy.

A layer counts as a batch norm where it computes what one does from its own running statistics: frozen ones,
and instance norms that track. Of batch norms that are called as functions, the captured graph has layers.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode

from zsq.core.errors import UntraceableError
from zsq.core.imagespec import ImageSpec
from zsq.engine.executed import blank
from zsq.graph import capture
from zsq.graph.norms import stores_statistics

# Function -> where its running mean stands, and the argument, number 5, that asks for the batch's own.
NORMALISING: dict[Any, tuple[int, str, bool]] = {
    F.batch_norm: (1, "training", False),
    F.instance_norm: (1, "use_input_stats", True),
    torch.batch_norm: (3, "training", False),
    torch.instance_norm: (3, "use_input_stats", True),
}

SHAPES = ((2, 3), (2,), (), (2, 3, 2))  # positions that a layer may want: of images, signals, rows, volumes
EPSILONS = (1e-5, 0.0, 1e-3, 1e-6)  # of layers that do not say which
TOLERANCE = 1e-5  # a layer that works in float32 is off by 1e-7, other arithmetic by far more


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """The layers that store running statistics and normalise by them."""
    return [
        module
        for module in network.modules()
        if stores_statistics(module) or equal_batch_norm(module) is not None
    ]


def stores_any(network: nn.Module, spec: ImageSpec) -> bool:
    """Whether the network normalises by running statistics anywhere."""
    layers = (
        stores_statistics(module) or equal_batch_norm(module) is not None for module in network.modules()
    )
    return any(layers) or calls_batch_norm(network, spec)


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
    network = copy.deepcopy(network)
    with_batch_norms(network)
    return channels_last(network)


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


def with_batch_norms(network: nn.Module) -> None:
    """Put torch's batch norm in the place of every layer that computes the same, in place."""
    for name, module in list(network.named_modules()):
        norm = equal_batch_norm(module)
        if norm is not None:
            network.set_submodule(name, norm)


def channels_last(network: nn.Module) -> nn.Module:
    """The network with its 4-d tensors in that layout, in place; others have no such layout."""
    for tensor in itertools.chain(network.parameters(), network.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return network


def equal_batch_norm(module: nn.Module) -> _BatchNorm | None:
    """torch's batch norm that computes what `module` does, which is none itself but keeps running statistics;
    None where there is none."""
    stored = _stored(module)
    if stored is None:
        return None
    norms = (_batch_norm(stored, epsilon) for epsilon in _epsilons(module))
    if isinstance(module, _InstanceNorm):
        return next(norms)
    best = min(norms, key=lambda norm: _difference(module, norm))
    return best if _difference(module, best) < TOLERANCE else None


def _stored(module: nn.Module) -> dict[str, Tensor] | None:
    """Tensors (C,) of a layer by batch norm's names; None where the statistics are not all there."""
    if isinstance(module, _BatchNorm) or list(module.children()):
        return None
    names = ("running_mean", "running_var", "weight", "bias")
    found = {name: getattr(module, name, None) for name in names}
    tensors = {name: value.detach() for name, value in found.items() if isinstance(value, Tensor)}
    shapes = {tuple(value.shape) for value in tensors.values()}
    complete = "running_mean" in tensors and "running_var" in tensors and len(shapes) == 1
    return tensors if complete and len(shapes.pop()) == 1 else None


def _batch_norm(stored: dict[str, Tensor], epsilon: float) -> _BatchNorm:
    """Of 2-d maps by name: in eval mode all kinds compute the same, and the engine's checks no shape."""
    mean = stored["running_mean"]
    norm = nn.BatchNorm2d(len(mean), epsilon, device=mean.device, dtype=mean.dtype)
    state = norm.state_dict() | {name: value.clone() for name, value in stored.items()}
    norm.load_state_dict(state)
    return norm.eval().requires_grad_(False)


def _epsilons(module: nn.Module) -> Iterator[float]:
    stated = getattr(module, "eps", None)
    yield from [stated] if isinstance(stated, float) else EPSILONS


@torch.no_grad()
def _difference(module: nn.Module, norm: _BatchNorm) -> float:
    """Largest difference of what both make of the same values, in standard deviations of it."""
    module, norm = copy.deepcopy(module).cpu().double().eval(), copy.deepcopy(norm).cpu().double()
    rng = torch.Generator().manual_seed(0)
    for positions in SHAPES:
        shape = (3, norm.num_features, *positions)
        values = 1 + 2 * torch.randn(shape, generator=rng, dtype=torch.float64)
        stored = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        wanted = F.batch_norm(values, *stored, eps=norm.eps)
        # The layer may be any Python, made for another shape.
        try:
            found = module(values)
        except Exception:
            continue
        if isinstance(found, Tensor) and found.shape == wanted.shape:
            return float((found - wanted).abs().max() / wanted.std().clamp_min(1e-12))
    return float("inf")
