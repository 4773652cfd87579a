"""What a network does in one teacher pass: which modules run, in which order, what the last layer reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zsq.contract import Teacher
from zsq.core.errors import MismatchError
from zsq.core.imagespec import ImageSpec
from zsq.engine.outputs import finite, tensors

# Bytes of a forward pass without gradients, and how many tensors of a layer's size it holds: what goes
# into the layer and comes out of it, and four more where statistics are taken.
FORWARD_BUDGET = 4 * 2**30
LAYER_COPIES = 6

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)


def blank(network: nn.Module, spec: ImageSpec) -> Tensor:
    """One image (1, C, H, W) of zeros in standard space, of the network's device and dtype."""
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros(1, *spec.shape, device=like.device, dtype=like.dtype)


@dataclass(frozen=True)
class Call:
    """One call of a module: how many values it puts out, in whatever holds them, whether all are finite, and
    whether gradients of any can be followed."""

    name: str
    module: nn.Module
    num_values: int
    finite: bool
    requires_grad: bool


@torch.no_grad()
def executed(network: nn.Module, run: Callable[[], Any]) -> list[Call]:
    """Every module call of `run()`, which calls `network`, in order of completion. No hook stays."""
    calls: list[Call] = []

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            parts = list(tensors(output))
            followed = any(part.requires_grad for part in parts)
            calls.append(Call(name, module, sum(part.numel() for part in parts), finite(output), followed))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in network.named_modules()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def require_gradients(teacher: Teacher, owner: str) -> None:
    """Nothing, where gradients of what the teacher computes reach its images.

    Raises:
        MismatchError: none does, in any of its modules.
    """
    image = blank(teacher.network, teacher.spec).requires_grad_()

    def run() -> None:
        with torch.enable_grad():
            teacher.logits(image)

    if not any(call.requires_grad for call in executed(teacher.network, run)):
        raise MismatchError(
            f"teacher '{teacher.name}' gives no gradient of its images, which {owner} follows",
            "a forward that is differentiable",
            "take torch.no_grad or torch.inference_mode out of it",
        )


def layer_values(network: nn.Module, *inputs: Any) -> int:
    """Values that all layers without layers of their own put out when `network` is called with `inputs`."""
    calls = executed(network, lambda: network(*inputs))
    return sum(call.num_values for call in calls if not list(call.module.children()))


def images_at_once(network: nn.Module, spec: ImageSpec, most: int) -> int:
    """How many images go forward together without gradients: `most`, or fewer where the largest layer is so
    large that they would take more than `FORWARD_BUDGET`."""
    image = blank(network, spec)
    calls = executed(network, lambda: network(spec.standard_to_norm(image)))
    values = max([image.numel(), *(call.num_values for call in calls)])
    return max(1, min(most, FORWARD_BUDGET // (LAYER_COPIES * image.element_size() * values)))


def last_layer(network: nn.Module, spec: ImageSpec, num_outputs: int | None) -> str:
    """Name of the weighted layer that runs last among those with `num_outputs` rows of weights, or among all
    where none has so many.

    Raises:
        MismatchError: there is no convolution and no linear layer.
    """
    calls = executed(network, lambda: network(spec.standard_to_norm(blank(network, spec))))
    layers = [call for call in calls if isinstance(call.module, WEIGHTED)]
    if not layers:
        raise MismatchError("a network without linear layer and convolution", "one with a last layer")
    heads = [call for call in layers if len(call.module.weight) == num_outputs]  # type: ignore[arg-type]
    return (heads or layers)[-1].name


class FeatureTap:
    """What enters the last layer of a private copy of a teacher's network: its pooled features."""

    def __init__(self, network: nn.Module, teacher: Teacher) -> None:
        """Find and hook that layer of `network`, the copy; `length` is the number of features.

        Raises:
            MismatchError: there is none.
        """
        self._features: list[Tensor] = []
        spec = teacher.spec
        layer = network.get_submodule(last_layer(network, spec, teacher.num_outputs))
        layer.register_forward_pre_hook(self._measure)
        with torch.no_grad():
            network(spec.standard_to_norm(blank(network, spec)))
        self.length = self.take().shape[1]

    def _measure(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Averaged over positions, which a linear layer has before its features, a convolution behind."""
        features = inputs[0]
        if features.dim() > 2:
            linear = isinstance(module, nn.Linear)
            features = features.flatten(1, -2).mean(1) if linear else features.flatten(2).mean(2)
        self._features.append(features)

    def put(self, features_NF: Tensor) -> None:
        """Stand in for the next `take`."""
        self._features = [features_NF]

    def take(self) -> Tensor:
        """(N, F) features of the latest teacher pass, float32."""
        features = self._features[-1]
        self._features.clear()
        return features.float() if features.dtype == torch.bfloat16 else features
