"""From the names of class folders to labels.

Numbers are classes. Names are looked up in the teacher's own list: the card's `classes`, a file, or for 1000
classes ImageNet's. Without such a list they count by rank, where that can be right.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path

from zsq.config import BY_ORDER
from zsq.contract import Teacher
from zsq.core.errors import ImagesError, OptionError
from zsq.core.wording import did_you_mean, quantity
from zsq.tasks.detect import Detect, object_labels

UNLABELLED = "unlabelled"

NUM_IMAGENET_CLASSES = 1000
WORDNET_IDS = "imagenet_wordnet_ids.txt"
MAX_LIST_BYTES = 2**20
REMEDY = "name the folders by class number, list `classes` in the teacher card, or pass --class-names"


@dataclass(frozen=True)
class ClassNames:
    """How class folders become labels.

    Attributes:
        num_classes: of the teacher; None where any label will do, as for identities.
        known: name -> class.
        stated: whether `known` is all there is, so that another name is a mistake.
        by_order: count names by rank, whatever their number.
        needed: refuse folders that have no class; else their images have no label.
    """

    num_classes: int | None = None
    known: Mapping[str, int] = field(default_factory=dict)
    stated: bool = False
    by_order: bool = False
    needed: bool = False

    def labels(self, source: str, folders: Collection[str]) -> tuple[dict[str, int], tuple[str, ...]]:
        """Name -> label of all class folders of a source, and what there is to say of it.

        Raises:
            ImagesError: numbers beside names, or names and numbers without a class where one is needed.
        """
        named = sorted(set(folders) - {UNLABELLED})
        found, notes = self._labels(source, named)
        return found | {UNLABELLED: -1}, notes

    def _labels(self, source: str, named: list[str]) -> tuple[dict[str, int], tuple[str, ...]]:
        numeric = [name for name in named if re.fullmatch("[0-9]{1,9}", name)]
        if numeric and len(numeric) == len(named):
            return self._numbers(source, named), ()
        by_name = {name: self.known.get(spelled(name)) for name in named}
        known = {name: label for name, label in by_name.items() if label is not None}
        if not self.by_order and len(known) == len(named):
            return known, ()
        if numeric:
            other = min(set(named) - set(numeric))
            found = f"{source} has class folders '{numeric[0]}' and '{other}'"
            raise ImagesError(found, "all numbers or all names")
        if self.stated and self.needed:
            raise self.unknown(
                f"{source} has a class folder", next(name for name in named if name not in known)
            )
        if self.by_order or (not self.stated and self.num_classes in (None, len(named))):
            return {name: rank for rank, name in enumerate(named)}, self._said_rank(named)
        if self.needed:
            shown = ", ".join(named[:3]) + (", ..." if len(named) > 3 else "")
            folders = quantity(len(named), "class folder")
            found = f"{source} has {folders} ({shown}) for {self.num_classes} classes"
            raise ImagesError(found, "names that say which classes they are", f"{REMEDY} FILE or {BY_ORDER}")
        return dict.fromkeys(named, -1), ()

    def _numbers(self, source: str, named: list[str]) -> dict[str, int]:
        largest = max(named, key=int)
        if self.needed and self.num_classes is not None and int(largest) >= self.num_classes:
            expected = f"0 to {self.num_classes - 1}, the teacher's {quantity(self.num_classes, 'class')}"
            raise ImagesError(f"{source} has a class folder '{largest}'", expected)
        return {name: int(name) for name in named}

    def _said_rank(self, named: list[str]) -> tuple[str, ...]:
        if self.num_classes is None or not named:
            return ()
        last = f", {named[-1]} is {len(named) - 1}" if len(named) > 1 else ""
        return (f"class folders count by the order of their names: {named[0]} is 0{last}",)

    def unknown(self, found: str, name: str) -> ImagesError:
        """What to say of a name that is not listed; `found` says where it stands."""
        hint = did_you_mean(spelled(name), self.known) or REMEDY
        return ImagesError(f"{found} '{name}'", f"one of the {len(self.known)} names that are listed", hint)


ANY_ORDER = ClassNames()


def class_names_of(teacher: Teacher, given: str | None = None, needed: bool = False) -> ClassNames:
    """The rule for images of a teacher; `given` is a file of names, or `by-order`.

    Raises:
        OptionError: a file that cannot be read or does not name every class once, or an embedding teacher.
    """
    if isinstance(teacher.task, Detect):
        return _categories_of(teacher, teacher.task.num_classes, given)
    count = teacher.num_classes
    if count is None:
        if given is not None:
            raise OptionError(f"--class-names {given}", "none: an embedding teacher has no classes")
        return ANY_ORDER
    if given == BY_ORDER:
        return ClassNames(count, by_order=True, needed=needed)
    listed = teacher.classes if given is None else _read_list(given)
    if listed is not None:
        known = {spelled(name): index for index, name in enumerate(listed)}
        if len(known) != count:
            found = f"{given or teacher.name} lists {len(known)} different names of classes"
            raise OptionError(found, f"{count}, in the order of the classes")
        return ClassNames(count, known, stated=True, needed=needed)
    known = dict(_imagenet()) if count == NUM_IMAGENET_CLASSES else {}
    return ClassNames(count, known, needed=needed)


def _categories_of(teacher: Teacher, count: int | None, given: str | None) -> ClassNames:
    """Of a detector: its list may have names that stand for no class."""
    listed = teacher.classes if given in (None, BY_ORDER) else _read_list(str(given))
    if given == BY_ORDER or listed is None:
        return ClassNames(count, by_order=given == BY_ORDER)
    labels = object_labels(listed)
    known = {spelled(listed[label]): label for label in labels}
    if len(known) != len(labels) or count not in (None, len(listed)):
        found = f"{given or teacher.name} lists {len(known)} different names of classes"
        raise OptionError(found, f"{count or len(labels)}, in the order of the classes")
    return ClassNames(len(listed), known, stated=True)


def spelled(name: str) -> str:
    """A name as it is compared: an underscore is a space."""
    return name.replace("_", " ").strip()


@cache
def _imagenet() -> dict[str, int]:
    """WordNet ids, and torchvision's names of the classes."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    ids = files("zsq.images").joinpath(WORDNET_IDS).read_text(encoding="ascii").split()
    return {spelled(name): index for names in (_IMAGENET_CATEGORIES, ids) for index, name in enumerate(names)}


def _read_list(given: str) -> tuple[str, ...]:
    path = Path(given)
    try:
        if not path.is_file() or path.stat().st_size > MAX_LIST_BYTES:
            raise OptionError(f"--class-names {given}", f"a text file with a name per line, or {BY_ORDER}")
        lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        return tuple(line for line in lines if line)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise OptionError(f"--class-names {given} cannot be read ({error})", "a text file") from None
