"""What a saved student's JSON holds, as validated models."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt, SerializerFunctionWrapHandler, model_serializer, model_validator

from zsq.contract import ImagesOrigin, Made, QuantizedTensor
from zsq.core.errors import OptionError
from zsq.core.imagespec import ImageSpec
from zsq.core.records import Sha256, StrictRecord
from zsq.placement.sites import row_name
from zsq.quantizers.grids import Form, Kind
from zsq.saved.stored_graph import Dotted, GraphRecord
from zsq.tasks import TaskName
from zsq.widths import Bits, Width, check_first_last


class TeacherIdentity(StrictRecord):
    """Whom the student was fitted to; nothing of it is needed to load the student."""

    name: str
    weights_sha256: str
    num_outputs: Annotated[int, Field(ge=1)] | None


class GridRecord(StrictRecord):
    """One quantizer: integers lo..hi of `bits` bits; its steps and zero points are in the tensor file."""

    name: str
    path: Dotted
    kind: Kind
    form: Form
    bits: Width
    lo: Annotated[int, Field(ge=-128, le=0)]
    hi: Annotated[int, Field(ge=1, le=255)]
    num_scales: Annotated[int, Field(ge=1)]
    signed: bool

    @model_validator(mode="after")
    def _fits(self) -> GridRecord:
        if self.hi - self.lo >= 2**self.bits:
            raise ValueError(f"levels {self.lo}..{self.hi} do not fit {self.bits} bits")
        if row_name(self.path) != self.name:
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

    @model_serializer(mode="wrap")
    def _what_there_is(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if key != "photo_fit" or value is not None}

    @classmethod
    def of(cls, made: Made) -> MadeRecord:
        """The same, as a file holds it."""
        return cls.model_validate({**asdict(made), "passes": list(made.passes)})

    def made(self) -> Made:
        """The same, as a student has it."""
        origin = None if self.origin is None else ImagesOrigin(**self.origin.model_dump())
        return Made(**{**self.model_dump(), "passes": tuple(self.passes), "origin": origin})


class StudentRecord(StrictRecord):
    """The JSON file. `channels_last` names the tensors that are laid out so; files of early versions do not
    say how the student was `made`."""

    format: Literal["zsq student"]
    format_version: Literal[1]
    zsq_version: str
    student: str
    bits: str
    first_last: int | None
    task: TaskName
    image: ImageSpec
    teacher: TeacherIdentity
    made: MadeRecord | None = None
    tensors_sha256: Sha256
    cost: CostRecord
    grids: list[GridRecord]
    channels_last: list[str]
    graph: GraphRecord

    @model_validator(mode="after")
    def _has_widths(self) -> StudentRecord:
        try:
            Bits.parse(self.bits)
            check_first_last(self.first_last)
        except OptionError as error:
            raise ValueError(str(error)) from None
        return self
