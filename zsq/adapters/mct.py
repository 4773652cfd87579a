"""model-compression-toolkit: the representative data generator of its post-training quantization."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec

from torch import Tensor

from zsq.adapters.loader import Batches, Images
from zsq.core.errors import MissingExtraError
from zsq.core.imagespec import ImageSpec


def representative_data(
    images: Images, batch: int = 32, *, spec: ImageSpec | None = None
) -> Callable[[], Iterator[list[Tensor]]]:
    """A function whose every call goes through all images once, as [float32 (n, C, H, W)] a batch.

    Args:
        spec: the teacher's; without it that of the shards holds.

    Raises:
        MissingExtraError: model-compression-toolkit is not installed. Else as
            `zsq.adapters.CalibrationImages`.
    """
    if find_spec("model_compression_toolkit") is None:
        raise MissingExtraError("model-compression-toolkit", "mct")
    batches = Batches(images, batch, spec)

    def representative() -> Iterator[list[Tensor]]:
        for norm in batches:
            yield [norm]

    return representative
