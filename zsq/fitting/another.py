"""A student may be another network than the teacher's, which takes the teacher's images all the same."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsq.contract import Teacher
from zsq.core.errors import MismatchError
from zsq.core.imagespec import ImageSpec
from zsq.core.wording import quantity
from zsq.tasks.nesting import shapes

WHAT_A_NETWORK_TAKES = ("unit_moments", "channel_order", "network_size")


class Adapted(nn.Module):
    """`network` behind the arithmetic that turns the input of a network of `given` into the one it takes."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, given: ImageSpec, taken: ImageSpec) -> None:
        """Keep the parts; both specs have as many channels and sides."""
        super().__init__()
        self.network = network
        (given_mean, given_std), (mean, std) = (
            map(torch.tensor, spec.unit_moments) for spec in (given, taken)
        )
        sides = [1] * len(given.size)
        self.register_buffer("scale", (given_std / std).view(1, -1, *sides))
        self.register_buffer("shift", ((given_mean - mean) / std).view(1, -1, *sides))
        self.given_bgr, self.bgr = (spec.channel_order == "bgr" for spec in (given, taken))
        self.size = None if given.network_size == taken.network_size else list(taken.network_size)
        self.mode = "linear" if given.is_signal else taken.interpolation
        smaller = max(taken.network_size) < max(given.network_size)
        self.antialias = smaller and self.mode in ("bilinear", "bicubic")

    def forward(self, norm_NCHW: Tensor) -> Tensor:
        """What the teacher's network takes -> the outputs of this one."""
        images = norm_NCHW.flip(1) if self.given_bgr else norm_NCHW
        images = images * self.scale + self.shift
        images = images.flip(1) if self.bgr else images
        if self.size is not None:
            align = None if self.mode == "nearest" else False
            images = F.interpolate(
                images, self.size, mode=self.mode, align_corners=align, antialias=self.antialias
            )
        outputs: Tensor = self.network(images)
        return outputs


def in_place_of(teacher: Teacher, network: nn.Module, spec: ImageSpec, name: str) -> nn.Module:
    """`network`, which takes images of `spec`, for those of `teacher`; itself where they are the same.

    Raises:
        MismatchError: other channels or sides than the teacher's images have, or other outputs.
    """
    own, theirs = (
        f"{quantity(each.channels, 'channel')} over {quantity(len(each.size), 'side')}"
        for each in (spec, teacher.spec)
    )
    if own != theirs:
        raise MismatchError(f"network {name} takes images of {own}", f"{theirs}, as the teacher's have")
    if any(getattr(spec, key) != getattr(teacher.spec, key) for key in WHAT_A_NETWORK_TAKES):
        network = Adapted(network, teacher.spec, spec)
    found, expected = (shapes(_outputs(each, teacher.example())) for each in (network, teacher.network))
    if found != expected:
        raise MismatchError(
            f"network {name} returns {found} for two images", f"{expected}, as teacher {teacher.name} does"
        )
    return network


@torch.no_grad()
def _outputs(network: nn.Module, example: Tensor) -> object:
    device = next((tensor.device for tensor in network.parameters()), example.device)
    return network.eval()(example.to(device))
