"""Where in a user's own code an error arose."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

ZSQ = Path(__file__).parents[1]
PYTHON = Path(os.__file__).parent
INSTALLED = {"site-packages", "dist-packages"}  # may lie inside of Python's own folder


def user_line(error: BaseException) -> str:
    """` at net.py:7 `x = self.fc(x)``: the last line that the error came through outside of Python, torch and
    zsq; empty where there is none."""
    import torch

    libraries = (Path(torch.__file__).parent, ZSQ)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        python = file.is_relative_to(PYTHON) and not INSTALLED & set(file.parts)
        if file.is_absolute() and not python and not any(map(file.is_relative_to, libraries)):
            return f" at {file.name}:{frame.lineno} `{frame.line}`"
    return ""
