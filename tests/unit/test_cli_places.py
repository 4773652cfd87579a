"""What a command writes does not mix with the files of a run."""

import shutil

import pytest
from commands import call

import zsq
from zsq.core.errors import OptionError

DIGITS = ("--teacher", "embedded:digits")
SOURCES = ("--real", "embedded:digits:train", "--eval", "embedded:digits:val")
MEMBERS = ("--train", "embedded:digits:train", "--holdout", "embedded:digits:test")
FIT = ("quantize", *DIGITS, "--images", "embedded:digits:val", "--student", "ptq", "--bits", "W8A8")
COMMANDS = {
    "generate": ("generate", *DIGITS, "--method", "noise", "--count", 4, "--out"),
    "generate by default": ("generate", *DIGITS, "--count", 4, "--out"),
    "quantize": (*FIT, "--out"),
    "quantize from the network": ("quantize", *DIGITS, "--bits", "W8A8", "--out"),
    "onnx": (*FIT, "--onnx"),
    "pt2": (*FIT, "--pt2"),
    "gap": ("gap", *DIGITS, "--shards", "run", *SOURCES, "--student", "ptq", "--bits", "W8A8", "--out"),
    "run": ("run", "digits", "--out"),
    "export": ("export", "run", "--to", "npy", "--out"),
    "import": ("import", "embedded:digits:val", "--out"),
    "audit": ("audit", *DIGITS, "--shards", "run", *MEMBERS, "--out"),
    "html": ("inspect", "student", "--images", "embedded:digits:val", "--html"),
}
PLACES = ("run/shards/new", "run/cache/new", "moved/deep/new")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, and shards that were moved out of one."""
    folder = tmp_path_factory.mktemp("made")
    zsq.generate("embedded:digits", "noise", count=4, out=folder / "run")
    zsq.quantize("embedded:digits", folder / "run", "ptq", "W8A8", out=folder / "student")
    shutil.copytree(folder / "run" / "shards", folder / "moved")
    return folder


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_written_into_the_folder_of_a_run(command, place, made, capsys, monkeypatch):
    monkeypatch.chdir(made)
    before = sorted(made.rglob("*"))
    outcome = call(capsys, *COMMANDS[command], place)
    assert outcome.status == 2
    assert "folder of a run; expected a place of its own; choose another --" in outcome.complaint()
    assert sorted(made.rglob("*")) == before


def test_nor_without_a_place_where_the_current_folder_is_that_of_a_run(made, capsys, monkeypatch):
    monkeypatch.chdir(made / "run")
    assert "folder of a run" in call(capsys, "generate", *DIGITS, "--method", "noise").complaint()


def test_nor_from_python(made, monkeypatch):
    monkeypatch.chdir(made)
    student, teacher = zsq.load_student("student"), zsq.load_teacher("embedded:digits")
    for write in (zsq.export_onnx, zsq.export_pt2):
        with pytest.raises(OptionError, match=r"path run/shards/x lies in .*, the folder of a run"):
            write(student, "run/shards/x")
    with pytest.raises(OptionError, match="the folder of a run"):
        zsq.save_student(student, teacher, "run/shards/x.safetensors")


def test_another_programs_files_are_no_run(tmp_path, capsys):
    (tmp_path / "run.json").write_text('{"name": "mine"}')
    (tmp_path / "manifest.json").write_text("{}")
    assert call(capsys, *COMMANDS["generate"], tmp_path / "new").status == 0
