"""A kill in an export, an import or a save: the next call into that folder removes what is left.

Whatever it is called; and never what another process still works on."""

import os
import signal

import pytest

import zsq
from zsq.core import files
from zsq.core.files import is_leftover

DIGITS = "embedded:digits"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return zsq.generate(DIGITS, "noise", count=4, out=tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def student():
    return zsq.quantize(DIGITS, f"{DIGITS}:val", "ptq", "W8A8", count=8, set={"observer": "minmax"}).fitted


WRITES = {
    "export": lambda run, student, out: zsq.export(run, "npy", out),
    "import": lambda run, student, out: zsq.import_images(run, out),
    "save": lambda run, student, out: zsq.save_student(
        student, zsq.load_teacher(DIGITS), out.parent / f"{out.name}.safetensors"
    ),
}


def killed(write, after):
    """Run `write` in a process that kills itself when it flushes a file for the `after`-th time."""
    child = os.fork()
    if not child:
        left, fsync = [after], os.fsync

        def flush(descriptor):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        files.os.fsync = flush
        try:
            write()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def leftovers(folder):
    return [path.name for path in folder.iterdir() if is_leftover(path.name)]


@pytest.mark.parametrize("name", WRITES)
def test_what_a_kill_left_goes_with_the_next_call_of_another_name(name, run, student, tmp_path):
    assert killed(lambda: WRITES[name](run, student, tmp_path / "first"), 1)
    assert len(leftovers(tmp_path)) == 1
    WRITES[name](run, student, tmp_path / "second")
    assert leftovers(tmp_path) == []
    assert not any(path.name.startswith("first") for path in tmp_path.iterdir())
    assert any(path.name.startswith("second") for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", WRITES)
def test_what_a_process_still_works_on_is_left_alone(name, run, student, tmp_path):
    with files.temporary_sibling(tmp_path / "busy", lambda path: path.mkdir()) as busy:
        (busy / "half").touch()
        WRITES[name](run, student, tmp_path / "second")
        assert leftovers(tmp_path) == [busy.name]
        assert (busy / "half").exists()
