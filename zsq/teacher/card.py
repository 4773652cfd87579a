"""Teacher cards: a TOML file that names an architecture, its weights and its images.

Importing an architecture runs its Python: a card is trusted code of the user's own. Its weights are not.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import torch
from pydantic import Field, ValidationError, model_validator
from torch import nn

from zsq.config import expand_variables
from zsq.contract import Teacher
from zsq.core.errors import MismatchError, UsageError
from zsq.core.imagespec import ImageSpec
from zsq.core.photofit import Fit, PhotoFit, PositiveInt
from zsq.core.records import Record, first_fault, read_toml
from zsq.tasks import TASKS, TaskName
from zsq.tasks.nesting import shapes
from zsq.teacher.load import build_without_global_rng, load_weights, read_state_dict

_logger = logging.getLogger(__name__)


class TeacherCard(Record):
    """The card's fields; `expected_accuracy` is in percent, `weights` relative to the card, `weights_key` an
    entry of that file, with dots between keys inside one another."""

    architecture: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
    arguments: dict[str, Any] = Field({})
    weights: str | None = Field(None, min_length=1)
    weights_key: str | None = Field(None, min_length=1)
    task: TaskName = "classify"
    num_classes: int | None = Field(None, ge=2)
    embedding_size: int | None = Field(None, ge=1)
    expected_accuracy: float | None = Field(None, ge=0, le=100)
    classes: tuple[str, ...] | None = None
    fit: Fit = "crop"
    resize: PositiveInt | None = None
    image: ImageSpec

    @model_validator(mode="after")
    def _size_belongs_to_task(self) -> Self:
        wanted = TASKS[self.task].size_key
        given = [key for key in ("num_classes", "embedding_size") if getattr(self, key) is not None]
        if given != ([] if wanted is None else [wanted]):
            others = " or ".join(key for key in ("num_classes", "embedding_size") if key != wanted)
            needs = f"no {others}" if wanted is None else f"{wanted} and no {others}"
            raise ValueError(f"task '{self.task}' needs {needs}")
        return self

    @model_validator(mode="after")
    def _classes_have_names(self) -> Self:
        if self.classes is not None and not len(set(self.classes)) == len(self.classes) == self.num_classes:
            found = f"classes lists {len(set(self.classes))} different names"
            raise ValueError(f"{found}, expected one for each of num_classes = {self.num_classes}")
        return self

    @model_validator(mode="after")
    def _resize_leaves_enough(self) -> Self:
        smallest = min(self.image.size)
        if self.resize is not None and (self.fit != "crop" or self.resize < smallest):
            raise ValueError(f"resize is for fit = 'crop' and {smallest} px or more, as the image is")
        return self

    @property
    def photo_fit(self) -> PhotoFit:
        """How photos of another size become the teacher's images."""
        return PhotoFit(how=self.fit, resize=self.resize, interpolation=self.image.interpolation)

    @property
    def num_outputs(self) -> int | None:
        """Classes or numbers of an embedding; None where the task does not ask for them."""
        key = TASKS[self.task].size_key
        size: int | None = None if key is None else getattr(self, key)
        return size


def load_card_teacher(name: str, path_text: str, weights: Path | None = None) -> Teacher:
    """The teacher of the card at `path_text`, called `name`; `weights` replaces the card's own.

    Raises:
        UsageError: a card or architecture that cannot be read, imported or built.
        WeightsError, MismatchError: as for any weights; or outputs of another size than the card says.
    """
    path = Path(_expanded(path_text, name))
    card = read_card(path)
    if weights is None:
        if card.weights is None:
            raise UsageError(f"{path} names no weights", "weights = 'FILE' in the card, or --weights FILE")
        weights = path.parent / card.weights
    network = _build(card, path)
    state, sha256 = read_state_dict(weights, network, card.weights_key)
    load_weights(network, state, f"{weights} for {card.architecture}")
    teacher = Teacher(
        name,
        network,
        card.image,
        card.num_outputs,
        sha256,
        task=TASKS[card.task](),
        expected_accuracy=card.expected_accuracy,
        classes=card.classes,
        photo_fit=card.photo_fit,
    )
    _check_outputs(teacher, path)
    return teacher


def read_card(path: Path) -> TeacherCard:
    """The validated card at `path`, with ${VARIABLES} of its strings replaced.

    Raises:
        UsageError: no such file, no TOML, an unknown, missing or invalid field, or an undefined variable.
    """
    fields = read_toml(path, "teacher card")
    try:
        return TeacherCard(**_expanded(fields, str(path)))
    except ValidationError as error:
        raise UsageError(f"teacher card {path}: {first_fault(error)}") from None


def _expanded(value: Any, where: str) -> Any:
    """`value` with variables replaced in every string inside it."""
    if isinstance(value, dict):
        return {key: _expanded(item, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, where) for item in value]
    return expand_variables(value, where) if isinstance(value, str) else value


def _build(card: TeacherCard, path: Path) -> nn.Module:
    _logger.info("%s: importing %s runs its Python", path, card.architecture)
    network = build_without_global_rng(_import_architecture, card=card, path=path)
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"{card.architecture} of {path} made a {type(network).__name__}", "a torch nn.Module"
        )
    return network


def _import_architecture(card: TeacherCard, path: Path) -> Any:
    module_name, _, callable_name = card.architecture.partition(":")
    what = f"architecture '{card.architecture}' of {path}"
    try:
        module = _import_module(module_name, path.parent)
        architecture: Callable[..., Any] = getattr(module, callable_name)
        return architecture(**card.arguments)
    # The architecture is the user's own code and may raise anything.
    except Exception as error:
        raise UsageError(
            f"{what} failed with {type(error).__name__}: {error}",
            "module:callable that takes the card's arguments",
            "importing it runs its Python; the module stands beside the card or is importable",
        ) from error


def _import_module(module_name: str, folder: Path) -> ModuleType:
    """The module beside the card under a private name, so that cards cannot shadow installed packages."""
    file = (folder / f"{module_name}.py").resolve()
    with _on_path(folder.resolve()):
        if not file.is_file():
            return importlib.import_module(module_name)
        digest = hashlib.sha256(str(file).encode()).hexdigest()[:12]
        spec = importlib.util.spec_from_file_location(f"_zsq_card_{digest}_{file.stem}", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """`folder` importable for the module's own imports of its neighbours."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def _check_outputs(teacher: Teacher, path: Path) -> None:
    black = torch.zeros(1, *teacher.spec.shape, dtype=torch.uint8)
    shape = "x".join(str(length) for length in teacher.spec.shape)
    try:
        with torch.no_grad():
            outputs = teacher.network(teacher.spec.pixels_to_norm(black))
    # The forward pass is the user's own code and may raise anything.
    except Exception as error:
        raise MismatchError(
            f"the network of {path} failed on a {shape} image with {type(error).__name__}: {error}",
            "an [image] table that fits the network",
        ) from error
    task = teacher.task
    if not task.suits(outputs) or (
        teacher.num_outputs is not None and outputs.shape[:2] != (1, teacher.num_outputs)
    ):
        raise MismatchError(
            f"the network of {path} returns {shapes(outputs)} for one image",
            f"{task.wants}"
            + ("" if teacher.num_outputs is None else f" with {task.size_key} = {teacher.num_outputs}"),
        )
