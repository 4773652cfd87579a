"""What a saved student's JSON holds, as validated models."""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt, TypeAdapter, ValidationError, field_validator, model_validator

from zsq.contract import Form, ImagesOrigin, Made, QuantizedTensor
from zsq.core.errors import OptionError
from zsq.core.imagespec import ImageSpec
from zsq.core.records import Sha256, StrictRecord, first_fault
from zsq.placement.sites import row_name
from zsq.saved.stored_graph import Dotted, GraphRecord
from zsq.tasks import TASKS, Task, TaskName
from zsq.widths import Bits, Kind, Width, WidthOrFloat, check_first_last

# The last part of a quantizer's path; a second quantizer of the same place has a number.
_PLACE = re.compile(r"[a-z]+_quantizer\d*")
_WEIGHT_PLACE = "weight_quantizer"


class TeacherIdentity(StrictRecord):
    """Whom the student was fitted to; nothing of it is needed to load the student. `num_outputs` as in
    `zsq.contract.Teacher`."""

    name: str
    weights_sha256: str
    num_outputs: Annotated[int, Field(ge=1)] | None


class TaskRecord(StrictRecord):
    """A task and its fields. Functions of the user's own, such as a detector's `decode`, are not stored."""

    name: TaskName
    fields: dict[str, Any]

    @model_validator(mode="after")
    def _makes_a_task(self) -> TaskRecord:
        known = {field.name for field in fields(TASKS[self.name])}
        unknown = next((key for key in self.fields if key not in known), None)
        if unknown is not None:
            raise ValueError(f"task '{self.name}' has no {unknown}")
        try:
            self.task()
        except ValidationError as error:
            raise ValueError(first_fault(error)) from None
        return self

    @classmethod
    def of(cls, task: Task) -> TaskRecord:
        """The same, as a file holds it."""
        held = {field.name: getattr(task, field.name) for field in fields(task)}
        return cls(name=task.name, fields={key: value for key, value in held.items() if not callable(value)})

    def task(self) -> Task:
        """The same, as a student has it."""
        return TypeAdapter(TASKS[self.name]).validate_python(self.fields)


class GridRecord(StrictRecord):
    """One quantizer: integers lo..hi of `bits` bits; its steps and zero points are in the tensor file."""

    name: str
    path: Dotted
    kind: Kind
    form: Annotated[Form, Field(pattern=r"^[a-z0-9-]{1,40}$")]
    bits: Width
    lo: Annotated[int, Field(ge=-128, le=0)]
    hi: Annotated[int, Field(ge=1, le=255)]
    num_scales: Annotated[int, Field(ge=1)]
    signed: bool

    @model_validator(mode="after")
    def _fits(self) -> GridRecord:
        if self.hi - self.lo >= 2**self.bits:
            raise ValueError(f"levels {self.lo}..{self.hi} do not fit {self.bits} bits")
        place = self.path.rpartition(".")[2]
        known = _PLACE.fullmatch(place) and (self.kind == "weight") == (place == _WEIGHT_PLACE)
        if not known or row_name(self.path) != self.name:
            raise ValueError(f"'{self.name}' is not quantized at '{self.path}'")
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Of the container for its integers."""
        return torch.int8 if self.lo < 0 else torch.uint8

    @property
    def row(self) -> QuantizedTensor:
        """As in the table of quantized tensors."""
        return QuantizedTensor(self.name, self.kind, self.bits, self.num_scales, self.signed)


class CostRecord(StrictRecord):
    """The sums of `zsq.saved.cost.Cost`."""

    macs: NonNegativeInt
    bit_operations: NonNegativeInt
    float_bit_operations: NonNegativeInt
    weight_bytes: NonNegativeInt
    float_weight_bytes: NonNegativeInt


class OriginRecord(StrictRecord):
    """`zsq.contract.ImagesOrigin`."""

    method: str
    options: dict[str, Any]
    data_read: str


class MadeRecord(StrictRecord):
    """`zsq.contract.Made`."""

    options: dict[str, Any]
    passes: list[str]
    seed: int
    num_images: Annotated[int, Field(ge=1)]
    images_sha256: Sha256
    origin: OriginRecord | None
    photo_fit: str | None = None

    @classmethod
    def of(cls, made: Made) -> MadeRecord:
        """The same, as a file holds it."""
        return cls.model_validate({**asdict(made), "passes": list(made.passes)})

    def made(self) -> Made:
        """The same, as a student has it."""
        origin = None if self.origin is None else ImagesOrigin(**self.origin.model_dump())
        return Made(**{**self.model_dump(), "passes": tuple(self.passes), "origin": origin})


class StudentRecord(StrictRecord):
    """The JSON file. `channels_last` names the tensors that are laid out so; `made` is None of a student that
    was put together by hand. `widths` are those that single rows were asked to have, `bits` all others'.
    `kept`: of pruned weights, how many are left. `shares`: of layers that not every image passes, how many
    of them do."""

    format: Literal["zsq student"]
    format_version: Literal[2]
    zsq_version: str
    student: str
    bits: str
    first_last: int | None
    widths: dict[str, WidthOrFloat] = Field(default={})
    kept: dict[Dotted, NonNegativeInt] = Field(default={})
    shares: dict[Dotted, Annotated[float, Field(ge=0, le=1)]] = Field(default={})
    task: TaskRecord
    image: ImageSpec
    teacher: TeacherIdentity
    made: MadeRecord | None
    tensors_sha256: Sha256
    cost: CostRecord
    grids: list[GridRecord]
    channels_last: list[str]
    graph: GraphRecord

    @field_validator("format_version", mode="before")
    @classmethod
    def _is_of_today(cls, version: Any) -> Any:
        if version == 1:
            raise ValueError("written by an earlier version of zsq, with another kind of graph: fit it again")
        return version

    @model_validator(mode="after")
    def _has_widths(self) -> StudentRecord:
        try:
            Bits.parse(self.bits)
            check_first_last(self.first_last)
        except OptionError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def asked_bits(self) -> Bits:
        """The widths that the student was asked to have."""
        return Bits.parse(self.bits).with_rows(self.widths)
