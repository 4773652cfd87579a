"""A student as an ONNX model with QuantizeLinear and DequantizeLinear, for 8-bit integer hardware.

Each quantizer of an activation becomes the pair of both, each quantizer of a weight a DequantizeLinear over
the grid's integers in an 8-bit container, with the same steps and zero points. Biases, additions and what
else the student keeps in float stay float. The model takes the network's own (norm) input, any batch.
"""

from __future__ import annotations

import copy
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zsq.contract import FittedStudent
from zsq.core.errors import ExportError, MissingExtraError, OptionError
from zsq.core.files import atomic_write_bytes
from zsq.core.imagespec import ImageSpec
from zsq.quantizers.grids import FakeQuantizer, Quantizer
from zsq.saved.stored_grids import weight_integers
from zsq.widths import Bits

WIDTHS = (Bits(8, 8), Bits(4, 8))
INPUT, OUTPUT = "images", "outputs"
_EXTRA = ("onnx", "onnxscript", "onnxruntime")


class _QuantizedActivation(nn.Module):
    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: FakeQuantizer) -> None:
        super().__init__()
        self.dtype = torch.int8 if quantizer.lo < 0 else torch.uint8
        self.register_buffer("scale", quantizer.step.detach().reshape(()))
        self.register_buffer("zero_point", quantizer.zero_point.reshape(()).to(self.dtype))

    def forward(self, x: Tensor) -> Tensor:
        integers = _operation("QuantizeLinear", (x, self.scale, self.zero_point), x, self.dtype)
        return _operation("DequantizeLinear", (integers, self.scale, self.zero_point), x, torch.float32)


class _QuantizedWeight(nn.Module):
    integers: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, weight: Tensor, quantizer: FakeQuantizer) -> None:
        super().__init__()
        self.register_buffer("integers", weight_integers(weight, quantizer))
        shape = () if quantizer.step.numel() == 1 else (-1,)
        self.register_buffer("scale", quantizer.step.detach().reshape(shape))
        self.register_buffer("zero_point", quantizer.zero_point.reshape(shape).to(self.integers.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        parts = (self.integers, self.scale, self.zero_point)
        return _operation("DequantizeLinear", parts, weight, torch.float32, {"axis": 0})


def _operation(
    name: str, inputs: tuple[Tensor, ...], like: Tensor, dtype: torch.dtype, attributes: Any = None
) -> Tensor:
    return torch.onnx.ops.symbolic(name, inputs, attributes, dtype=dtype, shape=like.shape)


def check_exportable(bits: Bits, first_last: int | None) -> None:
    """Check that 8-bit containers hold these widths and that the packages that export are installed.

    Raises:
        OptionError: other widths. MissingExtraError: a package is not there.
    """
    if bits not in WIDTHS or first_last not in (None, 8):
        ends = "" if first_last is None else f" --first-last {first_last}"
        expected = f"{' or '.join(map(str, WIDTHS))}, with --first-last 8 if any"
        raise OptionError(f"--onnx of {bits}{ends}", expected, "ONNX holds 8-bit integers")
    for package in _EXTRA:
        if find_spec(package) is None:
            raise MissingExtraError(package, "onnxruntime")


def export_onnx(fitted: FittedStudent, path: str | Path) -> None:
    """Write the student as an ONNX file that onnx's own checker accepts.

    Input `images` is float32 norm (N, C, H, W), output `outputs` float32 (N, num_outputs).

    Raises:
        OptionError: also for a student whose quantizers have no such form (qfd).
        MissingExtraError: as `check_exportable`.
        ExportError: the network has no ONNX form. StorageError: the disk refused.

    Example:
        >>> result = zsq.quantize("embedded:digits", "embedded:digits:train", "ptq", "W8A8", count=64)
        >>> zsq.export_onnx(result.fitted, "digits.onnx")
    """
    check_exportable(fitted.bits, fitted.first_last)
    network = _with_onnx_quantizers(fitted.network, fitted.student)
    black = torch.zeros(2, *fitted.spec.shape, dtype=torch.uint8)
    try:
        model = _exported(network, fitted.spec.pixels_to_norm(black))
    # From inside the exporter, which may refuse a network in many ways.
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ExportError(f"student {fitted.student} has no ONNX form: {reason[:300]}") from None
    atomic_write_bytes(Path(path), model)


def _exported(network: nn.Module, example: Tensor) -> bytes:
    import onnx

    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    model = program.model_proto
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _with_onnx_quantizers(network: nn.Module, student: str) -> nn.Module:
    copied = copy.deepcopy(network).cpu()
    for path, quantizer in list(copied.named_modules()):
        if not isinstance(quantizer, Quantizer):
            continue
        if not isinstance(quantizer, FakeQuantizer):
            found = f"student {student}: its grids have an input scale and an output scale"
            raise OptionError(found, "one scale each for QuantizeLinear", "use another student for --onnx")
        if quantizer.kind == "weight":
            layer = copied.get_submodule(path.removesuffix(".weight_quantizer"))
            assert isinstance(layer.weight, Tensor)
            copied.set_submodule(path, _QuantizedWeight(layer.weight.detach(), quantizer))
        else:
            # QuantizeLinear saturates at the ends of its integer type and nowhere else.
            assert quantizer.hi - quantizer.lo == 255, "an 8-bit grid"
            copied.set_submodule(path, _QuantizedActivation(quantizer))
    return copied


class OnnxStudent:
    """An exported student in ONNX Runtime, with the `logits` of any other model."""

    def __init__(self, path: str | Path, spec: ImageSpec) -> None:
        """Open the file at `path`; `spec` is the student's."""
        from onnxruntime import InferenceSession

        self.spec = spec
        self._session = InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def logits(self, standard_NCHW: Tensor) -> Tensor:
        """Standard-space images -> (N, num_outputs)."""
        norm = self.spec.standard_to_norm(standard_NCHW).cpu().contiguous()
        return torch.from_numpy(self._session.run([OUTPUT], {INPUT: norm.numpy()})[0])
