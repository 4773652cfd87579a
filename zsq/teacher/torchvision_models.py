"""Any torchvision classification model, with the mean, std and size of its default weights.

Default weights that are not in torch.hub's folder are downloaded from the URL that torchvision names, and
checked against the hash in their file name.
"""

from __future__ import annotations

import http.client
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from zsq.contract import Teacher
from zsq.core.errors import DownloadError, MismatchError
from zsq.core.imagespec import ImageSpec
from zsq.core.photofit import PhotoFit
from zsq.teacher.heads import num_classes_in
from zsq.teacher.hub import before_download
from zsq.teacher.load import build_without_global_rng, load_weights, read_sha256, read_state_dict

NUM_IMAGENET_CLASSES = 1000


def torchvision_names() -> list[str]:
    """Names of all classification models of the installed torchvision."""
    return torchvision.models.list_models(module=torchvision.models)


def load_torchvision_teacher(name: str, weights: Path | None = None, offline: bool = False) -> Teacher:
    """The model called `name` with its default weights, or those in the file `weights`.

    The number of classes of a file follows from its last layer. Auxiliary heads are left out.

    Raises:
        WeightsError, MismatchError: weights that cannot be read or trusted, or of another architecture.
        DownloadError: the default weights cannot be fetched.
    """
    default = torchvision.models.get_model_weights(name).DEFAULT
    path = weights if weights is not None else _default_weights_path(name, default.url, offline)
    arguments = _arguments(name, default.meta)
    network = _build(name, arguments, NUM_IMAGENET_CLASSES)
    state, sha256 = read_state_dict(path, network)
    state = _current_names(state)
    num_classes = num_classes_in(state, network, NUM_IMAGENET_CLASSES)
    if num_classes != NUM_IMAGENET_CLASSES:
        network = _build(name, arguments, num_classes)
    load_weights(network, state, f"{path} for {name}")
    transforms = default.transforms()
    spec, fit = _image_spec(transforms), _photo_fit(transforms)
    return Teacher(name, network, spec, num_classes, sha256, photo_fit=fit)


def _build(name: str, arguments: dict[str, Any], num_classes: int) -> nn.Module:
    return build_without_global_rng(
        torchvision.models.get_model, name=name, weights=None, num_classes=num_classes, **arguments
    )


def _arguments(name: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What torchvision itself changes in an architecture when it loads the default weights."""
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "transform_input": True, "init_weights": False}
    if name.startswith("vit_"):
        return {"image_size": meta["min_size"][0]}
    return {}


def _image_spec(transforms: Any) -> ImageSpec:
    (side,) = transforms.crop_size
    return ImageSpec(size=(side, side), mean=tuple(transforms.mean), std=tuple(transforms.std))


def _photo_fit(transforms: Any) -> PhotoFit:
    (resize,) = transforms.resize_size
    return PhotoFit(resize=resize, interpolation=transforms.interpolation.value)


def _current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without auxiliary heads, and with the dots gone that DenseNet's published files have in layer names.

    Raises:
        MismatchError: two names become one.
    """
    kept = {name: t for name, t in state.items() if not re.match(r"(aux1|aux2|AuxLogits)\.", name)}
    renamed = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name): t for name, t in kept.items()
    }
    if len(renamed) < len(kept):
        raise MismatchError(
            "a DenseNet with both 'norm1' and 'norm.1' in its names", "one of them", "fetch it again"
        )
    return renamed


def _default_weights_path(name: str, url: str, offline: bool = False) -> Path:
    """The file of `url` in torch.hub's folder, downloaded if missing; its hash is checked either way."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    hash_prefix = path.stem.rsplit("-", 1)[-1]
    wanted = f"a file whose sha256 starts with {hash_prefix}"
    if not path.is_file():
        before_download(f"default weights of {name}", url, offline)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix, progress=sys.stderr.isatty())
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise DownloadError(
                f"default weights of {name}: {url} could not be fetched ({error})",
                wanted,
                f"fetch it elsewhere and pass it with --weights FILE, or put it at {path}",
            ) from None
    if not read_sha256(path).startswith(hash_prefix):
        raise DownloadError(f"{path} is not what {url} holds", wanted, "delete it and try again")
    return path
