"""Options of methods and students: constants with published values as defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from pydantic import Field, ValidationError, model_serializer

from zsq.core.errors import OptionError
from zsq.core.imagespec import ImageSpec
from zsq.core.records import Record, first_fault
from zsq.core.wording import did_you_mean

MOST_ITERATIONS = 10_000_000  # a hundred times what any paper has


def scales_with_iterations(default: Any = ..., **constraints: Any) -> Any:
    """Field of an option counted in iterations: `--iterations` stretches it with the run."""
    return Field(default, json_schema_extra={"scales": True}, **constraints)


def follows_batch(default: int, **constraints: Any) -> Any:
    """Field of an option that is the run's batch, `--batch` or at most `--count`; `default` where none is."""
    return Field(default, json_schema_extra={"batch": True}, **constraints)


def later(default: Any, **constraints: Any) -> Any:
    """Field of an option that came after the first runs: it is stated where it is not its default, so that
    all other runs say what they said before."""
    return Field(default, json_schema_extra={"later": True}, **constraints)


def check_given_once(option: str, value: Any, overrides: Mapping[str, Any]) -> None:
    """Refuse an override of what an option of the command says already, `--first-last` of `first_last`; None
    says nothing.

    Raises:
        OptionError: two values for one thing.
    """
    key = option.lstrip("-").replace("-", "_")
    for name, own in overrides.items() if value is not None else ():
        if name.rpartition(".")[2] == key:
            raise OptionError(f"{option} {value} and --set {name}={own}", "one of them")
        if isinstance(own, Mapping):
            check_given_once(option, value, {f"{name}.{inner}": each for inner, each in own.items()})


class Options(Record):
    """Options of one method or student: its constants, with published values as defaults.

    `iterations`, where a subclass has it, is the published length; fields made by `scales_with_iterations`
    are tied to it, fields made by `follows_batch` to the run's batch.
    """

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: Callable[[Any], dict[str, object]]) -> dict[str, object]:
        # Not Any: pydantic 2.10 looks the name up in the module of each subclass.
        fields = dump(self)
        fields_of = type(self).model_fields
        for name in self.marked("later"):
            if name in fields and getattr(self, name) == fields_of[name].default:
                del fields[name]
        return fields

    @classmethod
    def published(cls, spec: ImageSpec) -> dict[str, Any]:
        """Published values that depend on the image size, over the class's defaults."""
        return {}

    @classmethod
    def ours(cls, spec: ImageSpec) -> dict[str, Any]:
        """Values of our own, over the published ones, for images where those would take too long."""
        return {}

    def declared_ours(self, spec: ImageSpec) -> dict[str, tuple[Any, Any]]:
        """Option -> (value, published value) where a value is one of `ours` and not the published one."""
        published = type(self)(**self.published(spec))
        pairs = {name: (getattr(self, name), getattr(published, name)) for name in self.ours(spec)}
        return {
            name: pair
            for name, pair in pairs.items()
            if pair[0] == self.ours(spec)[name] and pair[0] != pair[1]
        }

    @classmethod
    def resolve(
        cls,
        owner: str,
        spec: ImageSpec,
        overrides: Mapping[str, Any],
        iterations: int | None = None,
        batch: int | None = None,
    ) -> Self:
        """Defaults for `spec`, shortened or stretched to `iterations`, for a run in batches of `batch`, then
        `overrides` on top.

        Raises:
            OptionError: an unknown key, a value of the wrong kind or range, or iterations below 1.
        """
        unknown = set(overrides) - set(cls.model_fields)
        if unknown:
            known = ", ".join(sorted(cls.model_fields)) or "none"
            first = min(unknown)
            near = did_you_mean(first, cls.model_fields)
            raise OptionError(f"{owner} has no option '{first}'", f"one of: {known}", near)
        if iterations is not None and not 1 <= iterations <= MOST_ITERATIONS:
            raise OptionError(f"--iterations {iterations}", f"from 1 to {MOST_ITERATIONS}")
        try:
            options = cls(**(cls.published(spec) | cls.ours(spec)))
            published_iterations = getattr(options, "iterations", None)
            if iterations is not None and published_iterations:
                stretched = _stretched(options, iterations / published_iterations)
                options = cls(**(stretched | {"iterations": iterations}))
            batches = dict.fromkeys(cls.marked("batch"), batch) if batch is not None else {}
            options = cls(**(options.model_dump() | batches | dict(overrides)))
        except ValidationError as error:
            raise OptionError(f"{owner}: {first_fault(error)}") from None
        asked = getattr(options, "iterations", None) or 1
        if asked > MOST_ITERATIONS:
            raise OptionError(f"{owner}: iterations {asked}", f"at most {MOST_ITERATIONS}")
        return options

    @classmethod
    def marked(cls, mark: str) -> list[str]:
        """The options that a field of this file marked so: `later`, `batch` or `scales`."""
        extras = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
        return [name for name, extra in extras.items() if isinstance(extra, dict) and extra.get(mark)]


def _stretched(options: Options, ratio: float) -> dict[str, Any]:
    values = options.model_dump(exclude={"iterations"})
    for name in options.marked("scales"):
        if values[name]:
            values[name] = max(1, round(values[name] * ratio))
    return values
