"""From a name to the teacher: `resnet18`, `timm:resnet18d`, `hf:microsoft/resnet-18`, `cifar10:resnet20`,
`embedded:digits` or `file:teacher.toml`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from zsq.contract import Teacher
from zsq.core.errors import OptionError, UnknownNameError, UsageError
from zsq.core.files import input_path
from zsq.core.imagespec import ImageSpec
from zsq.core.modes import usual_modes
from zsq.core.runtime import device_of
from zsq.core.seeding import global_rng_of
from zsq.teacher.cifar_resnet import CIFAR_SPEC, DEPTHS, CifarResNet
from zsq.teacher.load import build_without_global_rng, load_weights, read_state_dict

_LIBRARIES = (
    ("timm:NAME", "any network of timm, see `zsq list timm`; needs the extra 'timm'"),
    (
        "hf:NAME",
        "an image classifier on the Hugging Face hub, or in a folder: hf:FOLDER; needs the extra 'hf'",
    ),
)
_PATH_ENDINGS = (".toml", ".pt", ".pth", ".th", ".pt2", ".pkl", ".safetensors")

_EMBEDDED = (
    ("embedded:digits", "small residual network for 32-px digits, weights included"),
    ("embedded:digits-features", "the same without its last layer: 48-d embeddings"),
    ("embedded:digits-detector", "small detector of digits on 96-px canvases, weights included"),
    ("embedded:digits-vit", "small vision transformer for 32-px digits, weights included"),
)


@usual_modes()
def load_teacher(
    name: str | Path,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    offline: bool = False,
) -> Teacher:
    """The teacher called `name`, frozen, on `device`; the global random state stays as it was.

    Args:
        name: as in `zsq list teachers`, or the path of a card.
        weights: a safetensors or state dict file in place of the teacher's own.
        device: `cpu`, `cuda`, `cuda:N`, or `auto`, the GPU where there is one.
        offline: refuse weights that are not on this machine, rather than download them.

    Raises:
        UnknownNameError, UsageError: no such teacher, or a broken card. MissingExtraError: its library is not
            installed.
        WeightsError, MismatchError: weights that cannot be had, read, trusted or that belong elsewhere.
        DownloadError: weights that cannot be fetched.
        OptionError: a device that is not there.

    Example:
        >>> teacher = zsq.load_teacher("embedded:digits")
        >>> teacher.num_outputs, teacher.spec.shape
        (10, (1, 32, 32))
    """
    name = f"file:{name}" if isinstance(name, Path) else name
    if not isinstance(name, str):
        raise OptionError(f"teacher {name!r}", "a name of `zsq list teachers`, or the path of a card")
    path = None if weights is None else input_path(weights, "weights")
    place = device_of(device)
    return _load(name, path, offline).to(place)


def _load(name: str, weights: Path | None, offline: bool) -> Teacher:
    source, colon, rest = name.partition(":")
    if source == "file" and colon:
        from zsq.teacher.card import load_card_teacher

        return load_card_teacher(name, rest, weights)
    if source == "hf" and colon:
        from zsq.teacher.hf_models import load_hf_teacher

        return load_hf_teacher(name, weights, offline)
    if _looks_like_path(name) or (not colon and Path(name).is_dir()):
        raise UsageError(
            f"teacher '{name}' looks like a path",
            f"--teacher file:{name} for a teacher card, or an architecture's name with --weights {name}",
        )
    if source == "timm" and colon:
        from zsq.teacher.timm_models import load_timm_teacher

        return load_timm_teacher(name, weights, offline)
    if source == "cifar10" and rest in _cifar_names():
        return _load_cifar(name, rest, weights)
    if name in dict(_EMBEDDED):
        if weights is not None:
            raise OptionError(f"--weights {weights}", f"none: {name} has its own weights")
        return _load_embedded(name)
    from zsq.teacher.torchvision_models import load_torchvision_teacher, torchvision_names

    if name not in torchvision_names():
        known = [known for known, _ in builtin_teachers()]
        raise UnknownNameError("teacher", name, known, "zsq list teachers")
    return load_torchvision_teacher(name, weights, offline)


def card_path(name: str) -> Path | None:
    """The file of a teacher that has a card, None of others."""
    return Path(name.removeprefix("file:")) if name.startswith("file:") else None


def located_teacher(name: str, folder: Path) -> str:
    """The name with its path, where it holds one, from `folder`."""
    source, _, rest = name.partition(":")
    if source == "file" or (source == "hf" and (folder / rest).is_dir()):
        return f"{source}:{folder / rest}"
    return name


def load_network(name: str, generator: torch.Generator, fresh: bool) -> tuple[nn.Module, ImageSpec, bool]:
    """A network to train in place of a teacher's, on the CPU, with what it takes, and whether its weights are
    fresh: drawn from `generator` as its architecture draws them. The global random state stays as it was.

    Args:
        name: `file:CARD`, with the card's weights where it names some, or `cifar10:NAME`, whose are fresh.
        fresh: leave the card's weights aside.

    Raises:
        OptionError: no such network. ZsqError: as `load_teacher`.
    """
    source, _, rest = name.partition(":")
    if source != "file" and (source != "cifar10" or rest not in _cifar_names()):
        raise OptionError(f"network '{name}'", f"file:CARD, or cifar10:{'|'.join(_cifar_names())}")
    with global_rng_of(generator):
        if source == "file":
            from zsq.teacher.card import load_card_network

            return load_card_network(rest, fresh)
        return CifarResNet(depth=int(rest.removeprefix("resnet"))), CIFAR_SPEC, True


def builtin_teachers() -> list[tuple[str, str]]:
    """(name, one-line description) of every teacher that needs no card; one line each for libraries."""
    from zsq.teacher.torchvision_models import torchvision_names

    cifar = [
        (f"cifar10:{name}", "CIFAR ResNet of He et al. 2016, needs --weights FILE") for name in _cifar_names()
    ]
    torchvision = [(name, "torchvision, 1000 ImageNet classes") for name in torchvision_names()]
    return [*_EMBEDDED, *cifar, *torchvision, *_LIBRARIES]


def _looks_like_path(name: str) -> bool:
    return "/" in name or "\\" in name or name.lower().endswith(_PATH_ENDINGS)


def _load_embedded(name: str) -> Teacher:
    if name == "embedded:digits-detector":
        from zsq.teacher.digits_detector import load_digits_detector

        return load_digits_detector()
    if name == "embedded:digits-vit":
        from zsq.teacher.digits_vit import load_digits_vit

        return load_digits_vit()
    from zsq.teacher.digits import load_digits_embedder, load_digits_teacher

    return load_digits_teacher() if name == "embedded:digits" else load_digits_embedder()


def _cifar_names() -> list[str]:
    return [f"resnet{depth}" for depth in DEPTHS]


def _load_cifar(name: str, architecture: str, weights: Path | None) -> Teacher:
    if weights is None:
        raise OptionError(
            f"teacher '{name}' without weights",
            "--weights FILE",
            "pass a state dict or the public checkpoint of this architecture",
        )
    network = build_without_global_rng(CifarResNet, depth=int(architecture.removeprefix("resnet")))
    state, sha256 = read_state_dict(weights, network)
    load_weights(network, state, f"{weights} for {name}")
    return Teacher(name, network, CIFAR_SPEC, network.linear.out_features, sha256)
