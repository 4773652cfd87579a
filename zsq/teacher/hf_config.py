"""`config.json` and `preprocessor_config.json` of transformers: data from strangers, read here.

Only what describes a network or its images goes on to transformers. Keys that lead to code or to other
weights are refused; those that say how to compute are dropped, since their values can name code on the hub.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from zsq.core.errors import UsageError, WeightsError, first_line
from zsq.core.files import read_regular

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
_MOST_BYTES = 2**24

_REFUSED = {
    "auto_map": "names code of its own, which is not run",
    "quantization_config": "is of a network that is quantized already",
    "use_pretrained_backbone": "asks for the weights of another repository",
}
_DROPPED = ("attn_implementation", "experts_implementation", "fusion_config", "dtype", "torch_dtype")


def read_config(path: Path, name: str) -> dict[str, Any]:
    """The JSON object at `path`, of the model called `name`.

    Raises:
        UsageError: missing, or no JSON object.
        WeightsError: it asks for code or for other weights.
    """
    try:
        content = json.loads(read_regular(path, _MOST_BYTES))
    except OSError as error:
        expected = "a model's folder as transformers saves it"
        raise UsageError(f"{name}: {path} cannot be read ({error.strerror})", expected) from None
    # Not only what json raises: thousands of brackets, and bytes that are no text.
    except (ValueError, RecursionError):
        raise UsageError(f"{name}: {path} is no JSON", "a file as transformers saves it") from None
    if not isinstance(content, dict):
        raise UsageError(f"{name}: {path} holds a {type(content).__name__}", "a JSON object")
    return _data_alone(content, f"{name}: {path.name}")


def said(error: Exception) -> str:
    """What transformers says first of what is wrong; it can go on for pages."""
    return textwrap.shorten(first_line(error), 200, placeholder=" ...")


def check_is_of_transformers(config: dict[str, Any], name: str) -> None:
    """Check that a configuration is that of a network of transformers' own.

    Raises:
        UsageError: timm's, or without `model_type`.
    """
    kind, architecture = config.get("model_type"), config.get("architecture")
    if kind == "timm_wrapper" or (kind is None and isinstance(architecture, str)):
        found = f"{name} is a network of timm, {architecture}"
        raise UsageError(found, "--teacher timm:NAME, with --weights FILE where they are not timm's own")
    if not isinstance(kind, str):
        raise UsageError(f"{name}: {CONFIG_FILE} has no model_type", "a configuration of transformers")


def _data_alone(content: Any, where: str) -> Any:
    """`content` without the keys to drop, at any depth."""
    if isinstance(content, list):
        return [_data_alone(item, where) for item in content]
    if not isinstance(content, dict):
        return content
    for key, found in _REFUSED.items():
        if content.get(key):
            raise WeightsError(f"{where} {found} ({key})", "a network of transformers' own")
    return {
        key: _data_alone(value, where)
        for key, value in content.items()
        if key not in _DROPPED and not key.startswith("_")
    }
