"""Weights from elsewhere: when a download is allowed, what is said of it, and files of the Hugging Face hub.

From that hub come configurations and safetensors alone. No code is fetched, and none is run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zsq.core.errors import DownloadError, MissingExtraError, WeightsError, first_line

OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
WEIGHTS_FILE = "model.safetensors"
WITH_WEIGHTS = "pass it with --weights FILE"
_OTHERWISE = {"timm": WITH_WEIGHTS, "hf": "pass their folder as hf:FOLDER"}


def is_offline(offline: bool) -> bool:
    """Whether nothing may be downloaded: `--offline` says so, or the environment as Hugging Face reads it."""
    return offline or os.environ.get(OFFLINE_VARIABLE, "").upper() in ("1", "ON", "YES", "TRUE")


def before_download(what: str, url: str, offline: bool, otherwise: str = WITH_WEIGHTS) -> None:
    """Say where `what` comes from; `otherwise` is what to do where it cannot be had.

    Raises:
        WeightsError: nothing may be downloaded.
    """
    if is_offline(offline):
        raise WeightsError(
            f"{what} are not on this machine, and it is offline (--offline or {OFFLINE_VARIABLE})",
            "weights that were downloaded before",
            f"fetch {url} elsewhere, and {otherwise}",
        )
    warnings.warn(f"{what} are downloaded from {url}", stacklevel=2)


def hub_folder(
    repository: str, offline: bool, extra: str, needed: Sequence[str], optional: Sequence[str] = ()
) -> Path:
    """The folder with those of the files named that `repository` has, of one revision; downloaded where one
    that is needed is not in the hub's cache.

    Args:
        extra: the extra that brings the hub's package.

    Raises:
        WeightsError: nothing may be downloaded. DownloadError: the download failed.
    """
    hub = _huggingface_hub(extra)
    files = [*needed, *optional]
    found = _cached_folder(hub, repository, files)
    if found is not None and all((found / name).is_file() for name in needed):
        return found
    what, url = f"the files of {repository}", f"{hub.constants.ENDPOINT}/{repository}"
    before_download(what, url, offline, _OTHERWISE[extra])
    try:
        return Path(hub.snapshot_download(repository, allow_patterns=files))
    # The hub's package raises its own errors, those of its HTTP library, and what the machine raises.
    except Exception as error:
        raise DownloadError(
            f"{what}: {url} could not be fetched ({first_line(error)})",
            "a public repository and a connection",
            f"fetch it elsewhere, and {_OTHERWISE[extra]}",
        ) from None


def check_safetensors(folder: Path, what: str) -> None:
    """Pass a folder with weights as one safetensors file.

    Raises:
        WeightsError: they are pickled, in several files, or missing.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return
    pickled = next((path.name for path in sorted(folder.glob("*.bin"))), None)
    found = f"no {WEIGHTS_FILE}"
    if (folder / f"{WEIGHTS_FILE}.index.json").is_file():
        found = "its weights in several files"
    elif pickled is not None:
        found = f"pickled weights alone ({pickled})"
    raise WeightsError(
        f"{what} has {found}",
        f"{WEIGHTS_FILE}: pickled weights of others are not read",
        "convert them where you trust them, and pass the file with --weights FILE",
    )


def _cached_folder(hub: Any, repository: str, files: list[str]) -> Path | None:
    try:
        return Path(hub.snapshot_download(repository, allow_patterns=files, local_files_only=True))
    # Whatever keeps the cache from being read: the download says it better.
    except Exception:
        return None


def _huggingface_hub(extra: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtraError("huggingface_hub", extra) from None
    return huggingface_hub
