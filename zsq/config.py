"""What a command was asked to do: one frozen model per command, its hash, and the texts that fill it.

The models state each option's default; the command line and the Python API read them here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, ValidationError

from zsq.core.effort import Effort
from zsq.core.errors import OptionError
from zsq.core.photofit import Fit
from zsq.core.records import Record, first_fault
from zsq.widths import BitsText, WidthOrFloat

Seed = Annotated[int, Field(ge=0, lt=2**63)]
PositiveInt = Annotated[int, Field(ge=1)]
# More than anybody needs, and still a number of things that can be listed.
Images = Annotated[int, Field(ge=1, le=1_000_000)]
Repeats = Annotated[int, Field(ge=1, le=1000)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Model = TypeVar("Model", bound=Record)
DEFAULT_COUNT = 1024


class RuntimeConfig(Record):
    """The RUNTIME options as given; `zsq.core.runtime.Runtime.resolve` turns `auto` into values.

    Raises:
        OptionError: a field that is not there, or a value of the wrong kind.
    """

    precision: str = "auto"
    compile: str = "auto"
    threads: Threads | None = None
    # Also a torch.device, which torch is not imported for here.
    device: Annotated[str, BeforeValidator(str)] = "auto"

    def __init__(self, **values: Any) -> None:
        """Callers of the Python API make one by hand."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise OptionError(f"runtime: {first_fault(error, type(self))}") from None


class AuditRuntime(RuntimeConfig):
    """What `zsq audit` computes with: always float32, always the same kernels."""

    precision: str = "fp32"
    compile: str = "off"


class OfflineConfig(Record):
    """Where a teacher's own weights may come from: with `offline`, from this machine alone. No record keeps
    it, since the weights are the same."""

    offline: Annotated[bool, Field(exclude=True)] = False


class GenerateConfig(OfflineConfig):
    """`zsq generate`. `set` are overrides of the method's options; `batch` None is the method's own; `count`
    None is what a resumed run has, else `DEFAULT_COUNT`.

    `iterations` wins over `effort`, whose None is `standard` for networks of 64 px and more,
    else `published`. `sealed`: the run refuses to open what it does not need.
    """

    teacher: str
    weights: str | None = None
    method: str
    count: Images | None = None
    batch: Images | None = None
    shard_size: Images = 256
    seed: Seed = 0
    iterations: PositiveInt | None = None
    effort: Effort | None = None
    real: str | None = None
    set: dict[str, Any] = Field({})
    sealed: bool = False
    runtime: RuntimeConfig = RuntimeConfig()


BY_ORDER = "by-order"


class ImagesConfig(Record):
    """How real images are read. None: fitted to the teacher's size as its card or its weights say, and class
    folders by the teacher's own list of classes. `class_names` is a file of names, or `BY_ORDER`."""

    fit: Fit | None = None
    class_names: str | None = None


class FitConfig(ImagesConfig, OfflineConfig):
    """What fitting a student takes, alone or in a comparison. `first_last` None is the student's own."""

    teacher: str
    weights: str | None = None
    first_last: int | None = None
    count: Images | None = None
    passes: tuple[str, ...] = ()
    set: dict[str, Any] = Field({})
    runtime: RuntimeConfig = RuntimeConfig()


class OneFitConfig(FitConfig):
    """What one fit takes, whatever chose its images and student; `eval` are images to score on. `widths`: row
    of the student's table -> its own width. `more_bits`: of further students, by the same fit where the
    student can."""

    bits: BitsText
    more_bits: tuple[BitsText, ...] = ()
    widths: dict[str, WidthOrFloat] = Field(default={})
    seed: Seed = 0
    eval: str | None = None


class RequestConfig(OneFitConfig):
    """`zsq quantize` as asked. `student` None is chosen for the teacher and the bits. Without `images` they
    are made: `count` of them, by `method` for as long as `effort` says, each chosen too where it is None."""

    images: str | None = None
    student: str | None = None
    method: str | None = None
    effort: Effort | None = None


class QuantizeConfig(OneFitConfig):
    """A fit with everything chosen."""

    student: str


class GapConfig(FitConfig):
    """`zsq gap`: every student at every width on `real` images and on every shard set."""

    shards: Annotated[tuple[str, ...], Field(min_length=1)]
    real: str
    eval: str
    students: Annotated[tuple[str, ...], Field(min_length=1)]
    bits: Annotated[tuple[BitsText, ...], Field(min_length=1)]
    seeds: Repeats = 3
    show_real: bool = False


class VerifyConfig(Record):
    """`zsq verify --against`: the largest difference of a logit that passes."""

    tolerance: float = 1e-3


class ExportConfig(Record):
    """`zsq export`. `layout` None is the format's own, `range` None is uint8; a `tool` sets them.
    `card`: with a dataset card."""

    to: str | None = None
    tool: str | None = None
    each: str | None = None
    layout: str | None = None
    range: str | None = None
    card: bool = False


class InspectConfig(ImagesConfig, OfflineConfig):
    """`zsq inspect` of a student's layers. `layers` None: every one at the network's output."""

    count: Images = 64
    layers: PositiveInt | None = None


class ImportConfig(Record):
    """`zsq import`. `mean` and `std` are of float values: one number, or one per channel."""

    source: str
    name: str = "imported"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: str | None = None


# Their defaults; what a command must be given is not set.
GENERATE = GenerateConfig.model_construct()
QUANTIZE = RequestConfig.model_construct()
GAP = GapConfig.model_construct()
VERIFY = VerifyConfig.model_construct()
EXPORT = ExportConfig.model_construct()
IMPORT = ImportConfig.model_construct()
INSPECT = InspectConfig()
RUNTIME, AUDIT_RUNTIME = RuntimeConfig(), AuditRuntime()
IMAGES = ImagesConfig()
OFFLINE = OfflineConfig().offline


def validated(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """`model(**values)`, or one line that names the first wrong key.

    Raises:
        OptionError: an unknown key or a value of the wrong kind.
    """
    try:
        return model(**values)
    except ValidationError as error:
        raise OptionError(f"{where}: {first_fault(error, model)}") from None


def expand_variables(text: str, where: str) -> str:
    """Replace each `${NAME}` and `${NAME:-default}` by the environment variable, or by the default.

    Raises:
        OptionError: a variable that is not set and has no default.
    """

    def value_of(match: re.Match[str]) -> str:
        value = os.environ.get(match[1], match[2])
        if value is None:
            remedy = f"export {match[1]}=FOLDER"
            raise OptionError(f"{where}: ${{{match[1]}}} is not set", "an environment variable", remedy)
        return value

    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", value_of, text)


def parse_set(pairs: list[str]) -> dict[str, Any]:
    """`["a=1", "b=true", "c=x"]` -> {"a": 1, "b": True, "c": "x"}: JSON where it parses, else text.

    Raises:
        OptionError: a pair without `=`, or a key twice.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise OptionError(f"--set {pair}", "key=value")
        if key in values:
            raise OptionError(f"--set {key} twice", "each key once")
        try:
            values[key] = json.loads(text)
        # Integers of thousands of digits and thousands of brackets are text too, which no option takes.
        except (ValueError, RecursionError):
            values[key] = text
    return values


def config_json(values: Any) -> str:
    """Canonical JSON of a resolved configuration."""
    return json.dumps(values, indent=1, sort_keys=True, default=str)


def config_sha256(values: Any) -> str:
    """Hash of the canonical JSON."""
    return hashlib.sha256(config_json(values).encode()).hexdigest()
