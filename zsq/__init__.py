"""zsq: a trained network goes in, the calibration images that its quantizer needs come out.

import zsq
folder = zsq.generate("resnet18", "dsg", count=1024)
images = zsq.ShardDataset(folder)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zsq.core.version import __version__

if TYPE_CHECKING:
    from zsq.api import (
        audit,
        export,
        generate,
        import_images,
        inspect,
        measure_gap,
        quantize,
        run,
        verify_export,
    )
    from zsq.images.sources import load_images
    from zsq.saved.onnx_qdq import export_onnx
    from zsq.saved.saving import load_student, save_student
    from zsq.shards.reader import ShardDataset
    from zsq.shards.verify import verify_run
    from zsq.teacher import load_teacher

_HOMES = {
    "ShardDataset": "zsq.shards.reader",
    "audit": "zsq.api",
    "export": "zsq.api",
    "export_onnx": "zsq.saved.onnx_qdq",
    "generate": "zsq.api",
    "import_images": "zsq.api",
    "inspect": "zsq.api",
    "load_images": "zsq.images.sources",
    "load_student": "zsq.saved.saving",
    "load_teacher": "zsq.teacher",
    "measure_gap": "zsq.api",
    "quantize": "zsq.api",
    "run": "zsq.api",
    "save_student": "zsq.saved.saving",
    "verify_export": "zsq.api",
    "verify_run": "zsq.shards.verify",
}

__all__ = [
    "ShardDataset",
    "__version__",
    "audit",
    "export",
    "export_onnx",
    "generate",
    "import_images",
    "inspect",
    "load_images",
    "load_student",
    "load_teacher",
    "measure_gap",
    "quantize",
    "run",
    "save_student",
    "verify_export",
    "verify_run",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import zsq` and the command line start without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'zsq' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
