"""ONNX Runtime: the calibration data reader of `quantize_static`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from zsq.adapters.loader import CalibrationImages, Images
from zsq.core.errors import MismatchError, MissingExtraError, OptionError
from zsq.core.imagespec import ImageSpec

try:
    from onnxruntime import InferenceSession
    from onnxruntime.quantization import CalibrationDataReader
except ImportError:
    raise MissingExtraError("onnxruntime", "onnxruntime") from None

# Type of the model's input -> what is fed: the network's normalised input, or the stored pixels.
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class CalibrationReader(CalibrationDataReader):
    """Feeds one image at a time, in the layout and type that the model's input asks for."""

    def __init__(
        self,
        images: Images,
        model: str | Path | bytes,
        *,
        input_name: str | None = None,
        stride: int = 1,
        spec: ImageSpec | None = None,
    ) -> None:
        """Read the input's name, layout and type from `model`, a file or its bytes.

        Args:
            input_name: of the image input, where the model has several.
            stride: feed every `stride`-th image.
            spec: the teacher's; without it that of the shards holds.

        Raises:
            MismatchError: a model that does not take these images one by one.
            OptionError: a stride below 1. Else as `zsq.adapters.CalibrationImages`.
        """
        if stride < 1:
            raise OptionError(f"stride {stride}", "at least 1")
        self.images = CalibrationImages(images, spec)
        found = _image_input(model, input_name)
        self.input_name: str = found.name
        if found.type not in DTYPES:
            raise MismatchError(f"input '{found.name}' is {found.type}", f"one of {', '.join(DTYPES)}")
        self.dtype = DTYPES[found.type]
        self.layout = _layout(found.name, found.shape, self._shape)
        self._indices = range(0, len(self.images), stride)
        self.set_range(0, len(self._indices))

    def __len__(self) -> int:
        """Images that are fed in all."""
        return len(self._indices)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """{input name: one image (1, ...)}, None after the last."""
        index = next(self._left, None)
        if index is None:
            return None
        image = self.images.pixels([index]) if self.dtype is np.uint8 else self.images.norm([index])
        image = image if self.layout == "nchw" else image.movedim(1, -1)
        return {self.input_name: np.ascontiguousarray(image.numpy(), dtype=self.dtype)}

    def rewind(self) -> None:
        """Begin again with the first image of the range."""
        self._left = iter(self._range)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Feed images number `start_index` to `end_index` - 1 from now on (strided calibration)."""
        self._range = self._indices[start_index:end_index]
        self.rewind()

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.images.spec.shape if self.dtype is np.uint8 else self.images.input_shape


def _image_input(model: str | Path | bytes, name: str | None) -> Any:
    source = model if isinstance(model, bytes) else str(model)
    inputs = InferenceSession(source, providers=["CPUExecutionProvider"]).get_inputs()
    if name is None and len(inputs) == 1:
        return inputs[0]
    found = [each for each in inputs if each.name == name]
    if not found:
        names = ", ".join(each.name for each in inputs)
        raise MismatchError(f"input {name or 'without a name'} of a model with {names}", "the name of one")
    return found[0]


def _layout(name: str, shape: list[Any], image: tuple[int, ...]) -> str:
    """From the fixed axes of the input; one whose axes are all free takes nchw, as torch exports it."""
    channels, *sides = image
    for layout, axes in (("nchw", (1, channels, *sides)), ("nhwc", (1, *sides, channels))):
        pairs = zip(shape, axes, strict=True) if len(shape) == len(axes) else [(0, 1)]
        if all(found == expected or not isinstance(found, int) for found, expected in pairs):
            return layout
    expected = f"(1, {', '.join(map(str, image))}) in either layout"
    raise MismatchError(
        f"input '{name}' is {shape}", expected, "export the network with a batch of 1 or a free one"
    )
