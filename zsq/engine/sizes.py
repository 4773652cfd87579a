"""Which sizes of images a network takes besides its own."""

from __future__ import annotations

import torch
from torch import Tensor

from zsq.contract import Teacher
from zsq.engine.executed import blank
from zsq.engine.norms import calls_batch_norm
from zsq.engine.views import Halve


@torch.no_grad()
def takes_halves(teacher: Teacher) -> bool:
    """Whether the tapped network also takes images of half the height and width, with outputs of the same
    shape. A captured graph, where batch norms are called as functions, holds for one size."""
    network, spec = teacher.network, teacher.spec
    if calls_batch_norm(network, spec):
        return False
    image = blank(network, spec)
    whole = network(spec.standard_to_norm(image))
    # The network may be any Python, made for one size.
    try:
        half = network(spec.standard_to_norm(Halve()(image, torch.empty(0))))
    except Exception:
        return False
    return isinstance(whole, Tensor) and isinstance(half, Tensor) and half.shape == whole.shape
