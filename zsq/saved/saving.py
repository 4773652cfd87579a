"""A fitted student as two files, NAME.safetensors and NAME.json, and back to bit-identical outputs.

The tensor file holds quantized weights as the integers of their grids, steps and zero points, and float32 for
what is not quantized. The JSON holds everything else: grids, graph, image spec, teacher, cost, how the
student was made, and the sha256 of the tensor file. It is written last: without a JSON there is no student.
The graph is in it, so that neither the teacher nor the code of its architecture is needed to load a student.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import math
from contextlib import redirect_stderr
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import Tensor, fx

from zsq.contract import FittedStudent, QuantizedTensor, Teacher, check_fitted
from zsq.core.errors import OptionError, StudentFileError, UntraceableError, first_line
from zsq.core.files import atomic_write_bytes, atomic_write_text, input_path, read_regular
from zsq.core.modes import usual_modes
from zsq.core.records import first_fault
from zsq.core.runtime import device_of
from zsq.core.version import __version__
from zsq.core.wording import quantity
from zsq.graph import capture
from zsq.placement.choices import MASKS, widths_of
from zsq.placement.sites import row_name
from zsq.placement.subgraphs import up_to
from zsq.quantizers.grids import Quantizer
from zsq.quantizers.layers import weight_of
from zsq.runfolder import check_apart
from zsq.saved.cost import Cost, student_cost
from zsq.saved.dry_run import dry_run
from zsq.saved.record import (
    CostRecord,
    GridRecord,
    MadeRecord,
    StudentRecord,
    TaskRecord,
    TeacherIdentity,
)
from zsq.saved.stored_graph import build_graph, graph_tensors, move_to, record_graph
from zsq.saved.stored_grids import is_stored, restore, weight_integers
from zsq.tasks.nesting import Outputs, named_tensors, plain, shapes

TENSORS, RECORD = ".safetensors", ".json"
# Endings of what other options write: a folder of such a name would be taken for it.
EXPORTED = {".onnx": "--onnx", ".pt2": "--pt2"}
DEFAULT_STEM = "student"
MAX_TENSOR_BYTES = 16 * 2**30
MAX_RECORD_BYTES = 64 * 2**20


def student_files(path: str | Path) -> tuple[Path, Path]:
    """(tensor file, JSON) that `path` stands for: one of the two, or the folder that holds `student.*`."""
    path = input_path(path, "student")
    stem = path.with_suffix("") if path.suffix in (TENSORS, RECORD) else path / DEFAULT_STEM
    return stem.with_name(stem.name + TENSORS), stem.with_name(stem.name + RECORD)


def check_destination(path: str | Path) -> None:
    """Check that no student is there yet: while one replaced the other, files of both would lie there.

    Raises:
        OptionError: a student is there, a file where the folder would be, or a run that it would lie in.
    """
    _, record = student_files(path)
    check_apart(record)
    option = EXPORTED.get(Path(path).suffix)
    if option is not None:
        remedy = f"{option} {path} writes such a file"
        raise OptionError(
            f"--out {path}, which ends in {Path(path).suffix}", f"a folder, or NAME{TENSORS}", remedy
        )
    if record.exists():
        raise OptionError(f"a student is at {record} already", "a new --out", "remove it or choose another")
    if record.parent.exists() and not record.parent.is_dir():
        raise OptionError(f"--out {path}: {record.parent} is a file", f"a folder, or NAME{TENSORS}")


def check_saveable(teacher: Teacher) -> None:
    """Check that students of this teacher can be saved.

    Raises:
        UntraceableError: its graph holds what a file cannot.
    """
    example = teacher.example()
    network = capture(teacher.network, example)
    record_graph(network)
    try:
        dry_run(network, example[:1])
    # From inside torch: an operation may do anything with numbers that are not there.
    except Exception as error:
        found = f"no student of this network can be saved: {first_line(error)[:300]}"
        raise UntraceableError(found) from None


def save_student(fitted: FittedStudent, teacher: Teacher, path: str | Path) -> tuple[Path, Path]:
    """Write the student's tensor file and its JSON; their paths.

    Args:
        path: NAME.safetensors, or a folder for `student.safetensors`; nothing may be there yet.

    Raises:
        UntraceableError: the graph holds what a file cannot.
        OptionError: a student is there already. StorageError: the disk refused.

    Example:
        >>> result = zsq.quantize("embedded:digits", "embedded:digits:train", "ptq", "W4A4", count=64)
        >>> paths = zsq.save_student(result.fitted, zsq.load_teacher("embedded:digits"), "int4")
        >>> [path.name for path in paths]
        ['student.safetensors', 'student.json']
    """
    check_fitted(fitted)
    check_destination(path)
    tensors_path, record_path = student_files(path)
    data, text = student_bytes(fitted, teacher)
    _, loaded = _student(data, text)
    _check_same(fitted, loaded)
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
        if is_stored(module) and any(name.startswith(f"{path}.") for name in tensors)
    }
    assert quantizers.keys() == {row.name for row in fitted.tensors}, "every quantizer has a row"
    grids = [_grid(row, *quantizers[row.name]) for row in fitted.tensors]
    for grid in grids:
        if grid.kind == "weight":
            weight = tensors[grid.name]
            tensors[grid.name] = weight_integers(weight, quantizers[grid.name][1]).view(weight.shape)
    stored = {name: _plain(tensor) for name, tensor in tensors.items()}
    data = save(stored)
    record = StudentRecord(
        format="zsq student",
        format_version=2,
        zsq_version=__version__,
        student=fitted.student,
        bits=str(fitted.bits.uniform),
        first_last=fitted.first_last,
        widths=fitted.bits.rows,
        kept=dict(fitted.kept),
        shares=dict(fitted.shares),
        task=TaskRecord.of(fitted.task),
        image=fitted.spec,
        made=None if fitted.made is None else MadeRecord.of(fitted.made),
        teacher=TeacherIdentity(
            name=teacher.name, weights_sha256=teacher.weights_sha256, num_outputs=teacher.num_outputs
        ),
        tensors_sha256=hashlib.sha256(data).hexdigest(),
        cost=cost_record(student_cost(fitted)),
        grids=grids,
        channels_last=channels_last,
        graph=graph,
    )
    # What most students do not have is left out: their files stay as they were.
    unused = {name for name in ("widths", "kept", "shares") if not getattr(record, name)}
    return data, record.model_dump_json(indent=1, exclude=unused) + "\n"


def cost_record(cost: Cost) -> CostRecord:
    """The sums of `cost`."""
    return CostRecord(**{name: getattr(cost, name) for name in CostRecord.model_fields})


@usual_modes()
def load_student(path: str | Path, device: str | torch.device = "cpu") -> FittedStudent:
    """The student that `zsq quantize --out` or `save_student` wrote: the same outputs, bit by bit.

    Nothing that the files say is run as code: tensors are safetensors, the graph may call only what
    `zsq.graph.vocabulary` lists, it may not take more memory than there is, and one image goes through it to
    see that it computes.

    Args:
        path: the folder, or either of the two files.
        device: as in `load_teacher`.

    Raises:
        StudentFileError: missing, truncated, altered, not a student, or of parts that do not fit together.
        OptionError: a device that is not there.

    Example:
        >>> train = "embedded:digits:train"
        >>> made = zsq.quantize("embedded:digits", train, "ptq", "W8A8", count=64, out="int8")
        >>> student = zsq.load_student("int8")
        >>> images = zsq.load_images("embedded:digits:test", student.spec, limit=10)
        >>> student.logits(student.spec.pixels_to_standard(images.pixels)).shape
        torch.Size([10, 10])
    """
    place = device_of(device)
    _, fitted = read_student(path)
    assert isinstance(fitted.network, fx.GraphModule)
    move_to(fitted.network, place)
    return fitted


def read_student(path: str | Path) -> tuple[StudentRecord, FittedStudent]:
    """What both files say, and the student that they make, on the CPU.

    Raises:
        StudentFileError: as `load_student`.
    """
    tensors_path, record_path = student_files(path)
    data = _read(tensors_path, MAX_TENSOR_BYTES)
    text = _read(record_path, MAX_RECORD_BYTES)
    return _student(data, text, f"student {record_path}")


def _read(path: Path, most_bytes: int) -> bytes:
    try:
        return read_regular(path, most_bytes)
    except OSError as error:
        raise StudentFileError(
            f"student file {path}: {error.strerror}",
            f"NAME{TENSORS} and NAME{RECORD} side by side",
            "a fit that was killed leaves no student: quantize again",
        ) from None


def _student(data: bytes, text: str | bytes, what: str = "student") -> tuple[StudentRecord, FittedStudent]:
    try:
        record = StudentRecord.model_validate_json(text)
    except ValidationError as error:
        raise StudentFileError(f"{what}: {first_fault(error)}", "a student's JSON") from None
    if hashlib.sha256(data).hexdigest() != record.tensors_sha256:
        found = f"{what}: its {TENSORS} file is truncated, altered or of another student"
        raise StudentFileError(found, f"sha256 {record.tensors_sha256[:16]}")
    try:
        # torch.fx prints what fails inside a graph.
        with redirect_stderr(io.StringIO()):
            return record, _assembled(record, load(data))
    # Parts that do not fit together can raise anything from inside torch.
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        raise StudentFileError(f"{what}: its parts make no network: {reason[:300]}") from None


def _assembled(record: StudentRecord, tensors: dict[str, Tensor]) -> FittedStudent:
    quantizers = {}
    for grid in record.grids:
        quantizer = _quantizer(grid, tensors)
        quantizers[grid.path] = quantizer
        if grid.kind == "weight":
            integers = tensors[grid.name]
            _check_integers(grid, integers)
            # The slopes of a PReLU are quantized as one row.
            tensors[grid.name] = quantizer.values(integers.float()).detach().view(integers.shape)
    _check_finite(record, tensors)
    for name in record.channels_last:
        tensors[name] = _in_channels_last(tensors[name])
    network = build_graph(record.graph, quantizers, tensors)
    fitted = FittedStudent(
        record.student,
        record.asked_bits,
        record.first_last,
        network,
        record.image,
        tuple(grid.row for grid in record.grids),
        record.task.task(),
        None if record.made is None else record.made.made(),
        record.kept,
        record.shares,
    )
    dry_run(network, _example(fitted))
    _check_kept(fitted)
    _check_shares(fitted)
    _check_outputs(fitted, record.teacher.num_outputs)
    return fitted


def _check_finite(record: StudentRecord, tensors: dict[str, Tensor]) -> None:
    """Constants, such as the mask of an attention, may hold infinity; nothing may hold NaN."""
    constants = {node.target for node in record.graph.nodes if node.op == "get_attr"}
    for name, tensor in tensors.items():
        broken = tensor.isnan() if name in constants else ~tensor.isfinite()
        if bool(broken.any()):
            raise ValueError(f"'{name}' holds NaN or infinity")


@torch.no_grad()
def _check_kept(fitted: FittedStudent) -> None:
    for name, kept in fitted.kept.items():
        weight = weight_of(fitted.network, name)
        left = int(weight.count_nonzero())
        if not left <= kept <= weight.numel():
            raise ValueError(f"'{name}' has {left} weights other than zero, where {kept} of them are kept")


@torch.no_grad()
def _check_shares(fitted: FittedStudent) -> None:
    if not fitted.shares:
        return
    layers = {row.name.removesuffix(".weight") for row in fitted.tensors if row.kind == "weight"}
    chosen = [name for names in widths_of(fitted.shares).values() for name in names]
    if chosen != list(fitted.shares) or not layers.issuperset(chosen):
        raise ValueError("shares of images are not of the widths of layers")
    assert isinstance(fitted.network, fx.GraphModule)
    (masks,) = up_to(fitted.network, (MASKS,))(_example(fitted)) or (torch.empty(0),)
    if masks[0:1].numel() != len(chosen):
        raise ValueError(f"shares of {len(chosen)} widths of layers, where images choose among others")


def _check_outputs(fitted: FittedStudent, num_outputs: int | None) -> None:
    outputs = probe(fitted)
    sized = num_outputs is None or (outputs.dim() > 1 and outputs.shape[1] == num_outputs)
    if not fitted.task.suits(outputs) or not sized:
        of_size = "" if num_outputs is None else f" with {num_outputs}"
        raise ValueError(f"one image gives {shapes(outputs)} instead of {fitted.task.wants}{of_size}")


def _quantizer(grid: GridRecord, tensors: dict[str, Tensor]) -> Quantizer:
    prefix = f"{grid.path}."
    parts = {name.removeprefix(prefix): part for name, part in tensors.items() if name.startswith(prefix)}
    try:
        quantizer = restore(grid.form, grid.kind, grid.bits, (grid.lo, grid.hi), parts)
    except KeyError as error:
        raise ValueError(f"'{grid.path}' has no {error}") from None
    except ValueError as error:
        raise ValueError(f"'{grid.path}' has {error}") from None
    if grid.kind == "activation" and grid.num_scales != 1:
        raise ValueError(f"'{grid.path}' has {quantity(grid.num_scales, 'step')} for a tensor of activations")
    if quantizer.num_scales != grid.num_scales:
        raise ValueError(
            f"'{grid.path}' has {quantity(quantizer.num_scales, 'step')} instead of {grid.num_scales}"
        )
    return quantizer


def _check_integers(grid: GridRecord, integers: Tensor) -> None:
    if integers.dtype != grid.dtype:
        raise ValueError(f"'{grid.name}' is {integers.dtype} instead of {grid.dtype}")
    if int(integers.min()) < grid.lo or int(integers.max()) > grid.hi:
        raise ValueError(f"'{grid.name}' has levels outside of {grid.lo}..{grid.hi}")
    if grid.num_scales not in (1, len(integers)):
        raise ValueError(
            f"'{grid.name}' has {quantity(len(integers), 'channel')} and {quantity(grid.num_scales, 'step')}"
        )


def _grid(row: QuantizedTensor, path: str, quantizer: Quantizer) -> GridRecord:
    lo, hi = quantizer.bounds
    return GridRecord(**asdict(row), path=path, form=quantizer.form, lo=lo, hi=hi)


def _plain(tensor: Tensor) -> Tensor:
    # A copy: safetensors refuses tensors that share memory.
    return tensor.detach().cpu().contiguous().clone()


def _in_channels_last(tensor: Tensor) -> Tensor:
    # By strides alone: with one channel both layouts hold the same bytes, and convolutions still differ.
    return torch.empty_like(tensor, memory_format=torch.channels_last).copy_(tensor)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.stride() == _in_channels_last(tensor).stride()


def _check_same(fitted: FittedStudent, loaded: FittedStudent) -> None:
    """Check that the files give the outputs of the fitted student: hooks, for one, are not in a file."""
    assert isinstance(fitted.network, fx.GraphModule)
    copied = dataclasses.replace(fitted, network=move_to(copy.deepcopy(fitted.network), "cpu"))
    found, expected = (dict(named_tensors(probe(each))) for each in (loaded, copied))
    same = found.keys() == expected.keys()
    if not same or not all(torch.equal(found[name], expected[name]) for name in expected):
        raise UntraceableError("the saved student does not give the outputs of the fitted one")


@torch.no_grad()
def probe(fitted: FittedStudent) -> Outputs:
    """Outputs on one image of all grey levels, on the CPU."""
    return plain(fitted.network(_example(fitted)))


def _example(fitted: FittedStudent) -> Tensor:
    levels = torch.arange(math.prod(fitted.spec.shape)) * 89 % 256
    pixels = levels.to(torch.uint8).view(1, *fitted.spec.shape)
    return fitted.spec.pixels_to_norm(pixels)
