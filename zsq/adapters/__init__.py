"""Shards -> what other tools take: `from zsq.adapters import CalibrationReader` and so on.

Each tool is imported where its adapter is first used; where it is missing, one line names the extra.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zsq.adapters.loader import CalibrationImages, data_loader
    from zsq.adapters.mct import representative_data
    from zsq.adapters.nncf import nncf_dataset
    from zsq.adapters.onnxruntime import CalibrationReader
    from zsq.adapters.torchao import calibrate

_HOMES = {
    "CalibrationImages": "loader",
    "CalibrationReader": "onnxruntime",
    "calibrate": "torchao",
    "data_loader": "loader",
    "nncf_dataset": "nncf",
    "representative_data": "mct",
}

__all__ = [
    "CalibrationImages",
    "CalibrationReader",
    "calibrate",
    "data_loader",
    "nncf_dataset",
    "representative_data",
]


def __getattr__(name: str) -> Any:
    """Import on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'zsq.adapters' has no attribute '{name}'")
    return getattr(import_module(f"zsq.adapters.{_HOMES[name]}"), name)
