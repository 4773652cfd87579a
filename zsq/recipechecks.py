"""What of a recipe does not fit together, before anything that it names is loaded."""

from __future__ import annotations

from zsq.core.errors import ImagesError, OptionError
from zsq.measure.protocol import NOISE, REAL
from zsq.recipefile import Recipe


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe that cannot be run to its end.

    Raises:
        ImagesError: files that it needs are missing.
        OptionError: names or numbers that contradict each other.
    """
    _check_files(recipe)
    _check_labels(recipe)
    _check_sets(recipe)
    _check_audit(recipe)


def _check_files(recipe: Recipe) -> None:
    """Say what a recipe needs, where some of it is missing, before the teacher is looked for."""
    missing = recipe.missing() if recipe.needs else None
    if missing:
        raise ImagesError(f"{missing} does not exist", str(recipe.needs), "export ZSQ_DATA=FOLDER")


def _check_labels(recipe: Recipe) -> None:
    """Two sources of one label would be one arm, and tables know the real images and noise by theirs."""
    labels = [source.label for source in recipe.sources]
    for source in recipe.sources:
        label = source.label
        if labels.count(label) > 1:
            found = f"recipe with {labels.count(label)} sources called '{label}'"
            raise OptionError(found, 'a `name` of its own for each, as in name = "dsg-long"')
        if label in (REAL, NOISE) and source.method != label:
            raise OptionError(f"recipe whose source of {source.method} is called '{label}'", "another `name`")


def _check_sets(recipe: Recipe) -> None:
    there = recipe.generate.shard_sets
    for student in recipe.students:
        if (student.shard_sets or 0) > there:
            found = f"student '{student.name}' with shard_sets = {student.shard_sets}"
            raise OptionError(found, f"at most the {there} of [generate]")


def _check_audit(recipe: Recipe) -> None:
    """Distances need two images, and a set has no room for more planted ones than its own."""
    audit = recipe.audit
    if audit is None:
        return
    sets = [recipe.generate.count, *map(recipe.count_of, recipe.sources)]
    for what, number in (("count", audit.count), ("sets", min(sets))):
        if number < 2:
            raise OptionError(f"[audit] with {what} of 1 image", "at least 2")
    if "planted" in audit.model_fields_set and audit.planted > min(audit.count, *sets):
        raise OptionError(f"[audit] with planted = {audit.planted}", f"at most {min(audit.count, *sets)}")
