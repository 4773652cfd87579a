"""What a command was asked to do: one frozen model per command, TOML recipes, their hash.

The models state each option's default; the command line and the Python API read them here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, ValidationError

from zsq.core.effort import Effort
from zsq.core.errors import OptionError, UnknownNameError
from zsq.core.photofit import Fit
from zsq.core.records import Record, first_fault, read_toml
from zsq.core.selection import split_source
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
    """The RUNTIME options as given; `zsq.core.runtime.Runtime.resolve` turns `auto` into values."""

    precision: str = "auto"
    compile: str = "auto"
    threads: Threads | None = None
    device: str = "auto"


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


class RecipeTeacher(Record):
    """The teacher of a recipe; `expected_accuracy` in points stops a run that measures another one."""

    name: str
    weights: str | None = None
    expected_accuracy: float | None = None


class RecipeSource(Record):
    """One synthetic arm: a method and how it differs from the recipe's `[generate]`.

    `name`: what tables call it, by default the method. `real`: images for a method that reads some.
    """

    method: str
    name: Annotated[str | None, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")] = None
    batch: Images | None = None
    iterations: PositiveInt | None = None
    real: str | None = None
    set: dict[str, Any] = Field({})

    @property
    def label(self) -> str:
        """Name of the arm in folders and tables."""
        return self.name or self.method


class RecipeGenerate(Record):
    """What all synthetic arms share. Shard set k has seed `seed` + k."""

    count: Images
    shard_sets: Repeats = 3
    shard_size: Images = GENERATE.shard_size
    seed: Seed = GENERATE.seed
    iterations: PositiveInt | None = None


class RecipeStudent(Record):
    """A student, at one or several bit widths, between the analytic `passes`; on the first `shard_sets` sets
    or on all. `called`: what tables call it, by default its name and passes; it tells students of one name
    apart. `widths`: of single rows, or the file that has them."""

    name: str
    called: Annotated[str | None, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")] = None
    bits: Annotated[tuple[BitsText, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)]
    first_last: int | None = None
    widths: dict[str, WidthOrFloat] | str = Field(default={})
    passes: tuple[str, ...] = ()
    shard_sets: PositiveInt | None = None
    set: dict[str, Any] = Field({})


class RecipeAudit(Record):
    """Images of known membership, `count` of each, against which the first set of each source is audited, and
    one with `planted` training images in it."""

    train: str
    holdout: str
    count: Images = 5000
    planted: Annotated[int, Field(ge=0)] = 16


class Recipe(ImagesConfig, OfflineConfig):
    """`zsq run`: generate each source, fit each student, measure the gap, report.

    Texts keep their `${NAME}` so that no machine's paths get into results; `folder` is where relative paths
    start: the recipe's own, or the current one for a recipe that comes with zsq. `needs` says in words which
    files must be there.
    """

    title: str
    teacher: RecipeTeacher
    generate: RecipeGenerate
    sources: Annotated[tuple[RecipeSource, ...], Field(min_length=1)]
    students: Annotated[tuple[RecipeStudent, ...], Field(min_length=1)]
    real: str
    eval: str
    seeds: Repeats = 1
    show_real: bool = False
    audit: RecipeAudit | None = None
    runtime: RuntimeConfig = RuntimeConfig()
    needs: Annotated[str | None, Field(exclude=True)] = None
    folder: Annotated[Path, Field(exclude=True)] = Path()

    def located(self, text: str) -> str:
        """An image source or a file of this recipe: variables replaced, relative paths from its folder."""
        path = expand_variables(text, f"recipe '{self.title}'")
        prefix, colon, rest = path.partition(":")
        if colon and prefix in ("embedded", "torchvision", "cifar10", "timm"):
            return path
        if colon and prefix == "hf":
            folder = self.folder / rest
            return f"hf:{folder}" if folder.is_dir() else path
        if colon and prefix == "file":
            return f"file:{self.folder / rest}"
        return str(self.folder / path)

    def reading_images(self, asked: ImagesConfig) -> Recipe:
        """This recipe with images read as `asked`, whose file is named from the current folder."""
        given = asked.model_dump(exclude_none=True)
        if "class_names" in given and asked.class_names != BY_ORDER:
            given["class_names"] = os.path.relpath(given["class_names"], self.folder)
        return self.model_copy(update=given)

    @property
    def images(self) -> ImagesConfig:
        """How images are read, a file's name from the current folder."""
        names = self.class_names
        located = names if names in (None, BY_ORDER) else self.located(names)
        return ImagesConfig(fit=self.fit, class_names=located)

    def missing(self) -> str | None:
        """The first of teacher card, weights, real and evaluation images that is a path to nothing."""
        teacher, audited = self.located(self.teacher.name), self.audit
        paths = [teacher.removeprefix("file:")] if teacher.startswith("file:") else []
        paths += [self.located(self.teacher.weights)] if self.teacher.weights else []
        more = (audited.train, audited.holdout) if audited else ()
        sources = [split_source(self.located(text))[0] for text in (self.real, self.eval, *more)]
        paths += [source for source in sources if not source.startswith(("embedded:", "torchvision:"))]
        return next((path for path in paths if not Path(path).exists()), None)


def validated(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """`model(**values)`, or one line that names the first wrong key.

    Raises:
        OptionError: an unknown key or a value of the wrong kind.
    """
    try:
        return model(**values)
    except ValidationError as error:
        raise OptionError(f"{where}: {first_fault(error)}") from None


def recipe_paths() -> dict[str, Path]:
    """Name -> file of the recipes that come with zsq."""
    folder = files("zsq.recipes")
    return {Path(str(f)).stem: Path(str(f)) for f in folder.iterdir() if f.name.endswith(".toml")}


def recipe_titles() -> dict[str, str]:
    """Name -> title of the recipes that come with zsq."""
    return {name: read_toml(path, "recipe")["title"] for name, path in sorted(recipe_paths().items())}


def load_recipe(name: str) -> Recipe:
    """Read a recipe by the name of one that comes with zsq, or by the path of a TOML file.

    Raises:
        UnknownNameError: no such recipe. OptionError: not TOML, or wrong keys or values.
    """
    path = Path(name)
    folder = path.parent
    if path.suffix != ".toml":
        known = recipe_paths()
        if name not in known:
            raise UnknownNameError("recipe", name, known)
        path, folder = known[name], Path()
    values = read_toml(path, "recipe")
    return validated(Recipe, {**values, "folder": folder}, f"recipe {path.name}")


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
