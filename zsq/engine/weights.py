"""A teacher tapped at the outputs of its weighted layers, with targets that follow from the weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from zsq.contract import Teacher
from zsq.core.errors import MismatchError
from zsq.core.imagespec import ImageSpec
from zsq.engine.executed import WEIGHTED
from zsq.engine.moments import MomentMode, Moments, Rules, SummedGaussians, channel_moments
from zsq.engine.norms import channels_last, with_batch_norms
from zsq.engine.outputs import PerImage, in_float32, per_image
from zsq.engine.statistics import LayerSums, layer_sums
from zsq.graph.fold import fused


class WeightTapped(nn.Module):
    """A private copy of a teacher, BN folded where it can be, measured behind each convolution and linear
    layer. Called like `TappedTeacher`: what is stored there by BN is estimated here."""

    def __init__(self, teacher: Teacher, rules: Rules, owner: str = "this method") -> None:
        """Fold, estimate in float64 on the CPU, tap. `names` are the layers in order of execution.

        Raises:
            MismatchError: no weighted layer, or an operation whose moments are not known.
        """
        super().__init__()
        self.spec = teacher.spec
        like = next(teacher.network.parameters(), torch.empty(0))
        network, estimates = estimated(teacher, rules, owner)
        self.network = channels_last(network.to(like.device, like.dtype))
        self.names = list(estimates)
        self._targets: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._sums: list[LayerSums] = []
        for name, (mean_C, var_C) in estimates.items():
            module = self.network.get_submodule(name)
            self._targets[module] = (mean_C.to(like), var_C.to(like))
            module.register_forward_hook(self._measure)

    def _measure(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._sums.append(layer_sums(output, *self._targets[module]))

    def forward(self, standard_NCHW: Tensor) -> tuple[PerImage, list[LayerSums]]:
        """Standard-space images -> outputs and the sums behind each weighted layer, in order of execution."""
        self._sums.clear()
        returned = self.network(self.spec.standard_to_norm(standard_NCHW))
        sums = list(self._sums)
        self._sums.clear()
        return in_float32(per_image(returned, len(standard_NCHW))), sums


def require_estimates(teacher: Teacher, owner: str) -> None:
    """Nothing, where statistics for `owner` follow from the weights.

    Raises:
        MismatchError: they do not.
    """
    estimated(teacher, SummedGaussians(), owner)


def estimated(teacher: Teacher, rules: Rules, owner: str) -> tuple[nn.Module, dict[str, Moments]]:
    """The network in float64 on the CPU, BN folded where it can be, and each weighted layer's moments.

    Raises:
        MismatchError: no weighted layer, or an operation whose moments are not known.
    """
    network, spec = copy.deepcopy(teacher.network).cpu().double(), teacher.spec
    # Where the teacher resizes, each pixel that the network takes counts as N(0, 1) in standard space.
    seen = spec.model_copy(update={"size": spec.input_size or spec.size, "input_size": None})
    wanted = f"weights, from which {owner} estimates statistics"
    with_batch_norms(network)
    try:
        fold_untraced(network, torch.zeros(1, *seen.shape, dtype=torch.float64))
        estimates = _estimates(network, seen, rules)
    except MismatchError:
        raise
    # The network may be any Python, and a rule may meet arguments that it was not made for.
    except Exception as error:
        raise MismatchError(f"no moments follow from teacher '{teacher.name}' ({error})", wanted) from None
    if not estimates:
        raise MismatchError(f"teacher '{teacher.name}' has no convolution or linear layer", wanted)
    return network, estimates


@torch.no_grad()
def _estimates(network: nn.Module, spec: ImageSpec, rules: Rules) -> dict[str, Moments]:
    """Mean and variance over images and positions of each weighted layer's output, by its first call."""
    names = dict[nn.Module, str](
        (module, name) for name, module in network.named_modules() if isinstance(module, WEIGHTED)
    )
    found: dict[str, Moments] = {}

    def note(module: nn.Module, _: Any, output: Tensor) -> None:
        moments = mode.moments(output)
        if moments is not None and names[module] not in found:
            found[names[module]] = channel_moments(moments)

    example = torch.zeros(1, *spec.shape, dtype=torch.float64)
    mode = MomentMode(example, rules)
    handles = [module.register_forward_hook(note) for module in names]
    with mode:
        network(spec.standard_to_norm(example))
    for handle in handles:
        handle.remove()
    return found


class _Uses(TorchDispatchMode):
    """Counts how often each tensor is an argument of an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[int, int] = {}
        self._held: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for arg in (part for a in args for part in (a if isinstance(a, (list, tuple)) else [a])):
            if isinstance(arg, Tensor):
                self.counts[id(arg)] = self.counts.get(id(arg), 0) + 1
                self._held.append(arg)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def fold_untraced(network: nn.Module, example: Tensor) -> None:
    """Fold, in place, each BN with stored statistics that alone reads what a convolution or linear layer puts
    out, where both are called once. Found in a forward pass of `example`: the network may be any Python."""
    layers: dict[int, nn.Module] = {}
    pairs: list[tuple[nn.Module, nn.Module, Tensor]] = []
    calls: dict[nn.Module, int] = {}
    names = {module: name for name, module in network.named_modules()}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, WEIGHTED):
            layers[id(output)] = module
        elif id(inputs[0]) in layers:
            pairs.append((layers[id(inputs[0])], module, inputs[0]))

    kinds = (*WEIGHTED, _BatchNorm)
    handles = [module.register_forward_hook(note) for module in names if isinstance(module, kinds)]
    with _Uses() as uses:
        network(example)
    for handle in handles:
        handle.remove()
    for layer, norm, between in pairs:
        both = fused(layer, norm)
        if both is not None and calls[layer] == calls[norm] == uses.counts[id(between)] == 1:
            network.set_submodule(names[layer], both)
            network.set_submodule(names[norm], nn.Identity())
