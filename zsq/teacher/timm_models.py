"""Any network of timm's table, with the mean, std, size and crop of its own configuration.

Default weights come from timm's repositories on the Hugging Face hub, as safetensors. timm's names for other
repositories and for folders (`hf-hub:`, `local-dir:`) are not taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn

from zsq.contract import Teacher
from zsq.core.errors import MismatchError, MissingExtraError, UnknownNameError, UsageError, WeightsError
from zsq.core.imagespec import ImageSpec
from zsq.core.photofit import Interpolation, PhotoFit
from zsq.tasks.classify import Classify
from zsq.tasks.embed import Embed
from zsq.teacher.hub import WEIGHTS_FILE, check_safetensors, hub_folder
from zsq.teacher.load import build_without_global_rng, load_weights, read_state_dict
from zsq.teacher.outputs import settle


def timm_names() -> list[str]:
    """`timm:ARCHITECTURE` of all networks of the installed timm.

    Raises:
        MissingExtraError: timm is not installed.
    """
    return [f"timm:{name}" for name in _timm().list_models()]


def load_timm_teacher(name: str, weights: Path | None = None, offline: bool = False) -> Teacher:
    """The network called `timm:ARCHITECTURE` or `timm:ARCHITECTURE.TAG`, with its default weights or those in
    the file `weights`.

    The number of classes of a file follows from its last layer. A network without classes is an embedder.

    Raises:
        MissingExtraError, UsageError: timm is not installed, or has no such network.
        WeightsError, MismatchError: weights that cannot be had, read or trusted, or of another architecture.
        DownloadError: they cannot be fetched.
    """
    timm = _timm()
    model = name.removeprefix("timm:")
    config = _published(timm, model)
    path = weights if weights is not None else _default_weights_path(name, config, offline)
    network = _build(timm, model)
    state, sha256 = read_state_dict(path, network)
    num_classes = config.num_classes if weights is None else _num_classes(state, config)
    if num_classes != config.num_classes:
        network = _build(timm, model, num_classes=num_classes)
    _load(timm, model, network, state, f"{path} for {name}")
    data = timm.data.resolve_model_data_config(network)
    spec, task = _image_spec(data), Classify() if num_classes else Embed()
    outputs = settle(network, spec, task, name)
    assert isinstance(outputs, Tensor)
    return Teacher(name, network, spec, outputs.shape[1], sha256, task=task, photo_fit=_photo_fit(data))


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise MissingExtraError("timm", "timm") from None
    return timm


def _published(timm: Any, model: str) -> Any:
    """timm's record of a network and of its default weights, or of those that a tag names."""
    architecture, _, tag = model.partition(".")
    if not timm.is_model(architecture):
        raise UnknownNameError("teacher", f"timm:{model}", timm_names(), "zsq list timm")
    try:
        return timm.get_pretrained_cfg(model, allow_unregistered=False)
    except RuntimeError:
        known = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
        found = f"timm has no weights '{tag}' of {architecture}"
        raise UsageError(found, f"one of {', '.join(known)}" if known else "no tag") from None


def _build(timm: Any, model: str, **arguments: Any) -> nn.Module:
    arguments = {"pretrained": False, **arguments}
    return build_without_global_rng(timm.create_model, model_name=model, **arguments).eval()


def _default_weights_path(name: str, config: Any, offline: bool) -> Path:
    """The safetensors of timm's repository, downloaded if missing."""
    if not config.hf_hub_id or config.hf_hub_filename not in (None, WEIGHTS_FILE):
        found = "pickled weights alone" if config.has_weights else "no weights of its own"
        raise WeightsError(
            f"{name} has {found}", "safetensors on the Hugging Face hub", "pass --weights FILE"
        )
    folder = hub_folder(config.hf_hub_id, offline, "timm", needed=(WEIGHTS_FILE,))
    check_safetensors(folder, config.hf_hub_id)
    return folder / WEIGHTS_FILE


def _num_classes(state: Mapping[str, Tensor], config: Any) -> int:
    """Rows of the last layer in `state`, without the background that some published files have."""
    layers = (config.classifier,) if isinstance(config.classifier, str) else config.classifier or ()
    found = [len(state[f"{layer}.weight"]) for layer in layers if f"{layer}.weight" in state]
    background = config.num_classes + (config.label_offset or 0)
    return config.num_classes if not found or found[0] == background else found[0]


def _load(timm: Any, model: str, network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `network`; timm knows what to make of names that an architecture had before."""
    try:
        load_weights(network, state, source)
    except MismatchError:
        num_classes = getattr(network, "num_classes", 0)
        overlay = {"state_dict": dict(state), "num_classes": num_classes}
        try:
            converted = _build(
                timm, model, pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=overlay
            )
        # The file is not for this architecture after all, which the first error says in one line.
        except Exception:
            converted = None
        if converted is None:
            raise
        load_weights(network, converted.state_dict(), source)


def _image_spec(data: Mapping[str, Any]) -> ImageSpec:
    channels, height, width = data["input_size"]
    mean, std = data["mean"], data["std"]
    return ImageSpec(
        channels=channels,
        size=(height, width),
        mean=mean if len(mean) == channels else mean * channels,
        std=std if len(std) == channels else std * channels,
    )


def _photo_fit(data: Mapping[str, Any]) -> PhotoFit:
    """As timm's evaluation does it; what it calls `border`, which pads, is a crop here."""
    known = data["interpolation"] in get_args(Interpolation)
    interpolation: Interpolation = data["interpolation"] if known else "bicubic"
    if data["crop_mode"] == "squash":
        return PhotoFit(how="stretch", interpolation=interpolation)
    short_side = min(data["input_size"][1:])
    return PhotoFit(resize=math.floor(short_side / data["crop_pct"]), interpolation=interpolation)
