"""Statistics that a network stores outside of torch's batch norms, as batch norms.

A layer counts as a batch norm where it computes what one does from its own running statistics: frozen ones of
any library, and instance norms that track.
"""

from __future__ import annotations

import copy
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

SHAPES = ((2, 3), (2,), (), (2, 3, 2))  # positions that a layer may want: of images, signals, rows, volumes
EPSILONS = (1e-5, 0.0, 1e-3, 1e-6)  # of layers that do not say which
# In place of 0, which torch refuses before 2.11: it changes no variance that is not 0 itself.
SMALLEST_EPSILON = torch.finfo(torch.float32).tiny
TOLERANCE = 1e-5  # a layer that works in float32 is off by 1e-7, other arithmetic by far more


def stores_statistics(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether it is a batch norm of torch's with running statistics."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def with_batch_norms(network: nn.Module) -> nn.Module:
    """A deep copy in which every layer that computes a batch norm is torch's, under the same name."""
    copied, norms = copy.deepcopy(network), equal_batch_norms(network)
    if "" in norms:
        return norms[""]
    for name, norm in norms.items():
        copied.set_submodule(name, norm)
    return copied


def equal_batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """Name of each layer that computes a batch norm and is none of torch's -> one of torch's that gives the
    same, with copies of its tensors. A layer under two names has one batch norm."""
    found: dict[nn.Module, _BatchNorm | None] = {}
    norms: dict[str, _BatchNorm] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        if module not in found:
            found[module] = equal_batch_norm(module)
        norm = found[module]
        if norm is not None:
            norms[name] = norm
    return norms


def equal_batch_norm(module: nn.Module) -> _BatchNorm | None:
    """torch's batch norm that gives what `module` does in eval mode, which is none itself but stores running
    statistics (C,); None where there is none."""
    stored = _stored(module)
    if stored is None:
        return None
    norms = [_batch_norm(stored, epsilon) for epsilon in _epsilons(module)]
    if isinstance(module, _InstanceNorm):
        return norms[0]
    differences = [_difference(module, norm) for norm in norms]
    best = min(range(len(norms)), key=differences.__getitem__)
    return norms[best] if differences[best] < TOLERANCE else None


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
    mean = stored["running_mean"]
    # The one kind that takes rows, signals, images and volumes; nothing here is distributed.
    epsilon = max(epsilon, SMALLEST_EPSILON)
    norm = nn.SyncBatchNorm(len(mean), epsilon, device=mean.device, dtype=mean.dtype)
    norm.load_state_dict(norm.state_dict() | {name: value.clone() for name, value in stored.items()})
    return norm.eval().requires_grad_(False)


def _epsilons(module: nn.Module) -> list[float]:
    """What may be added to the variance: what the layer states, or else the usual values."""
    stated = getattr(module, "eps", None)
    if isinstance(stated, float):
        return [stated]
    return [*(value for value in vars(module).values() if isinstance(value, float)), *EPSILONS]


@torch.no_grad()
def _difference(module: nn.Module, norm: _BatchNorm) -> float:
    """Largest difference of what both make of the same values, in standard deviations of it."""
    module, norm = copy.deepcopy(module).cpu().double().eval(), copy.deepcopy(norm).cpu().double()
    rng = torch.Generator().manual_seed(0)
    for positions in SHAPES:
        shape = (3, norm.num_features, *positions)
        values = 1 + 2 * torch.randn(shape, generator=rng, dtype=torch.float64)
        wanted = norm(values)
        # The layer may be any Python, made for another shape.
        try:
            found = module(values)
        except Exception:
            continue
        if isinstance(found, Tensor) and found.shape == wanted.shape:
            return float((found - wanted).abs().max() / wanted.std().clamp_min(1e-12))
    return float("inf")
