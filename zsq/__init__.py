"""zsq: a trained network goes in, the calibration images that its quantizer needs come out.

import zsq
folder = zsq.generate("resnet18", "dsg", count=1024)
images = zsq.ShardDataset(folder)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zsq.core.version import __version__

if TYPE_CHECKING:
    from zsq.api import audit as audit
    from zsq.api import generate as generate
    from zsq.api import inspect as inspect
    from zsq.api import inspect_student as inspect_student
    from zsq.api import inspect_teacher as inspect_teacher
    from zsq.api import measure_gap as measure_gap
    from zsq.api import quantize as quantize
    from zsq.api import run as run
    from zsq.api import verify_export as verify_export
    from zsq.core.errors import ZsqError as ZsqError
    from zsq.exports.exporting import export as export
    from zsq.images.sources import load_images as load_images
    from zsq.imports.importing import import_images as import_images
    from zsq.saved.onnx_qdq import export_onnx as export_onnx
    from zsq.saved.pt2e import export_pt2 as export_pt2
    from zsq.saved.pt2e import pt2e_student as pt2e_student
    from zsq.saved.saving import load_student as load_student
    from zsq.saved.saving import save_student as save_student
    from zsq.shards.reader import ShardDataset as ShardDataset
    from zsq.shards.verify import verify_run as verify_run
    from zsq.teacher import load_teacher as load_teacher

# Public name -> module. Type checkers read the imports above, everything else follows from this table.
_HOMES = {
    "ShardDataset": "zsq.shards.reader",
    "ZsqError": "zsq.core.errors",
    "audit": "zsq.api",
    "export": "zsq.exports.exporting",
    "export_onnx": "zsq.saved.onnx_qdq",
    "export_pt2": "zsq.saved.pt2e",
    "generate": "zsq.api",
    "import_images": "zsq.imports.importing",
    "inspect": "zsq.api",
    "inspect_student": "zsq.api",
    "inspect_teacher": "zsq.api",
    "load_images": "zsq.images.sources",
    "load_student": "zsq.saved.saving",
    "load_teacher": "zsq.teacher",
    "measure_gap": "zsq.api",
    "pt2e_student": "zsq.saved.pt2e",
    "quantize": "zsq.api",
    "run": "zsq.api",
    "save_student": "zsq.saved.saving",
    "verify_export": "zsq.api",
    "verify_run": "zsq.shards.verify",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import zsq` and the command line start without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'zsq' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
