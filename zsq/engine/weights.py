"""A teacher tapped at the outputs of its weighted layers, with targets that follow from the weights."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from zsq.contract import Teacher
from zsq.core.errors import MismatchError
from zsq.core.imagespec import ImageSpec
from zsq.core.layout import channels_last
from zsq.engine.moments import Moments, Rules, SummedGaussians
from zsq.engine.outputs import PerImage, in_float32, per_image
from zsq.engine.statistics import LayerSums, layer_sums
from zsq.engine.walk import MomentWalk, channels_second
from zsq.graph import capture
from zsq.graph.fold import fold_batch_norms


class WeightTapped(nn.Module):
    """A teacher's captured graph, BN folded where it can be, measured behind each convolution and linear
    layer. Called like `TappedTeacher`: what is stored there by BN is estimated here."""

    def __init__(self, teacher: Teacher, rules: Rules, owner: str = "this method") -> None:
        """Capture, fold, estimate in float64 on the CPU, tap. `names` are the layers in order of execution.

        Raises:
            MismatchError: as `estimated`.
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
        self._sums.append(layer_sums(channels_second(module, output), *self._targets[module]))

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
    """The captured network in float64 on the CPU, BN folded where it can be, and the mean and variance over
    images and positions of each layer's output, by its first call.

    Raises:
        MismatchError: no layer, an operation whose moments are not known, or a network that cannot be
            captured.
    """
    wanted = f"weights, from which {owner} estimates statistics"
    try:
        network = capture(teacher.network, teacher.example()).cpu().double()
        fold_batch_norms(network)
        layers = _moments(network, teacher.spec, rules)
    except MismatchError:
        raise
    # A rule may meet arguments that it was not made for.
    except Exception as error:
        raise MismatchError(f"no moments follow from teacher '{teacher.name}' ({error})", wanted) from None
    if not layers:
        raise MismatchError(f"teacher '{teacher.name}' has no convolution or linear layer", wanted)
    for name, moments in layers.items():
        if not all(part.isfinite().all() for part in moments):
            raise MismatchError(f"the moments behind layer '{name}' are not finite", wanted)
    return network, layers


@torch.no_grad()
def _moments(network: fx.GraphModule, spec: ImageSpec, rules: Rules) -> dict[str, Moments]:
    # Where the teacher resizes, each pixel that the network takes counts as N(0, 1) in standard space.
    seen = spec.model_copy(update={"size": spec.network_size, "input_size": None})
    zeros = torch.zeros(1, *seen.shape, dtype=torch.float64)
    mean = seen.standard_to_norm(zeros)
    walk = MomentWalk(network, rules)
    walk.run(Moments(mean, (seen.standard_to_norm(zeros + 1) - mean).square()))
    return walk.layers
