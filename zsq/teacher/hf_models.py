"""Any image classifier of transformers, from the Hugging Face hub or from a local folder.

The network is built from its configuration by transformers' own classes; the weights are safetensors, read as
any weights file is. No code that comes with them is run.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from zsq.config import expand_variables
from zsq.contract import Teacher
from zsq.core.errors import MismatchError, MissingExtraError, UsageError
from zsq.tasks.classify import Classify
from zsq.teacher.heads import num_classes_in
from zsq.teacher.hf_config import CONFIG_FILE, PREPROCESSOR_FILE, check_is_of_transformers, read_config, said
from zsq.teacher.hf_preprocessing import image_spec_and_fit
from zsq.teacher.hub import WEIGHTS_FILE, check_safetensors, hub_folder
from zsq.teacher.load import build_without_global_rng, load_weights, read_state_dict
from zsq.teacher.outputs import settle

# Buffers that a network makes itself, such as tables of positions, beside what its file holds.
_OWN_BUFFERS = 2**24
_MOST_MODULES = 20_000  # several times the largest classifier
# Attention as plain products, which every network has; other ways can be code from the hub.
_COMPUTED = {"attn_implementation": "eager", "dtype": torch.float32}
_BELONGING = "the weights that belong to config.json"


def load_hf_teacher(name: str, weights: Path | None = None, offline: bool = False) -> Teacher:
    """The classifier in `hf:FOLDER`, or in the hub's repository `hf:NAME`, with the weights there or those in
    the file `weights`.

    The number of classes of a file follows from its last layer.

    Raises:
        MissingExtraError, UsageError: transformers is not installed; no such folder; no image classifier.
        WeightsError, MismatchError: weights that cannot be had, read or trusted, or of another network; or a
            configuration that asks for code. DownloadError: they cannot be fetched.
    """
    transformers = _transformers()
    folder = _folder(name, (CONFIG_FILE,) if weights is not None else (CONFIG_FILE, WEIGHTS_FILE), offline)
    described = read_config(folder / CONFIG_FILE, name)
    check_is_of_transformers(described, name)
    if weights is None:
        check_safetensors(folder, name)
    path = folder / WEIGHTS_FILE if weights is None else weights
    with _quiet(transformers):
        config = _config(transformers, described, name)
        empty = _empty(transformers, config, name)
        state, sha256 = read_state_dict(path, empty)
        network = _loaded(empty, config, state, f"{path} for {name}")
        spec, fit = image_spec_and_fit(transformers, folder, config, name)
    outputs = settle(network, spec, Classify(), name, output="logits")
    assert isinstance(outputs, Tensor)
    names = _class_names(config)
    return Teacher(name, network, spec, outputs.shape[1], sha256, classes=names, photo_fit=fit)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "hf") from None
    return transformers


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' progress bars and tables: what is wrong ends in one line of ours."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _folder(name: str, needed: Sequence[str], offline: bool) -> Path:
    """The local folder that `name` means, or the hub's copy of a repository, downloaded if missing."""
    text = expand_variables(name.removeprefix("hf:"), name)
    if text and Path(text).is_dir():
        return Path(text)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", text) or Path(text).exists():
        raise UsageError(f"teacher '{name}'", "hf:FOLDER that is there, or hf:NAME of a repository")
    return hub_folder(text, offline, "hf", needed, optional=(PREPROCESSOR_FILE,))


def _config(transformers: Any, described: dict[str, Any], name: str) -> Any:
    try:
        return transformers.AutoConfig.for_model(**described)
    # Values of a stranger's file in code that checks few of them.
    except Exception as error:
        found = (
            f"{name}: {CONFIG_FILE} is no configuration that transformers {transformers.__version__} takes"
        )
        raise UsageError(f"{found} ({said(error)})") from None


def _loaded(empty: Any, config: Any, state: Mapping[str, Tensor], source: str) -> nn.Module:
    """The network of `config` with the tensors of `state`, by the names that any version of it has saved.

    Raises:
        MismatchError: they are not those of the network, or far fewer.
    """
    wanted = sum(tensor.numel() for tensor in (*empty.parameters(), *empty.buffers()))
    there = sum(tensor.numel() for tensor in state.values())
    # Before memory is taken for what a stranger's file describes.
    if wanted > 2 * there + _OWN_BUFFERS:
        raise MismatchError(f"{source} holds {there} numbers, {CONFIG_FILE} describes {wanted}", _BELONGING)
    config.num_labels = num_classes_in(state, empty, config.num_labels)
    try:
        network, found = build_without_global_rng(
            type(empty).from_pretrained,
            pretrained_model_name_or_path=None,
            config=deepcopy(config),
            state_dict=dict(state),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **_COMPUTED,
        )
    # Tensors of a stranger's file in code that renames, joins and splits them.
    except Exception as error:
        raise MismatchError(f"{source}: {said(error)}", _BELONGING) from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[kind]:
            raise MismatchError(
                f"{source} has {kind.replace('_', ' ')}: {sorted(found[kind])[0]}", _BELONGING
            )
    # The tensors are its own by now; this looks at their values.
    load_weights(network, network.state_dict(), source)
    return network.eval()


def _empty(transformers: Any, config: Any, name: str) -> Any:
    """The network without memory for its tensors.

    Raises:
        UsageError: transformers has no such classifier.
    """
    automatic = transformers.AutoModelForImageClassification
    try:
        with torch.device("meta"), _few_modules():
            return automatic.from_config(deepcopy(config), trust_remote_code=False, **_COMPUTED)
    # As above.
    except Exception as error:
        raise UsageError(f"{name}: {said(error)}", "an image classifier of transformers") from None


@contextmanager
def _few_modules() -> Iterator[None]:
    """Stop a network that has more layers than memory and patience: they cost without tensors too."""
    number = itertools.count(1)

    def count(module: nn.Module, name: str, child: nn.Module | None) -> None:
        if next(number) > _MOST_MODULES:
            raise ValueError(f"a network of more than {_MOST_MODULES} modules")

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _class_names(config: Any) -> tuple[str, ...] | None:
    """The names of the classes, None where the configuration has none of its own or not one for each."""
    names = [str(config.id2label[index]) for index in range(config.num_labels) if index in config.id2label]
    named = all(name != f"LABEL_{index}" for index, name in enumerate(names))
    return tuple(names) if named and len(set(names)) == config.num_labels else None
