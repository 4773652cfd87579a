"""NNCF, for OpenVINO, ONNX and torch models: the calibration data set of `nncf.quantize`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from zsq.adapters.loader import Batches, Images
from zsq.core.errors import MissingExtraError, OptionError
from zsq.core.imagespec import ImageSpec


def nncf_dataset(
    images: Images,
    batch: int = 1,
    *,
    framework: str = "openvino",
    layout: str = "nchw",
    input_name: str | None = None,
    spec: ImageSpec | None = None,
) -> Any:
    """An `nncf.Dataset` of the images in the teacher's normalisation.

    Args:
        framework: of the model: `openvino` and `onnx` take arrays, `torch` takes tensors.
        input_name: feed {input_name: array} instead of the array alone; ONNX models need it.
        spec: the teacher's; without it that of the shards holds.

    Raises:
        MissingExtraError: nncf is not installed.
        OptionError: another framework or layout. Else as `zsq.adapters.CalibrationImages`.
    """
    try:
        from nncf import Dataset
    except ImportError:
        raise MissingExtraError("nncf", "nncf") from None
    if framework not in ("openvino", "onnx", "torch"):
        raise OptionError(f"framework {framework}", "openvino, onnx or torch")
    if layout not in ("nchw", "nhwc"):
        raise OptionError(f"layout {layout}", "nchw or nhwc")

    def fed(norm_NCHW: Tensor) -> Any:
        values: Any = norm_NCHW if layout == "nchw" else norm_NCHW.permute(0, 2, 3, 1).contiguous()
        values = values if framework == "torch" else values.numpy()
        return values if input_name is None else {input_name: values}

    return Dataset(Batches(images, batch, spec), fed)
