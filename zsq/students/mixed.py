"""Mixed precision around any student: bits chosen row by row within the cost of one width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import nn

from zsq.contract import Facts, Fit, FittedStudent, Student, Teacher
from zsq.core.errors import MismatchError, OptionError, UnknownNameError
from zsq.core.imagespec import ImageSpec
from zsq.core.options import Options
from zsq.core.runtime import Runtime
from zsq.core.seeding import torch_generator
from zsq.fitting.cost_table import read_costs
from zsq.fitting.haq import Search, features_of
from zsq.fitting.mixing import Budget, Costs, Rounded, drawn, greedy, harm_of, parts_of
from zsq.fitting.starts import named_options
from zsq.fitting.trained import FORWARD_STEP
from zsq.placement.sites import Placement, place
from zsq.widths import FLOAT_BITS, MOST_BITS, Bits, GridWidth, WidthOrFloat


class MixedOptions(Options):
    """`inner` is the student; its options are named `NAME.option`, as in `qdrop.iterations=500`.

    The budget is what a student of the asked bits costs: bit operations; or bytes of weights, where inputs
    keep the asked bits; or what the file `costs` says, see `zsq.fitting.cost_table`, whose widths rows then
    get. `limit`, where it is given, is the budget instead, in the same unit. Rows get `least` to `most` bits.
    `images`: so many of them show what a row does to the output.
    """

    inner: str = "ptq"
    search: Literal["greedy", "haq", "random", "uniform"] = "greedy"
    # Of the agent of search=haq: policies that it tries.
    episodes: int = Field(600, ge=1)
    budget: Budget = "operations"
    costs: str | None = None
    limit: float | None = Field(None, gt=0)
    least: GridWidth = 2
    most: GridWidth = MOST_BITS
    images: int = Field(128, ge=1)
    # Where --first-last does not say; these rows are not searched.
    first_last: WidthOrFloat = MOST_BITS
    own: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        dotted = {key.partition(".")[2]: value for key, value in values.items() if "." in key}
        plain = {key: value for key, value in values.items() if "." not in key}
        return plain | ({"own": plain.get("own", {}) | dotted} if dotted else {})

    @model_serializer(mode="wrap")
    def _named(self, inner: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = inner(self)
        return {key: value for key, value in fields.items() if key != "own"} | named_options(
            self.inner, self.own
        )

    @classmethod
    def resolve(
        cls,
        owner: str,
        spec: ImageSpec,
        overrides: Mapping[str, Any],
        iterations: int | None = None,
        batch: int | None = None,
    ) -> Self:
        """See `Options.resolve`; `iterations` are the inner student's."""
        plain = {key: value for key, value in overrides.items() if "." not in key}
        options = super().resolve(owner, spec, plain)
        if options.least > options.most:
            raise OptionError(f"{owner}: least={options.least} most={options.most}", "least at most as large")
        if options.costs is not None:
            read_costs(options.costs)
            if options.budget != "operations":
                raise OptionError(f"{owner}: costs=FILE and budget={options.budget}", "one of them")
        if options.limit is not None and options.search == "uniform":
            found = f"{owner}: search=uniform and limit={options.limit:g}"
            raise OptionError(found, "no limit: uniform bits are those of --bits")
        given = {}
        for key in overrides.keys() - plain.keys():
            student, _, option = key.partition(".")
            if student != options.inner:
                raise OptionError(f"{owner} has no option '{key}'", f"{options.inner}.KEY")
            given[option] = overrides[key]
        if "first_last" in given:
            raise OptionError(f"{owner}: {options.inner}.first_last", "first_last, which the search heeds")
        kind = inner_class(options.inner).options_class
        own = kind.resolve(f"student {options.inner}", spec, given, iterations, batch)
        return options.model_copy(update={"own": own.model_dump()})

    def declared_ours(self, spec: ImageSpec) -> dict[str, tuple[Any, Any]]:
        """See `Options.declared_ours`; of the inner student."""
        own = inner_class(self.inner).options_class(**self.own)
        return named_options(self.inner, own.declared_ours(spec))


def inner_class(name: str) -> type[Student]:
    """The student that `mixed` gives widths to.

    Raises:
        UnknownNameError: there is none. OptionError: it has other rows than the network.
    """
    from zsq.students import STUDENTS

    if name not in STUDENTS:
        raise UnknownNameError("student", name, STUDENTS, "zsq list students")
    own_rows = STUDENTS[name].facts.own_rows
    if own_rows:
        raise OptionError(f"student mixed with inner={name}", "another student", own_rows)
    return STUDENTS[name]


class Mixed(Student):
    """Each row of the inner student has the bits that harm the output least at the cost of uniform bits."""

    name = "mixed"
    facts = Facts(
        paper="HAQ, Wang et al. 2019 (arXiv:1811.08886); the greedy search is ours",
        summary="any student (inner=NAME) with bits chosen for each layer within a budget",
        own_rows="it is the one outside",
        deviations=(
            "bits come from a table of what each row alone does to the outputs, and from a greedy search; "
            "search=haq is the published agent",
            "the agent's reward is how many times less the rounded network diverges from the teacher's "
            "outputs than with uniform bits, as a logarithm, not accuracy after a fine-tune",
            "the agent visits rows, of which several layers may read one, instead of layers",
            "the budget is the cost of the bits asked for, in bit operations, weight bytes, or by a table of "
            "measured costs (costs=FILE)",
            "no k-means grids",
        ),
    )
    options_class: ClassVar[type[Options]] = MixedOptions
    folds_batch_norm = True
    options: MixedOptions

    def __init__(self, options: MixedOptions, runtime: Runtime) -> None:
        """Make the inner student, whose grids and passes are this one's too."""
        super().__init__(options, runtime)
        kind = inner_class(options.inner)
        if options.own.get("network") is not None:
            found = f"student mixed with {options.inner}.network={options.own['network']}"
            raise OptionError(found, "the teacher's own network, whose rows get the bits")
        self.inner = kind(kind.options_class(**options.own), runtime)
        for stated in ("folds_batch_norm", "form", "least_bits", "refused_passes"):
            setattr(self, stated, getattr(kind, stated))

    def images_trained(self, teacher: Teacher, num_images: int, bits: Bits) -> float:
        """Those of the inner student."""
        return self.inner.images_trained(teacher, num_images, bits)

    def training_work(self, teacher: Teacher, num_images: int, bits: Bits) -> float:
        """That of the inner student, and the images that the search shows to the network."""
        shown = min(self.options.images, num_images) * (self._policies(teacher) if bits.quantize() else 0)
        return self.inner.training_work(teacher, num_images, bits) + shown * FORWARD_STEP

    def _policies(self, teacher: Teacher) -> int:
        """How many the search tries, about; for a table of rows, each layer has a weight and an input."""
        options = self.options
        if options.search == "haq":
            return options.episodes
        layers = [isinstance(part, nn.modules.conv._ConvNd | nn.Linear) for part in teacher.network.modules()]
        return 2 * sum(layers) * (options.most - options.least + 1) if options.search == "greedy" else 0

    def check_bits(self, bits: Bits, first_last: int | None) -> None:
        """As the inner student does."""
        self.inner.check_bits(bits, self.first_last_bits(first_last))

    def check(self, fit: Fit) -> None:
        """Refuse a budget that the least bits exceed, and a teacher whose outputs have no loss, too.

        Raises:
            MismatchError, OptionError: also for that.
        """
        super().check(fit)
        self.inner.check(fit)
        asked = [bits for bits in (fit.bits.weights, fit.bits.activations) if bits != FLOAT_BITS]
        given = self.options.costs is not None or self.options.limit is not None
        searches = self.options.search != "uniform"
        if searches and not given and min(asked, default=MOST_BITS) < self.options.least:
            found = f"least={self.options.least} at {fit.bits.uniform} with student mixed"
            raise OptionError(found, f"least={min(asked)} or less: nothing narrower than the budget is left")
        task = fit.teacher.task
        if self.options.search in ("greedy", "haq") and not task.trains:
            found = f"search={self.options.search} for teacher {fit.teacher.name} of task '{task.name}'"
            raise MismatchError(found, "a task with a loss", "use search=uniform")

    def run(self, fit: Fit) -> FittedStudent:
        """Choose bits, then fit the inner student.

        Raises:
            OptionError: also for a budget that the least bits exceed, or costs that the table does not say.
        """
        policy = {} if self.options.search == "uniform" else self._policy(fit)
        fitted = self.inner.run(replace(fit, bits=fit.bits.with_rows(fit.bits.rows | policy)))
        own = self.result(fit, fitted.network, fitted.tensors)
        return replace(fitted, student=self.name, made=own.made)

    def _policy(self, fit: Fit) -> dict[str, int]:
        """The widths of the rows that neither end the network nor have one of their own."""
        teacher, options, device = fit.teacher, self.options, self.runtime.device
        placement = self._placed(fit, fit.first_last)
        placement.network.to(device)
        asked = {site.name: site.bits for site in placement.sites}
        free = self._free(fit, placement)
        norm = teacher.spec.pixels_to_norm(fit.pixels_NCHW[:1].to(device))
        table = None if options.costs is None else read_costs(options.costs)
        costs = Costs(parts_of(placement, norm), options.budget, table)
        limit = costs.of(asked) if options.limit is None else options.limit
        choices = costs.choices(free, options.least, options.most)
        least = costs.of(asked | {row: widths[0] for row, widths in choices.items()})
        if least > limit:
            found = f"a budget of {limit:g} for student mixed at {fit.bits.uniform}"
            raise OptionError(found, f"{least:g} or more: that is what the least bits cost")
        start = asked | {row: widths[-1] for row, widths in choices.items()}
        if options.search == "random":
            policy = drawn(costs, choices, start, limit, torch_generator(fit.seed, 0, "mixed policy"))
        else:
            pixels = fit.pixels_NCHW[: options.images]
            rounded = Rounded(placement, teacher.spec, pixels, device, teacher.task.loss)
            if options.search == "greedy":
                policy = greedy(costs, harm_of(rounded, choices), start, limit)
            else:
                features = features_of(placement, costs.parts, choices)
                search = Search(costs, choices, limit, rounded, rounded.diverges(asked))
                policy = search.run(features, start, options.episodes, fit.seed)
        return {row: policy[row] for row in free}

    def _placed(self, fit: Fit, first_last: int | None) -> Placement:
        teacher, fold = fit.teacher, self.inner.folds_batch_norm
        return place(teacher.network, teacher.example(), fit.bits, first_last=first_last, fold=fold)

    def _free(self, fit: Fit, placement: Placement) -> list[str]:
        # The rows of the first and last layers are those whose width --first-last decides.
        widths = [{site.name: site.bits for site in self._placed(fit, w).sites} for w in (2, 3)]
        kinds = ("weight",) if self.options.budget == "bytes" else ("weight", "activation")
        return [
            site.name
            for site in placement.sites
            if site.kind in kinds
            and widths[0][site.name] == widths[1][site.name]
            and site.name not in fit.bits.rows
        ]
