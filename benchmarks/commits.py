"""Other commits of this repository, to compare with. Imports nothing of zsq: what is imported is theirs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A folder with the files of `commit`, for the block."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree").resolve()
        git = ["git", "-C", str(REPOSITORY), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def run_in(tree: Path, script: str, arguments: Sequence[str], threads: int = 1) -> str:
    """What `script` of the present tree prints where it imports zsq from `tree`."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, check=True, env=environment, cwd=tree, stdout=subprocess.PIPE, text=True)
    return done.stdout
