"""Teacher cards: a TOML file that names an architecture, its weights and its images.

Importing an architecture runs its Python: a card is trusted code of the user's own. Its weights are not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from zsq.config import expand_variables
from zsq.contract import Teacher
from zsq.core.errors import UsageError
from zsq.core.imagespec import ImageSpec
from zsq.core.photofit import Fit, PhotoFit, PositiveInt
from zsq.core.records import Record, first_fault, read_toml
from zsq.core.userline import user_line
from zsq.core.wording import quantity
from zsq.tasks import TASKS, Task, TaskName
from zsq.tasks.detect import NO_CLASSES, Detect, object_labels
from zsq.tasks.nesting import Outputs
from zsq.teacher.load import build_without_global_rng, load_weights, read_state_dict
from zsq.teacher.outputs import made_float, settle

_logger = logging.getLogger(__name__)

CALLABLE = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
# Card field -> field of the task; each names a function of the user's own.
FUNCTIONS = {"decode": "decode", "dense": "dense", "loss": "training_loss"}


class TeacherCard(Record):
    """The card's fields; `expected_accuracy` is in percent, `weights` relative to the card, `weights_key` an
    entry of that file, with dots between keys inside one another."""

    architecture: str = Field(pattern=CALLABLE)
    arguments: dict[str, Any] = Field({})
    weights: str | None = Field(None, min_length=1)
    weights_key: str | None = Field(None, min_length=1)
    task: TaskName = "classify"
    output: str | None = Field(None, pattern=r"^[^.\s]+(\.[^.\s]+)*$")
    psnr_on: Literal["y", "rgb"] | None = None
    border: int | None = Field(None, ge=0)
    output_range: tuple[float, float] | None = None
    decode: str | None = Field(None, pattern=CALLABLE)
    dense: str | None = Field(None, pattern=CALLABLE)
    loss: str | None = Field(None, pattern=CALLABLE)
    num_classes: int | None = Field(None, ge=1)
    embedding_size: int | None = Field(None, ge=1)
    expected_accuracy: float | None = Field(None, ge=0, le=100)
    classes: tuple[str, ...] | None = None
    fit: Fit = "crop"
    resize: PositiveInt | None = None
    image: ImageSpec

    @model_validator(mode="after")
    def _size_belongs_to_task(self) -> Self:
        wanted = TASKS[self.task].size_key
        allowed = {wanted} | ({"num_classes"} & set(_fields_of(self.task)))
        given = {key for key in ("num_classes", "embedding_size") if getattr(self, key) is not None}
        if not given <= allowed or not {wanted} - {None} <= given:
            others = " or ".join(key for key in ("num_classes", "embedding_size") if key not in allowed)
            needs = f"no {others}" if wanted is None else f"{wanted} and no {others}"
            raise ValueError(f"task '{self.task}' needs {needs}")
        if wanted == "num_classes" and self.num_classes == 1:
            raise ValueError(f"num_classes is 2 or more for task '{self.task}'; one number: task 'regress'")
        return self

    @model_validator(mode="after")
    def _task_has_these_fields(self) -> Self:
        for key in ("psnr_on", "border", "output_range", *FUNCTIONS):
            if getattr(self, key) is not None and FUNCTIONS.get(key, key) not in _fields_of(self.task):
                kind = "detect" if key in FUNCTIONS else "image"
                raise ValueError(f"{key} is for task '{kind}', not '{self.task}'")
        low, high = self.output_range or (0.0, 1.0)
        if low >= high:
            raise ValueError(f"output_range is the values of black and white, found {low:g} and {high:g}")
        return self

    @model_validator(mode="after")
    def _task_is_one_of_signals(self) -> Self:
        if self.image.is_signal and not TASKS[self.task].takes_signals:
            those = ", ".join(name for name, task in TASKS.items() if task.takes_signals)
            raise ValueError(f"task '{self.task}' is for images: of signals, one of {those}")
        return self

    @model_validator(mode="after")
    def _classes_have_names(self) -> Self:
        if self.classes is None:
            return self
        count = self.num_classes or (len(self.classes) if self.task == "detect" else None)
        fill = len(self.classes) - len(object_labels(self.classes)) if self.task == "detect" else 0
        different = len(set(self.classes) - NO_CLASSES if fill else set(self.classes))
        if not different + fill == len(self.classes) == count:
            found = f"classes lists {different} different names"
            raise ValueError(f"{found}, expected one for each of num_classes = {count}")
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

    def task_of(self, outputs: Outputs, code: _UserCode) -> Task:
        """The task, where the card is silent as the `outputs` of one image suggest: larger images are
        measured as super-resolution is, on luma and without a border as wide as the scale."""
        kind = TASKS[self.task]
        given = {
            key: getattr(self, key) for key in _fields_of(self.task) if getattr(self, key, None) is not None
        }
        if kind is Detect:
            named = {
                own: code.get(getattr(self, key), key) for key, own in FUNCTIONS.items() if getattr(self, key)
            }
            labels = object_labels(self.classes) if self.classes else None
            count = len(self.classes) if self.classes else self.num_classes
            return Detect(**named, num_classes=count, labels=labels).settled(outputs)
        if self.task != "image":
            return kind(**given)
        height, width = self.image.network_size[-2:]
        scale = outputs.shape[2] // height if outputs.shape[2] * width == outputs.shape[3] * height else 1
        if scale > 1:
            own = {"border": scale} | ({"psnr_on": "y"} if outputs.shape[1] == 3 else {})
            given = own | given
        if given.get("psnr_on") == "y" and outputs.shape[1] != 3:
            found = f"psnr_on = 'y' for outputs of {quantity(outputs.shape[1], 'channel')}"
            raise UsageError(found, "three: red, green, blue", "psnr_on = 'rgb' measures all channels")
        return kind(**given)


def _fields_of(task: str) -> list[str]:
    return [field.name for field in dataclasses.fields(TASKS[task])]


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
    code = _UserCode(path)
    network, sha256, outputs = _network(card, path, code, weights)
    return Teacher(
        name,
        network,
        card.image,
        outputs.shape[1] if isinstance(outputs, Tensor) and outputs.dim() > 1 else None,
        sha256,
        task=card.task_of(outputs, code),
        expected_accuracy=card.expected_accuracy,
        classes=card.classes,
        photo_fit=card.photo_fit,
    )


def load_card_network(path_text: str, fresh: bool) -> tuple[nn.Module, ImageSpec, bool]:
    """The network of the card at `path_text`, what it takes, and whether its weights are fresh, drawn from
    the global random state: with `fresh`, or where the card names no weights.

    Raises:
        ZsqError: as `load_card_teacher`.
    """
    path = Path(_expanded(path_text, path_text))
    card = read_card(path)
    weights = None if fresh or card.weights is None else path.parent / card.weights
    network, _, _ = _network(card, path, _UserCode(path), weights)
    return network, card.image, weights is None


def _network(
    card: TeacherCard, path: Path, code: _UserCode, weights: Path | None
) -> tuple[nn.Module, str, Outputs]:
    """The network with `weights`, or those it is made with; their sha256; its outputs for one image."""
    network = _build(card, path, code)
    what = f"the network of {path}"
    in_float = made_float(network, what)
    sha256 = ""
    if weights is not None:
        state, sha256 = read_state_dict(weights, network, card.weights_key)
        load_weights(network, state, f"{weights} for {card.architecture}")
    network.eval().requires_grad_(False)
    outputs = settle(
        network,
        card.image,
        TASKS[card.task](),
        what,
        num_outputs=card.num_outputs,
        output=card.output,
        in_float=in_float,
    )
    return network, sha256, outputs


def read_card(path: Path) -> TeacherCard:
    """The validated card at `path`, with ${VARIABLES} of its strings replaced.

    Raises:
        UsageError: no such file, no TOML, an unknown, missing or invalid field, or an undefined variable.
    """
    fields = read_toml(path, "teacher card")
    try:
        return TeacherCard(**_expanded(fields, str(path)))
    except ValidationError as error:
        raise UsageError(f"teacher card {path}: {first_fault(error, TeacherCard)}") from None


def _expanded(value: Any, where: str) -> Any:
    """`value` with variables replaced in every string inside it."""
    if isinstance(value, dict):
        return {key: _expanded(item, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, where) for item in value]
    return expand_variables(value, where) if isinstance(value, str) else value


def _build(card: TeacherCard, path: Path, code: _UserCode) -> nn.Module:
    _logger.info("%s: importing %s runs its Python", path, card.architecture)

    def build() -> Any:
        architecture = code.get(card.architecture, "architecture")
        try:
            return architecture(**card.arguments)
        # The architecture is the user's own code and may raise anything.
        except (Exception, SystemExit) as error:
            raise code.failed(
                card.architecture, "architecture", error, "that takes the card's arguments"
            ) from error

    network = build_without_global_rng(build)
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"{card.architecture} of {path} made a {type(network).__name__}", "a torch nn.Module"
        )
    return network


# Of the name under which a module beside a card is imported; messages say its own.
_PREFIX = "_zsq_card_"
_PRIVATE = re.compile(_PREFIX + "[0-9a-f]{12}_")


class _UserCode:
    """What stands in modules beside a card, or in installed ones; each is imported once."""

    def __init__(self, card: Path) -> None:
        self.card = card
        self.modules: dict[str, ModuleType] = {}

    def get(self, named: str, key: str) -> Callable[..., Any]:
        """The callable `module:name` of the card's field `key`."""
        module_name, _, name = named.partition(":")
        try:
            if module_name not in self.modules:
                self.modules[module_name] = card_module(module_name, self.card.parent)
            found = getattr(self.modules[module_name], name)
        # Importing runs the user's own code.
        except (Exception, SystemExit) as error:
            raise self.failed(named, key, error) from error
        if not callable(found):
            raise UsageError(f"{key} '{named}' of {self.card} is a {type(found).__name__}", "a callable")
        return found

    def failed(self, named: str, key: str, error: BaseException, which: str = "") -> UsageError:
        """What to say where it cannot be had or used."""
        return UsageError(
            f"{key} '{named}' of {self.card} failed with {type(error).__name__}{user_line(error)}: "
            f"{_PRIVATE.sub('', str(error))}",
            f"module:callable {which}".strip(),
            "importing it runs its Python; the module stands beside the card or is importable",
        )


def card_module(module_name: str, folder: Path) -> ModuleType:
    """The module beside the card under a private name, so that cards cannot shadow installed packages."""
    file = (folder / f"{module_name}.py").resolve()
    with _on_path(folder.resolve()):
        if not file.is_file():
            return importlib.import_module(module_name)
        digest = hashlib.sha256(str(file).encode()).hexdigest()[:12]
        spec = importlib.util.spec_from_file_location(f"{_PREFIX}{digest}_{file.stem}", file)
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
