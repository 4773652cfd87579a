"""A student as an ONNX model with QuantizeLinear and DequantizeLinear, for 8-bit integer hardware.

Each quantizer of an activation becomes the pair of both, each quantizer of a weight a DequantizeLinear over
the grid's integers in an 8-bit container, with the same steps and zero points. Biases, additions and what
else the student keeps in float stay float. The model takes the network's own (norm) input, any batch. It has
one output for each tensor that the network gives, and its metadata say how they are nested.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from zsq.contract import THEN, FittedStudent, Teacher, check_fitted
from zsq.core.errors import ExportError, MissingExtraError, OptionError, first_line
from zsq.core.files import atomic_write_bytes
from zsq.core.imagespec import ImageSpec
from zsq.core.runtime import one_thread
from zsq.graph import capture
from zsq.quantizers.grids import FakeQuantizer, Quantizer
from zsq.runfolder import file_out
from zsq.saved.stored_graph import move_to
from zsq.saved.stored_grids import check_widths, no_onnx_form, weight_integers
from zsq.students import STUDENTS
from zsq.tasks.nesting import Outputs, named_tensors, plain
from zsq.widths import Bits

INPUT, OUTPUT = "images", "outputs"
# The model's metadata under this name: the nesting of its outputs as JSON.
NESTING = "zsq.outputs"
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


def check_exportable(student: str, bits: Bits, first_last: int | None) -> None:
    """Check that 8-bit containers hold these widths, that the student's grids have an ONNX form, and that the
    packages that export are installed.

    Raises:
        OptionError: other widths or grids. MissingExtraError: a package is not there.
    """
    last = student.rpartition(THEN)[2]
    lacking = no_onnx_form(STUDENTS[last].form) if last in STUDENTS else None
    if lacking is not None:
        _refuse_grids(student, lacking)
    check_widths("--onnx", bits, first_last)
    for package in _EXTRA:
        if find_spec(package) is None:
            raise MissingExtraError(package, "onnxruntime")


def _refuse_grids(student: str, what: str) -> NoReturn:
    found = f"student {student}: its grids have {what}"
    raise OptionError(found, "one scale each for QuantizeLinear", "use another student for --onnx")


def check_network_exportable(teacher: Teacher) -> None:
    """Check that the network has an ONNX form, by making one of it in float.

    Raises:
        ExportError: it has none. UntraceableError: as `zsq.graph.capture`.
    """
    example = teacher.example()
    network = move_to(capture(teacher.network, example), "cpu")
    _exported(network, example.cpu(), f"teacher {teacher.name}")


def export_onnx(fitted: FittedStudent, path: str | Path) -> None:
    """Write the student as an ONNX file that onnx's own checker accepts.

    Input `images` is float32 norm (N, C, H, W). The output is `outputs`, or of a network that gives several
    tensors `outputs.PATH` for each, such as `outputs.heads.0`; shapes as the network's.

    Raises:
        OptionError: also for a student whose quantizers have no such form (qfd).
        MissingExtraError: as `check_exportable`.
        ExportError: the network has no ONNX form. StorageError: the disk refused.

    Example:
        >>> result = zsq.quantize("embedded:digits", "embedded:digits:train", "ptq", "W8A8", count=64)
        >>> zsq.export_onnx(result.fitted, "digits.onnx")
    """
    check_fitted(fitted)
    target = file_out(path, "path")
    check_exportable(fitted.student, fitted.bits, fitted.first_last)
    network = _with_onnx_quantizers(fitted.network, fitted.student)
    black = torch.zeros(2, *fitted.spec.shape, dtype=torch.uint8)
    model = _exported(network, fitted.spec.pixels_to_norm(black), f"student {fitted.student}")
    atomic_write_bytes(target, model)


def _exported(network: nn.Module, example: Tensor, what: str) -> bytes:
    try:
        return _model(network, example)
    # From inside the exporter, which may refuse a network in many ways.
    except Exception as error:
        raise ExportError(f"{what} has no ONNX form: {first_line(error)[:300]}") from None


def _model(network: nn.Module, example: Tensor) -> bytes:
    import onnx

    with torch.no_grad():
        outputs = plain(network(example))
    with one_thread, warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[name for name, _ in named_tensors(outputs, OUTPUT)],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {NESTING: json.dumps(_nesting(outputs, OUTPUT))})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _nesting(outputs: Outputs, path: str) -> Any:
    """A tensor as its name, a dict as its keys and values: JSON would make text of its numbers."""
    if isinstance(outputs, Tensor):
        return path
    if isinstance(outputs, dict):
        return {"dict": [[key, _nesting(part, f"{path}.{key}")] for key, part in outputs.items()]}
    return {type(outputs).__name__: [_nesting(part, f"{path}.{i}") for i, part in enumerate(outputs)]}


def _nested(nesting: Any, tensors: Mapping[str, Tensor]) -> Outputs:
    if isinstance(nesting, str):
        return tensors[nesting]
    ((kind, parts),) = nesting.items()
    if kind == "dict":
        return {key: _nested(part, tensors) for key, part in parts}
    made = [_nested(part, tensors) for part in parts]
    return made if kind == "list" else tuple(made)


def _with_onnx_quantizers(network: nn.Module, student: str) -> nn.Module:
    assert isinstance(network, fx.GraphModule)
    copied = move_to(copy.deepcopy(network), "cpu")
    for path, quantizer in list(copied.named_modules()):
        if not isinstance(quantizer, Quantizer):
            continue
        if quantizer.no_onnx_form is not None:
            _refuse_grids(student, quantizer.no_onnx_form)
        affine = quantizer.as_affine()
        if quantizer.kind == "weight":
            layer = copied.get_submodule(path.removesuffix(".weight_quantizer"))
            assert isinstance(layer.weight, Tensor)
            copied.set_submodule(path, _QuantizedWeight(layer.weight.detach(), affine))
        else:
            # QuantizeLinear saturates at the ends of its integer type and nowhere else.
            assert affine.hi - affine.lo == 255, "an 8-bit grid"
            copied.set_submodule(path, _QuantizedActivation(affine))
    return copied


class OnnxStudent:
    """An exported student in ONNX Runtime, with the `logits` of any other model."""

    def __init__(self, path: str | Path, spec: ImageSpec) -> None:
        """Open the file at `path`; `spec` is the student's."""
        from onnxruntime import InferenceSession

        self.spec = spec
        self._session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]
        self._nesting = json.loads(self._session.get_modelmeta().custom_metadata_map[NESTING])

    def logits(self, standard_NCHW: Tensor) -> Outputs:
        """Standard-space images -> the student's outputs, on the CPU: one tensor or a nesting of tensors."""
        norm = self.spec.standard_to_norm(standard_NCHW).cpu().contiguous()
        found = self._session.run(self._names, {INPUT: norm.numpy()})
        tensors = {name: torch.from_numpy(each) for name, each in zip(self._names, found, strict=True)}
        return _nested(self._nesting, tensors)
