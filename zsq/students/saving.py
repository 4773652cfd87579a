"""A fitted student as two files, NAME.safetensors and NAME.json, and back to bit-identical outputs.

The tensor file holds quantized weights as the integers of their grids, steps and zero points, and float32 for
what is not quantized. The JSON holds everything else: grids, graph, image spec, teacher, cost, and the sha256
of the tensor file. It is written last, so that a student without it is not there. The graph is in it, so that
neither the teacher nor the code of its architecture is needed to load a student.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import Tensor, fx

from zsq.contract import Bits, FittedStudent, QuantizedTensor, Teacher
from zsq.errors import OptionError, StudentFileError
from zsq.files import atomic_write_bytes, atomic_write_text
from zsq.quantizers.graphs import build_graph, graph_tensors, record_graph
from zsq.quantizers.grids import SMALLEST_STEP, FakeQuantizer
from zsq.quantizers.placement import row_name
from zsq.quantizers.trace import trace
from zsq.students.cost import Cost, student_cost
from zsq.students.record import CostRecord, GridRecord, StudentRecord, TeacherRecord
from zsq.version import __version__

TENSORS, RECORD = ".safetensors", ".json"
DEFAULT_STEM = "student"
MAX_RECORD_BYTES = 64 * 2**20

_STEP, _ZERO = "step", "zero_point"


def student_files(path: str | Path) -> tuple[Path, Path]:
    """(tensor file, JSON) that `path` stands for: one of the two, or the folder that holds `student.*`."""
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (TENSORS, RECORD) else path / DEFAULT_STEM
    return stem.with_name(stem.name + TENSORS), stem.with_name(stem.name + RECORD)


def check_destination(path: str | Path) -> None:
    """Pass a place where no student is yet: two of them would share a moment of mixed files.

    Raises:
        OptionError: a student is there.
    """
    _, record = student_files(path)
    if record.exists():
        raise OptionError(f"a student is at {record} already", "a new --out", "remove it or choose another")


def check_saveable(teacher: Teacher) -> None:
    """Pass a teacher whose students can be saved.

    Raises:
        UntraceableError: its graph holds what a file cannot.
    """
    record_graph(trace(teacher.network))


def save_student(fitted: FittedStudent, teacher: Teacher, path: str | Path) -> tuple[Path, Path]:
    """Write the student's tensor file and its JSON; their paths.

    Args:
        path: NAME.safetensors, or a folder for `student.safetensors`; nothing may be there yet.

    Raises:
        UntraceableError: the graph holds what a file cannot.
        OptionError: a student is there already. StorageError: the disk refused.
    """
    check_destination(path)
    tensors_path, record_path = student_files(path)
    data, text = student_bytes(fitted, teacher)
    _check_same(fitted, _student(data, text))
    atomic_write_bytes(tensors_path, data)
    atomic_write_text(record_path, text)
    return tensors_path, record_path


def student_bytes(fitted: FittedStudent, teacher: Teacher) -> tuple[bytes, str]:
    """The contents of both files."""
    graph = record_graph(fitted.network)
    assert isinstance(fitted.network, fx.GraphModule)
    tensors = graph_tensors(fitted.network)
    channels_last = [name for name, tensor in tensors.items() if _is_channels_last(tensor)]
    quantizers = {
        row_name(path): (path, module)
        for path, module in fitted.network.named_modules()
        if type(module) is FakeQuantizer and f"{path}.{_STEP}" in tensors
    }
    assert quantizers.keys() == {row.name for row in fitted.tensors}, "every quantizer has a row"
    grids = [_grid(row, *quantizers[row.name]) for row in fitted.tensors]
    for grid in grids:
        if grid.kind == "weight":
            tensors[grid.name] = weight_integers(tensors[grid.name], quantizers[grid.name][1])
    stored = {name: _plain(tensor) for name, tensor in tensors.items()}
    data = save(stored)
    record = StudentRecord(
        format="zsq student",
        format_version=1,
        zsq_version=__version__,
        student=fitted.student,
        bits=str(fitted.bits),
        first_last=fitted.first_last,
        task=fitted.task,
        image=fitted.spec,
        teacher=TeacherRecord(
            name=teacher.name, weights_sha256=teacher.weights_sha256, num_outputs=teacher.num_outputs
        ),
        tensors_sha256=hashlib.sha256(data).hexdigest(),
        cost=cost_record(student_cost(fitted)),
        grids=grids,
        channels_last=channels_last,
        graph=graph,
    )
    return data, record.model_dump_json(indent=1) + "\n"


def cost_record(cost: Cost) -> CostRecord:
    """The sums of `cost`."""
    return CostRecord(**{name: getattr(cost, name) for name in CostRecord.model_fields})


def weight_integers(weight: Tensor, quantizer: FakeQuantizer) -> Tensor:
    """The grid's integers q of `weight` in an 8-bit container; s (q - z) is the quantized weight."""
    step = quantizer.step.clamp(min=SMALLEST_STEP)
    quantized = quantizer(weight)
    integers = (quantized / step).round() + quantizer.zero_point
    stored = integers.to(torch.int8 if quantizer.lo < 0 else torch.uint8)
    assert torch.equal((stored - quantizer.zero_point) * step, quantizer(weight)), (
        "a grid of whole zero points"
    )
    return stored


def load_student(path: str | Path, device: str = "cpu") -> FittedStudent:
    """The student that `zsq quantize --out` or `save_student` wrote: the same outputs, bit by bit.

    Nothing that the files say is run as code: tensors are safetensors, the graph may call only what
    `zsq.quantizers.operations` lists, and one image goes through it to see that it computes.

    Args:
        path: the folder, or either of the two files.

    Raises:
        StudentFileError: missing, truncated, altered, not a student, or of parts that do not fit together.
    """
    tensors_path, record_path = student_files(path)
    data = _read(tensors_path)
    if record_path.is_file() and record_path.stat().st_size > MAX_RECORD_BYTES:
        raise StudentFileError(f"{record_path} has {record_path.stat().st_size} bytes", "a student's JSON")
    text = _read(record_path)
    fitted = _student(data, text, f"student {record_path}")
    fitted.network.to(device)
    return fitted


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StudentFileError(
            f"student file {path}: {error.strerror}",
            f"NAME{TENSORS} and NAME{RECORD} side by side",
            "a fit that was killed leaves no student: quantize again",
        ) from None


def _student(data: bytes, text: str | bytes, what: str = "student") -> FittedStudent:
    try:
        record = StudentRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise StudentFileError(f"{what}: {key or 'JSON'}: {first['msg']}", "a student's JSON") from None
    if hashlib.sha256(data).hexdigest() != record.tensors_sha256:
        found = f"{what}: its {TENSORS} file is truncated, altered or of another student"
        raise StudentFileError(found, f"sha256 {record.tensors_sha256[:16]}")
    try:
        return _assembled(record, load(data))
    # Parts that do not fit together can raise anything from inside torch.
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        raise StudentFileError(f"{what}: its parts make no network: {reason[:300]}") from None


def _assembled(record: StudentRecord, tensors: dict[str, Tensor]) -> FittedStudent:
    quantizers = {}
    for grid in record.grids:
        step, zero = tensors[f"{grid.path}.{_STEP}"], tensors[f"{grid.path}.{_ZERO}"]
        _check_grid(grid, step, zero)
        quantizers[grid.path] = FakeQuantizer(step, zero, grid.lo, grid.hi, grid.kind)
        if grid.kind == "weight":
            tensors[grid.name] = _check_integers(grid, tensors[grid.name], zero) * step.clamp(
                min=SMALLEST_STEP
            )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"'{name}' holds NaN or infinity")
    for name in record.channels_last:
        tensors[name] = _in_channels_last(tensors[name])
    network = build_graph(record.graph, quantizers, tensors)
    rows = tuple(
        QuantizedTensor(grid.name, grid.kind, grid.bits, grid.num_scales, grid.signed)
        for grid in record.grids
    )
    bits = Bits.parse(record.bits)
    fitted = FittedStudent(record.student, bits, record.first_last, network, record.image, rows, record.task)
    found, expected = tuple(_probe(fitted).shape), (1, record.teacher.num_outputs)
    if found != expected:
        raise ValueError(f"one image gives {found} instead of {expected}")
    return fitted


def _check_grid(grid: GridRecord, step: Tensor, zero: Tensor) -> None:
    if step.numel() != grid.num_scales or zero.shape != step.shape:
        raise ValueError(f"'{grid.path}' has {step.numel()} steps and {zero.numel()} zero points")
    if step.dtype != torch.float32 or zero.dtype != torch.float32 or not bool((step > 0).all()):
        raise ValueError(f"'{grid.path}' has no positive float32 steps")
    if not torch.equal(zero, zero.round()) or int(zero.min()) < grid.lo or int(zero.max()) > grid.hi:
        raise ValueError(f"'{grid.path}' has zero points off its levels {grid.lo}..{grid.hi}")


def _check_integers(grid: GridRecord, integers: Tensor, zero: Tensor) -> Tensor:
    """q - z as float32."""
    if integers.dtype != grid.dtype:
        raise ValueError(f"'{grid.name}' is {integers.dtype} instead of {grid.dtype}")
    if int(integers.min()) < grid.lo or int(integers.max()) > grid.hi:
        raise ValueError(f"'{grid.name}' has levels outside of {grid.lo}..{grid.hi}")
    if grid.num_scales not in (1, len(integers)):
        raise ValueError(f"'{grid.name}' has {len(integers)} channels and {grid.num_scales} steps")
    return integers - zero


def _grid(row: QuantizedTensor, path: str, quantizer: FakeQuantizer) -> GridRecord:
    return GridRecord(**asdict(row), path=path, lo=quantizer.lo, hi=quantizer.hi)


def _plain(tensor: Tensor) -> Tensor:
    # A copy: safetensors refuses tensors that share memory.
    return tensor.detach().cpu().contiguous().clone()


def _in_channels_last(tensor: Tensor) -> Tensor:
    # By strides alone: with one channel both layouts hold the same bytes, and convolutions still differ.
    return torch.empty_like(tensor, memory_format=torch.channels_last).copy_(tensor)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.stride() == _in_channels_last(tensor).stride()


def _check_same(fitted: FittedStudent, loaded: FittedStudent) -> None:
    """What is written is the student, whatever modules of a user's own do beside their `forward`."""
    copied = dataclasses.replace(fitted, network=copy.deepcopy(fitted.network).cpu())
    if not torch.equal(_probe(copied), _probe(loaded)):
        raise StudentFileError("the saved student does not give the outputs of the fitted one")


@torch.no_grad()
def _probe(fitted: FittedStudent) -> Tensor:
    """Outputs on one image of all grey levels, on the CPU."""
    levels = torch.arange(math.prod(fitted.spec.shape)) * 89 % 256
    pixels = levels.to(torch.uint8).view(1, *fitted.spec.shape)
    return fitted.network(fitted.spec.pixels_to_norm(pixels))
