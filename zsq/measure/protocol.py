"""What a comparison holds equal, and its fits: one per source, shard set, student seed and student."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any, NotRequired

from pydantic import FiniteFloat, ValidationError
from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from zsq.contract import Fit, Silent, Student, Teacher
from zsq.core.errors import OptionError, UsageError
from zsq.core.imagespec import ImageSpec
from zsq.core.options import check_given_once
from zsq.core.runtime import Runtime
from zsq.images.imageset import ImageSet
from zsq.placement.sites import check_placeable
from zsq.students import check_bits, create, student_class
from zsq.widths import Bits

REAL, NOISE = "real", "noise"


@dataclass(frozen=True)
class StudentSpec:
    """A student to fit, as asked for.

    Attributes:
        options: overrides of its defaults.
        first_last: bits of its first and last layer; None: the student's own choice.
        passes: analytic passes around the fit, in order.
        shard_sets: number of shard sets that it is fitted on; None: all.
        called: what tables call it; None: by its name and passes.
    """

    name: str
    bits: Bits
    options: Mapping[str, Any] = field(default_factory=dict)
    first_last: int | None = None
    passes: Sequence[str] = ()
    shard_sets: int | None = None
    called: str | None = None

    @property
    def label(self) -> str:
        """What tables call it: `ptq`, or with passes `ptq+fold+equalize`."""
        return self.called or "+".join([self.name, *self.passes])


@dataclass(frozen=True)
class ResolvedStudent:
    """A student ready to fit: `student` is created, and `spec` names every option that it has.

    Records name every option because today's default may not be tomorrow's.
    """

    spec: StudentSpec
    student: Student

    @property
    def name(self) -> str:
        """`ptq W4A4`."""
        return f"{self.spec.label} {self.spec.bits}"

    @property
    def training(self) -> Hashable:
        """Equal for students whose fits on the same images from the same seed train once, if they follow each
        other."""
        return id(self.student), self.student.training_key(self.spec.bits, self.spec.first_last)


def resolve_students(
    specs: Iterable[StudentSpec], images: ImageSpec, runtime: Runtime
) -> tuple[ResolvedStudent, ...]:
    """Create every student once, with its defaults for `images`; of several widths, one student for all,
    which may train once for them.

    Raises:
        UnknownNameError: no such student.
        OptionError: an option or pass that a student cannot take, or a student named twice.
    """
    resolved: dict[str, ResolvedStudent] = {}
    created: dict[str, Student] = {}
    for spec in specs:
        key = json.dumps((spec.name, dict(spec.options), list(spec.passes)), sort_keys=True, default=str)
        student = created.get(key) or create(spec.name, images, spec.options, runtime, passes=spec.passes)
        created[key] = student
        check_given_once("--first-last", spec.first_last, spec.options)
        check_bits(student, spec.bits, spec.first_last, images)
        whole = replace(spec, options=student.options.model_dump(mode="json"))
        entry = ResolvedStudent(whole, student)
        if entry.name in resolved:
            found = f"student {entry.name} is named twice"
            raise OptionError(found, "each student and bit width once, or `called` by names of its own")
        resolved[entry.name] = entry
    return tuple(resolved.values())


class Choices(TypedDict):
    """Of a student that chooses bits for each image, on evaluation images: layer -> entropy of its choice in
    bits, and the bit operations of an image on average."""

    entropies: dict[str, FiniteFloat]
    bit_operations: FiniteFloat


class RunRecord(TypedDict):
    """One finished fit, as JSON holds it: everything that names it, then what was measured.

    `replicates` and `roc` are there for some tasks, as `zsq.tasks.Scores` has them; `passes`, `widths`
    (row -> bits) and `choices` only where the student has some. `student` is what tables call it; `name` is
    its own name, only where it is called otherwise.
    """

    source: str
    shard_set: int
    seed: int
    student: str
    bits: str
    first_last: int | None
    options: dict[str, Any]
    num_images: int
    metrics: dict[str, FiniteFloat]
    seconds: FiniteFloat
    name: NotRequired[str]
    passes: NotRequired[list[str]]
    widths: NotRequired[dict[str, int]]
    replicates: NotRequired[dict[str, list[float]]]
    roc: NotRequired[list[float]]
    choices: NotRequired[Choices]


# What was measured, as against what names a fit.
MEASURED = ("metrics", "seconds", "replicates", "roc", "choices")


@dataclass(frozen=True)
class PlannedFit:
    """One fit of a protocol: `student` on shard set `shard_set` of `source`, from student seed `seed`."""

    source: str
    shard_set: int
    seed: int
    student: ResolvedStudent
    num_images: int

    @property
    def training(self) -> Hashable:
        """Equal for fits that train once."""
        return self.source, self.shard_set, self.seed, self.student.training

    def record(self) -> RunRecord:
        """Its record, before anything is measured."""
        spec = self.student.spec
        record = RunRecord(
            source=self.source,
            shard_set=self.shard_set,
            seed=self.seed,
            student=spec.label,
            bits=str(spec.bits),
            first_last=spec.first_last,
            options=dict(spec.options),
            num_images=self.num_images,
            metrics={},
            seconds=0.0,
        )
        if spec.called:
            record["name"] = spec.name
        if spec.passes:
            record["passes"] = list(spec.passes)
        if spec.bits.own:
            record["widths"] = spec.bits.rows
        return record


@dataclass(frozen=True)
class Owned:
    """Images of the owner whose membership is known: the teacher was trained on `train`, not on `holdout`.

    `planted`: training images in one more set, to see what a leak looks like.
    """

    train: ImageSet
    holdout: ImageSet
    planted: int


@dataclass(frozen=True)
class Protocol:
    """What is compared, apart from the sources: the same for a recipe and for `zsq gap`.

    Attributes:
        teacher: on the runtime's device.
        eval: labelled images that every student is scored on.
        real_sets: disjoint sets of real images, one per shard set, of equal size. Every student is fitted on
            as many images of each source, but of those in `counts`.
        counts: source -> its number of images, where that is not the real sets'.
        seeds: number of student seeds; each is used on all sets and sources.
        owned: what the sets are audited against; None: they are not.
        title, show_real, settings: of the report; see `zsq.report.data.ReportData`.

    Raises:
        OptionError: fewer than one seed.
    """

    teacher: Teacher
    eval: ImageSet
    real_sets: Sequence[ImageSet]
    students: Sequence[ResolvedStudent]
    seeds: int
    runtime: Runtime
    title: str = ""
    show_real: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    owned: Owned | None = None
    counts: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the number of seeds."""
        if self.seeds < 1:
            raise OptionError(f"--seeds {self.seeds}", "at least 1")

    def check_students(self) -> None:
        """Refuse what no fit could begin with, before images are made.

        Raises:
            ZsqError: whatever `Student.check` or `check_placeable` raises.
        """
        for each in self.students:
            spec, pixels = each.spec, self.real_sets[0].pixels
            each.student.check(Fit(self.teacher, pixels, spec.bits, spec.first_last, 0, Silent()))
        quantizing = [each.spec.bits for each in self.students if each.student.quantizes_teacher]
        for bits in {bits.own: bits for bits in quantizing}.values():  # other widths, the same places
            check_placeable(self.teacher.network, self.teacher.example(), bits)

    def images_of(self, source: str) -> int:
        """Images of `source` that each student is fitted on."""
        return self.counts.get(source, len(self.real_sets[0].pixels))

    def fits(self, arms: Mapping[str, Sized]) -> list[PlannedFit]:
        """All fits on these arms, source -> its shard sets.

        All sources and students take their turn on the first shard set before the second begins, so a run
        that is stopped leaves complete comparisons.
        """
        most_sets = max((len(sets) for sets in arms.values()), default=0)
        return [
            PlannedFit(source, shard_set, seed, student, self.images_of(source))
            for shard_set in range(most_sets)
            for seed in range(self.seeds)
            for student in self.students
            for source, sets in arms.items()
            if shard_set < min(len(sets), student.spec.shard_sets or len(sets))
        ]

    def belonging(self, records: Iterable[RunRecord], arms: Mapping[str, Sized]) -> list[RunRecord]:
        """Those of `records` that are fits of this protocol on `arms`: a table never mixes two settings."""
        wanted = {fit_key(fit.record()) for fit in self.fits(arms)}
        return [record for record in records if fit_key(record) in wanted]


def student_at_bits(record: RunRecord) -> str:
    """`ptq W4A4`: as tables call the student, and its widths."""
    return f"{record['student']} {record['bits']}"


def by_student(records: Iterable[RunRecord], key: str) -> dict[str, dict[str, list[Any]]]:
    """Student and bits -> source -> `key` of each fit, of records that have it."""
    found: dict[str, dict[str, list[Any]]] = {}
    for record in records:
        if key in record:
            of_student = found.setdefault(student_at_bits(record), {})
            of_student.setdefault(record["source"], []).append(record[key])  # type: ignore[literal-required]
    return found


def fit_key(record: RunRecord) -> str:
    """What names a fit, as text; equal for two records of the same fit.

    Options that a student has got since a record was made count as their defaults: that is what was done.
    """
    named = {key: value for key, value in record.items() if key not in MEASURED}
    try:
        student = student_class(record.get("name") or record["student"].partition("+")[0])
        options = student.options_class(**record["options"])
        named["options"] = options.model_dump(mode="json")
    except (UsageError, ValidationError):
        pass  # a student or options of another version: such fits are not those of today
    return json.dumps(named, sort_keys=True, default=str)
