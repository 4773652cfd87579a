"""How a network is quantized, and what comes out."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zsq.contract.parts import Facts, Silent, StepLog
from zsq.contract.teacher import Teacher
from zsq.core.errors import OptionError
from zsq.core.imagespec import ImageSpec
from zsq.core.modes import usual_modes
from zsq.core.options import Options
from zsq.core.runtime import Runtime
from zsq.tasks import Task
from zsq.tasks.classify import Classify
from zsq.widths import Bits, Kind, check_least, is_width

# The name of a kind of grid, which its quantizer states: how a file holds it.
Form = str

# Joins the names of students of which each starts from the result of the one before: a chain.
THEN = ","


@dataclass(frozen=True)
class QuantizedTensor:
    """One row of a student's table of quantized tensors; `num_scales` is 1 for per-tensor."""

    name: str
    kind: Kind
    bits: int
    num_scales: int
    signed: bool


@dataclass(frozen=True)
class ImagesOrigin:
    """Which method made images, with which options, and what of the real world it read."""

    method: str
    options: Mapping[str, Any]
    data_read: str


@dataclass(frozen=True)
class Made:
    """How a student was fitted: what one needs, beside the teacher and the widths, to fit it again.

    `options` are all of the student's own, JSON-ready; of a chain they are named `student.option`.
    `images_sha256` is of the uint8 pixels, contiguous (N, C, H, W). `origin` is None where nothing says how
    the images were made; `photo_fit` says how photos of another size were fitted to the teacher, None where
    there were none.
    """

    options: Mapping[str, Any]
    passes: tuple[str, ...]
    seed: int
    num_images: int
    images_sha256: str
    origin: ImagesOrigin | None
    photo_fit: str | None = None


@dataclass(frozen=True)
class FittedStudent:
    """A quantized copy of the teacher. `network` takes the network's (norm) input, like the teacher's.

    `made` is None of a student that was put together by hand. A student from a file has no functions of the
    user's own in its `task`, such as a detector's `decode`. `kept`: name of a pruned weight -> how many of
    its elements are left; all others are zero. `shares`: name of a layer that not every image passes, in the
    order of the widths that images choose among -> the share of the images of the fit that does.
    """

    student: str
    bits: Bits
    first_last: int | None
    network: nn.Module
    spec: ImageSpec
    tensors: tuple[QuantizedTensor, ...]
    task: Task = dataclasses.field(default_factory=Classify)
    made: Made | None = None
    kept: Mapping[str, int] = dataclasses.field(default_factory=dict)
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the network is, and what `logits` returns."""
        tensors = itertools.chain(self.network.parameters(), self.network.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def logits(self, standard_NCHW: Tensor) -> Tensor:
        """Standard-space images on any device -> outputs as the teacher's, on the student's."""
        return self.network(self.spec.standard_to_norm(standard_NCHW.to(self.device)))


def check_fitted(value: object) -> None:
    """Refuse what is no fitted student, such as all that `zsq.quantize` returns.

    Raises:
        OptionError: it is something else.
    """
    if not isinstance(value, FittedStudent):
        expected = "a FittedStudent, such as zsq.quantize(...).fitted"
        raise OptionError(f"a student that is a {type(value).__name__}", expected)


@dataclass(frozen=True)
class Fit:
    """One fit as asked for: see `Student.fit`. `start` is the student that this one starts from. `masks`:
    name of a pruned weight of the teacher -> which of its elements may be other than zero."""

    teacher: Teacher
    pixels_NCHW: Tensor
    bits: Bits
    first_last: int | None
    seed: int
    log: StepLog
    origin: ImagesOrigin | None = None
    start: FittedStudent | None = None
    masks: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


class Student(ABC):
    """Fits a quantized copy of a teacher on images, whatever their source.

    `form` is that of its grids. `least_bits`: the fewest of weights and of activations that it takes.
    `starts_from`: forms of grids that it can take over from another student; none where it starts from the
    teacher alone. `start_options` have no effect behind another student, and must be at their defaults.
    """

    name: ClassVar[str]
    facts: ClassVar[Facts]
    options_class: ClassVar[type[Options]] = Options
    folds_batch_norm: ClassVar[bool] = False
    form: ClassVar[Form] = "affine"
    least_bits: ClassVar[Bits] = Bits(2, 2)
    starts_from: ClassVar[frozenset[Form]] = frozenset()
    start_options: ClassVar[tuple[str, ...]] = ()
    step_work: ClassVar[float] = 1.0
    # Analytic pass -> why the student cannot take it.
    refused_passes: Mapping[str, str] = {}

    def __init__(self, options: Any, runtime: Runtime) -> None:
        """Keep the parts."""
        self.options = options
        self.runtime = runtime

    @property
    def quantizes_teacher(self) -> bool:
        """Whether the network that it quantizes is the teacher's."""
        return True

    def first_last_bits(self, asked: int | None) -> int | None:
        """Bits of the first and last layer: those asked for, else of the option `first_last`, if there is."""
        return getattr(self.options, "first_last", None) if asked is None else asked

    def images_trained(self, teacher: Teacher, num_images: int, bits: Bits) -> float:
        """Images passed forward and back through the whole network, about; 0 where nothing is trained."""
        return getattr(self.options, "iterations", 0) * getattr(self.options, "batch", 0)

    def log_total(self, teacher: Teacher, num_images: int, bits: Bits) -> int:
        """How far the log of a fit advances: by the images trained, where there are none by `num_images`."""
        return round(self.images_trained(teacher, num_images, bits)) or num_images

    def training_work(self, teacher: Teacher, num_images: int, bits: Bits) -> float:
        """How long a fit trains, about, in images of `lsq-kd`; `step_work` for one: of ResNet-20."""
        return self.images_trained(teacher, num_images, bits) * self.step_work

    def training_key(self, bits: Bits, first_last: int | None) -> Hashable:
        """Equal for fits by one object that train once, if made in turn of one teacher, images and seed."""
        return bits, first_last

    def check(self, fit: Fit) -> None:
        """Refuse images that are not the teacher's, and widths, a teacher or a start that it cannot take."""
        if not isinstance(fit.teacher, Teacher):
            raise OptionError(
                f"a teacher that is a {type(fit.teacher).__name__}", "what zsq.load_teacher returns"
            )
        if not isinstance(fit.seed, int) or fit.seed < 0:
            raise OptionError(f"seed {fit.seed!r}", "a whole number from 0")
        self.check_bits(fit.bits, fit.first_last)
        fit.teacher.check_float32()
        fit.teacher.spec.check_pixels(fit.pixels_NCHW)
        if fit.start is not None and not self.starts_from:
            found = f"student {self.name} cannot start from the result of {fit.start.student}"
            raise OptionError(found, "one that trains on its grids, such as lsq-kd")

    def check_bits(self, bits: Bits, first_last: int | None) -> None:
        """Refuse what are no widths, and those below the least.

        Raises:
            OptionError: of weights, activations, the first and last layer, or of a row.
        """
        if not isinstance(bits, Bits) or not (is_width(bits.weights) and is_width(bits.activations)):
            raise OptionError(f"bits {bits!r}", "Bits of 1 to 8 or 32, as Bits.parse('W4A4') gives them")
        check_least(self.name, self.least_bits, bits, self.first_last_bits(first_last))

    @abstractmethod
    def run(self, fit: Fit) -> FittedStudent:
        """What `fit` does, once images and teacher are checked; `fit.log` advances by the images trained."""

    def result(self, fit: Fit, network: nn.Module, tensors: tuple[QuantizedTensor, ...]) -> FittedStudent:
        """The student that `network` is now."""
        teacher, pixels = fit.teacher, fit.pixels_NCHW.cpu().contiguous()
        made = Made(
            options=self.options.model_dump(mode="json"),
            passes=(),
            seed=fit.seed,
            num_images=len(pixels),
            images_sha256=hashlib.sha256(pixels.numpy().data).hexdigest(),
            origin=fit.origin,
        )
        kept = {name: int(mask.sum()) for name, mask in fit.masks.items()}
        return FittedStudent(
            self.name, fit.bits, fit.first_last, network, teacher.spec, tensors, teacher.task, made, kept
        )

    @usual_modes()
    def fit(
        self,
        teacher: Teacher,
        pixels_NCHW: Tensor,
        bits: Bits | str,
        *,
        first_last: int | None = None,
        seed: int = 0,
        log: StepLog | None = None,
        origin: ImagesOrigin | None = None,
        start: FittedStudent | None = None,
    ) -> FittedStudent:
        """Fit on uint8 images of the teacher's spec, unlabelled; the teacher is left as it was.

        Args:
            bits: of weights and activations; text such as `W4A4` will do.
            first_last: bits of the first convolution and of the last layer; None: the student's own policy,
                as `bits` where it has none; with a start, the start's.
            seed: of every random draw of the fit.
            origin: where the images come from, for the record in `FittedStudent.made` alone.
            start: begin with this student's network, weights and grids, of the same bits and teacher, instead
                of the teacher's; it is left as it was.

        Raises:
            UntraceableError: the network's graph cannot be captured or holds an operation we cannot place.
            MismatchError: images of another shape than the teacher's, a teacher that the student cannot
                learn from, or a start of other bits.
            OptionError: a student that cannot start from this one, or widths that it does not take.
        """
        if isinstance(bits, str):
            bits = Bits.parse(bits)
        if start is not None and first_last is None:
            first_last = start.first_last
        first_last = self.first_last_bits(first_last)
        asked = Fit(teacher, pixels_NCHW, bits, first_last, seed, log or Silent(), origin, start)
        self.check(asked)
        fitted = self.run(asked)
        # What was trained, the training has told the log.
        if not round(self.images_trained(teacher, len(pixels_NCHW), bits)):
            asked.log.advance(len(pixels_NCHW))
        return fitted
