"""A student whose quantizers are operations `quantized_decomposed` of PyTorch (PT2E), for converters that
make integers of them, such as those of LiteRT and ExecuTorch.

A tensor is int8 between its quantization and dequantization, with the student's steps; unsigned activations
are moved by 128 with their zero point. Biases, additions and what else the student keeps in float stay float.
"""

from __future__ import annotations

import copy
import io
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from zsq.contract import FittedStudent, Student, check_fitted
from zsq.core.errors import ExportError, OptionError, first_line
from zsq.core.files import atomic_write_bytes
from zsq.core.runtime import one_thread
from zsq.quantizers.grids import FakeQuantizer, Quantizer
from zsq.runfolder import file_out
from zsq.saved.stored_graph import move_to
from zsq.saved.stored_grids import check_widths, no_onnx_form
from zsq.widths import Bits

INT8 = (-128, 127, torch.int8)
# Of weights: XNNPACK and LiteRT know no -128 there.
NARROW = (-127, 127, torch.int8)


class _Activation(nn.Module):
    def __init__(self, quantizer: FakeQuantizer) -> None:
        super().__init__()
        moved = int(quantizer.zero_point) - (quantizer.lo - INT8[0])
        self.grid = (float(quantizer.step), moved, *INT8)

    def forward(self, x: Tensor) -> Tensor:
        operations = torch.ops.quantized_decomposed
        integers = operations.quantize_per_tensor.default(x, *self.grid)
        return operations.dequantize_per_tensor.default(integers, *self.grid)


class _Weight(nn.Module):
    values: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self, weight: Tensor, quantizer: FakeQuantizer) -> None:
        super().__init__()
        step = quantizer.step.detach()
        self.axis = max(range(weight.dim()), key=lambda axis: step.shape[axis]) if step.numel() > 1 else 0
        self.register_buffer("values", quantizer(weight).detach())
        self.register_buffer("scales", step.flatten().expand(weight.shape[self.axis]).contiguous())
        self.register_buffer("zeros", torch.zeros(len(self.scales), dtype=torch.int64))

    def forward(self, weight: Tensor) -> Tensor:
        operations = torch.ops.quantized_decomposed
        grid = (self.scales, self.zeros, self.axis, *NARROW)
        # The values lie on the grid: a converter that folds this gets the student's integers.
        integers = operations.quantize_per_channel.default(self.values, *grid)
        return operations.dequantize_per_channel.default(integers, *grid)


def check_exportable(name: str, student: Student, bits: Bits, first_last: int | None) -> None:
    """Check before a fit by the student `name` what is known of its result: widths, the form of its grids,
    and that weights will have no zero point.

    Raises:
        OptionError: other widths, grids that have no such form, or `ptq` without `symmetric_weights`.
    """
    check_widths("--pt2", bits, first_last)
    lacking = no_onnx_form(student.form)
    if lacking is not None:
        _refuse_grids(name, lacking)
    if not getattr(student.options, "symmetric_weights", True):
        _refuse_weights(f"weights of student {name} have a zero point")


def _refuse_grids(student: str, what: str) -> NoReturn:
    raise OptionError(f"student {student}: its grids have {what}", "one scale each", "use another student")


def _refuse_weights(found: str) -> NoReturn:
    expected = "integers of -127..127 without one"
    raise OptionError(found, expected, "--student ptq --set symmetric_weights=true")


def pt2e_student(fitted: FittedStudent) -> fx.GraphModule:
    """The student's network for `torch.export.export`, on the CPU; norm in, outputs as the student's.

    Weights must have no zero point: those of `ptq` with `symmetric_weights`, and of students that learn their
    steps, such as `lsq-kd`.

    Raises:
        OptionError: other widths, or grids that have no such form.

    Example:
        >>> result = zsq.quantize(
        ...     "embedded:digits", "embedded:digits:train", "ptq", "W8A8", count=64,
        ...     set={"symmetric_weights": True},
        ... )
        >>> import torch
        >>> program = torch.export.export(zsq.pt2e_student(result.fitted), (torch.zeros(1, 1, 32, 32),))
    """
    check_fitted(fitted)
    check_widths("--pt2", fitted.bits, fitted.first_last)
    # Where PyTorch keeps these operations; to import it is what registers them.
    import_module("torch.ao.quantization.fx._decomposed")
    assert isinstance(fitted.network, fx.GraphModule)
    network = move_to(copy.deepcopy(fitted.network), "cpu")
    for path, quantizer in list(network.named_modules()):
        if isinstance(quantizer, Quantizer):
            network.set_submodule(path, _replaced(fitted, network, path, quantizer))
    return network


def export_pt2(fitted: FittedStudent, path: str | Path) -> None:
    """Write `pt2e_student` as a program of PyTorch, which `torch.export.load` reads; for one image, float32
    norm (1, C, H, W).

    PyTorch knows the operations once `torch.ao.quantization.fx._decomposed` is imported.

    Raises:
        OptionError: as `pt2e_student`.
        ExportError: the network cannot be exported. StorageError: the disk refused.

    Example:
        >>> result = zsq.quantize(
        ...     "embedded:digits", "embedded:digits:train", "ptq", "W8A8", count=64,
        ...     set={"symmetric_weights": True},
        ... )
        >>> zsq.export_pt2(result.fitted, "digits.pt2")
    """
    target = file_out(path, "path")
    network, content = pt2e_student(fitted), io.BytesIO()
    image = fitted.spec.pixels_to_norm(torch.zeros(1, *fitted.spec.shape, dtype=torch.uint8))
    # From inside the exporter, which may refuse a network in many ways.
    try:
        with one_thread:
            program = torch.export.export(network, (image,))
        # They name the folders of the machine.
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        torch.export.save(program, content)
    except Exception as error:
        said = first_line(error)[:300]
        raise ExportError(f"student {fitted.student} cannot be exported by PyTorch: {said}") from None
    atomic_write_bytes(target, content.getvalue())


def _replaced(fitted: FittedStudent, network: nn.Module, path: str, quantizer: Quantizer) -> nn.Module:
    if quantizer.no_onnx_form is not None:
        _refuse_grids(fitted.student, quantizer.no_onnx_form)
    affine = quantizer.as_affine()
    if quantizer.kind == "activation":
        return _Activation(affine)
    weight: Any = network.get_submodule(path.removesuffix(".weight_quantizer")).weight
    integers = affine.integers(weight.detach())
    if affine.zero_point.any() or integers.abs().max() > NARROW[1]:
        layer = path.removesuffix("_quantizer")
        found = f"student {fitted.student}: weights of {layer} have a zero point, or the integer -128"
        _refuse_weights(found)
    return _Weight(weight.detach(), affine)
