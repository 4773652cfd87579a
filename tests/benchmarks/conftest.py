"""Benchmarks import their neighbours by name, and so do their tests."""

import sys

from commands import REPOSITORY

sys.path.append(str(REPOSITORY / "benchmarks"))
