"""The Python API; each function is what the command of the same name does.

What draws or computes reports is imported where it is used: `generate` starts in half the time without it.
"""

from zsq.api.checking import audit, verify_export
from zsq.api.comparing import measure_gap, run
from zsq.api.describing import inspect, inspect_student, inspect_teacher
from zsq.api.generating import generate
from zsq.api.quantizing import quantize

__all__ = [
    "audit",
    "generate",
    "inspect",
    "inspect_student",
    "inspect_teacher",
    "measure_gap",
    "quantize",
    "run",
    "verify_export",
]
