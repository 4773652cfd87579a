"""torchao: the calibration loop between `prepare_pt2e` and `convert_pt2e`."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn

from zsq.adapters.loader import Batches, Images
from zsq.core.errors import MissingExtraError
from zsq.core.imagespec import ImageSpec


def calibrate(prepared: nn.Module, images: Images, batch: int = 32, *, spec: ImageSpec | None = None) -> int:
    """Show all images to a prepared model, whose observers take their ranges from them; how many it saw.

    Args:
        prepared: what `prepare_pt2e` returns; with a batch that is dynamic, or that divides the images.
        spec: the teacher's; without it that of the shards holds.

    Raises:
        MissingExtraError: torchao is not installed. Else as `zsq.adapters.CalibrationImages`.
    """
    if find_spec("torchao") is None:
        raise MissingExtraError("torchao", "torchao")
    seen = 0
    with torch.no_grad():
        for norm in Batches(images, batch, spec):
            prepared(norm)
            seen += len(norm)
    return seen
