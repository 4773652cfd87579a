"""Weights from a file into a network: safetensors or a state dict, never code.

A file is recognised by its first bytes, not by its name. Pickled checkpoints go through the restricted
unpickler of `torch.load(weights_only=True)`, which calls no function that the file names.
"""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from zsq.core.errors import MismatchError, WeightsError
from zsq.core.files import open_regular
from zsq.teacher.unwrap import MAX_DEPTH, is_counter, three_of, unwrap

CONVERSION = (
    "where you trust the file, load it and save its state dict: torch.save(model.state_dict(), 'weights.pt') "
    "or safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)

_REMEDY = "pass the weights of this architecture"


def build_without_global_rng(architecture: Callable[..., Any], **arguments: Any) -> Any:
    """`architecture(**arguments)`, with the global random state as it was before."""
    with torch.random.fork_rng(devices=[]):
        return architecture(**arguments)


def read_sha256(path: Path) -> str:
    """Hex sha256 of the file's bytes.

    Raises:
        WeightsError: there is no file that can be read.
    """
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(
            f"weights file {path}: {error.strerror}", "a safetensors file or state dict"
        ) from None


def read_state_dict(
    path: Path, network: nn.Module | None = None, key: str | None = None
) -> tuple[dict[str, Tensor], str]:
    """Tensors of a weights file on the CPU, and the sha256 of the file's bytes.

    Entries around the tensors ('state_dict', 'model', 'ema' and others) and what stands before every name
    ('module.', '_orig_mod.', 'model.', 'backbone.') are taken off so that the names fit `network`; without a
    network, always. A warning says what was. `key` names the entry, with dots between keys inside one
    another.

    Raises:
        WeightsError: missing, damaged, of a format that carries code, or holding anything but tensors.
        MismatchError: no entry `key`.
    """
    sha256 = read_sha256(path)
    content = read_content(path)
    if not isinstance(content, Mapping) or not content:
        found = "an empty file" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise WeightsError(f"{path} holds {found}", "a dict of names and tensors", CONVERSION)
    state, taken_off = unwrap(content, None if network is None else network.state_dict(), key, path)
    if taken_off:
        warnings.warn(f"{path}: {taken_off}", stacklevel=2)
    return _plain_tensors(state, path), sha256


def read_content(path: Path) -> Any:
    """Whatever a safetensors file or a checkpoint of plain data holds, on the CPU.

    Raises:
        WeightsError: damaged, or of a format that carries code.
    """
    try:
        with open_regular(path) as file:
            head = file.read(9)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}", "a file of tensors") from None
    return _read_safetensors(path) if head[8:9] == b"{" else _read_checkpoint(path, head)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:
        raise WeightsError(f"{path} is a damaged safetensors file ({error})", "", "fetch it again") from None


def _read_checkpoint(path: Path, head: bytes) -> Any:
    if head[:4] == b"PK\x03\x04":
        _refuse_programs(path)
    elif head[:1] != b"\x80":
        raise WeightsError(
            f"{path} holds no weights that can be read", "safetensors or a state dict", CONVERSION
        )
    try:
        # What torch warns about ends in the one line below.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    # Damaged bytes can raise anything from inside the unpickler.
    except Exception as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise WeightsError(
                f"{path} is a pickle that would run code to load ({code[1]})",
                "safetensors or a plain state dict",
                CONVERSION,
            ) from None
        raise WeightsError(
            f"{path} is truncated, damaged or no state dict ({type(error).__name__})",
            "safetensors or a state dict",
            "fetch it again, or " + CONVERSION,
        ) from None


def _refuse_programs(path: Path) -> None:
    """TorchScript archives and exported programs are zip files too, with a program inside. What torch.save
    writes is not compressed."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            names = [name.split("/", 1)[-1] for name in archive.namelist()]
            unpacked = sum(info.file_size for info in archive.infolist())
    # ValueError: names that are no text.
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise WeightsError(f"{path} is a truncated or damaged checkpoint", "", "fetch it again") from None
    script = "constants.pkl" in names or any(name.startswith("code/") for name in names)
    exported = any("exported_program" in name or name == "archive_format" for name in names)
    if script or exported:
        kind = "a TorchScript archive" if script else "an exported program (.pt2)"
        raise WeightsError(f"{path} is {kind}", "safetensors or a plain state dict", CONVERSION)
    if unpacked > path.stat().st_size:
        found = f"{path} unpacks to {unpacked} bytes, more than it has"
        raise WeightsError(found, "a checkpoint as torch.save writes it", CONVERSION)


def _plain_tensors(content: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    for name, value in content.items():
        if not isinstance(name, str):
            found = f"a name is a {type(name).__name__}"
        elif not isinstance(value, Tensor):
            found = f"{three_of([name])} is a {type(value).__name__}"
        elif value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            found = f"{three_of([name])} is a {value.layout} {value.dtype} tensor on {value.device}"
        else:
            continue
        expected = f"plain tensors only, or up to {MAX_DEPTH} entries such as 'state_dict' around them"
        raise WeightsError(f"{path}: {found}", expected, CONVERSION)
    return content


def load_weights(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `network`; every tensor must be there, in its shape, finite, and nothing else.

    BN's `num_batches_tracked` alone may be missing or left over: it has no effect in eval mode.

    Raises:
        MismatchError: naming the first tensor that differs, and `source`.
        WeightsError: NaN or infinity among the values.
    """
    targets = network.state_dict()
    for name, target in targets.items():
        if name in state:
            _check_tensor(name, state[name], target, source)
        elif not is_counter(name):
            remedy = f"{_both_names(state, targets)}; {_REMEDY}"
            raise MismatchError(f"{source} has no {three_of([name])}", f"shape {_shape(target)}", remedy)
    unknown = _others(state, targets)
    if unknown:
        found, remedy = f"{source} has {three_of(unknown[:1])}", f"{_both_names(state, targets)}; {_REMEDY}"
        raise MismatchError(found, "only tensors that the network has", remedy)
    with torch.no_grad():
        for name in targets.keys() & state.keys():
            targets[name].copy_(state[name])


def _others(names: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> list[str]:
    return [name for name in names if name not in known and not is_counter(name)]


def _both_names(state: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> str:
    """Names of the file beside names of the network; those that the other lacks, where there are any."""
    own, wanted = _others(state, targets) or list(state), _others(targets, state) or list(targets)
    return f"the file has {three_of(own)}, the network wants {three_of(wanted)}"


def _check_tensor(name: str, value: Tensor, target: Tensor, source: str) -> None:
    if value.shape != target.shape:
        raise MismatchError(f"{source}: '{name}' is {_shape(value)}", f"shape {_shape(target)}", _REMEDY)
    if value.is_floating_point() != target.is_floating_point():
        raise MismatchError(f"{source}: '{name}' is {value.dtype}", f"{target.dtype}", _REMEDY)
    if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
        raise WeightsError(f"{source}: '{name}' holds NaN or infinity", "finite weights", "fetch them again")


def _shape(tensor: Tensor) -> str:
    return "x".join(str(length) for length in tensor.shape) or "scalar"
