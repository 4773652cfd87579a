"""Recipes: TOML files that say all of what `zsq run` does."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from zsq.config import (
    BY_ORDER,
    GENERATE,
    GenerateConfig,
    Images,
    ImagesConfig,
    OfflineConfig,
    PositiveInt,
    Repeats,
    RuntimeConfig,
    Seed,
    expand_variables,
    validated,
)
from zsq.core.errors import UnknownNameError
from zsq.core.records import Record, read_toml
from zsq.core.selection import split_source
from zsq.widths import BitsText, WidthOrFloat

Named = Annotated[str, Field(min_length=1)]
# Of sources and students, as tables and folders have it.
NAME = r"^[a-z0-9][a-z0-9_.-]{0,99}$"


class RecipeTeacher(Record):
    """The teacher of a recipe; `expected_accuracy` in points stops a run that measures another one."""

    name: Named
    weights: Named | None = None
    expected_accuracy: float | None = None


class RecipeSource(Record):
    """One synthetic arm: a method and how it differs from the recipe's `[generate]`.

    `name`: what tables call it, by default the method. `count`: images of a set, more or fewer than the real
    sets hold. `real`: images for a method that reads some.
    """

    method: str
    name: Annotated[str | None, Field(pattern=NAME)] = None
    count: Images | None = None
    batch: Images | None = None
    iterations: PositiveInt | None = None
    real: Named | None = None
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
    called: Annotated[str | None, Field(pattern=NAME)] = None
    bits: Annotated[
        tuple[BitsText, ...],
        Field(min_length=1),
        BeforeValidator(lambda v: (v,) if isinstance(v, str) else v),
    ]
    first_last: WidthOrFloat | None = None
    widths: dict[str, WidthOrFloat] | str = Field(default={})
    passes: tuple[str, ...] = ()
    shard_sets: PositiveInt | None = None
    set: dict[str, Any] = Field({})


class RecipeAudit(Record):
    """Images of known membership, `count` of each, against which the first set of each source is audited, and
    one with `planted` training images in it."""

    train: Named
    holdout: Named
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
    real: Named
    eval: Named
    seeds: Repeats = 1
    show_real: bool = False
    audit: RecipeAudit | None = None
    runtime: RuntimeConfig = RuntimeConfig()
    needs: Annotated[str | None, Field(exclude=True)] = None
    folder: Annotated[Path, Field(exclude=True)] = Path()

    def located_file(self, text: str) -> Path:
        """A file of this recipe: variables replaced, a relative path from its folder."""
        return self.folder / self._expanded(text)

    def located_images(self, text: str) -> str:
        """The same of a source of images, which may be a name."""
        from zsq.images.sources import located

        return located(self._expanded(text), self.folder)

    @property
    def located_teacher(self) -> str:
        """The same of the teacher."""
        from zsq.teacher.names import located_teacher

        return located_teacher(self._expanded(self.teacher.name), self.folder)

    def _expanded(self, text: str) -> str:
        return expand_variables(text, f"recipe '{self.title}'")

    def reading_images(self, asked: ImagesConfig) -> Recipe:
        """This recipe with images read as `asked`, whose file is named from the current folder."""
        given = asked.model_dump(exclude_none=True)
        if "class_names" in given and asked.class_names != BY_ORDER:
            given["class_names"] = os.path.relpath(given["class_names"], self.folder)
        return self.model_copy(update=given)

    def with_runtime(self, **changes: Any) -> Recipe:
        """This recipe with these fields of its runtime changed."""
        return self.model_copy(update={"runtime": self.runtime.model_copy(update=changes)})

    @property
    def images(self) -> ImagesConfig:
        """How images are read, a file's name from the current folder."""
        names = self.class_names
        located = names if names is None or names == BY_ORDER else str(self.located_file(names))
        return ImagesConfig(fit=self.fit, class_names=located)

    def count_of(self, source: RecipeSource) -> int:
        """Images of each set of `source`."""
        return source.count or self.generate.count

    def missing(self) -> str | None:
        """The first of teacher card, weights, real and evaluation images that is a path to nothing."""
        from zsq.images.sources import is_path
        from zsq.teacher.names import card_path

        card = card_path(self.located_teacher)
        paths = [] if card is None else [card]
        paths += [self.located_file(self.teacher.weights)] if self.teacher.weights else []
        audited = (self.audit.train, self.audit.holdout) if self.audit else ()
        sources = [split_source(self.located_images(text))[0] for text in (self.real, self.eval, *audited)]
        paths += [Path(source) for source in sources if is_path(source)]
        return next((str(path) for path in paths if not path.exists()), None)


def source_config(recipe: Recipe, source: RecipeSource, shard_set: int) -> GenerateConfig:
    """What `zsq generate` would be called with for one shard set of one source."""
    plan = recipe.generate
    return GenerateConfig(
        teacher=recipe.teacher.name,
        weights=recipe.teacher.weights,
        method=source.method,
        count=recipe.count_of(source),
        batch=source.batch,
        shard_size=plan.shard_size,
        seed=plan.seed + shard_set,
        iterations=source.iterations or plan.iterations,
        effort="published",
        real=None if source.real is None else recipe.located_images(source.real),
        set=source.set,
        runtime=recipe.runtime,
        offline=recipe.offline,
    )


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
            raise UnknownNameError("recipe", name, known, "zsq list recipes")
        path, folder = known[name], Path()
    values = read_toml(path, "recipe")
    return validated(Recipe, {**values, "folder": folder}, f"recipe {path.name}")
