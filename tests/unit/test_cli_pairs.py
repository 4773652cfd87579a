"""Options that say one thing twice, or that have no effect without another, end in one line."""

import pytest
from commands import call

import zsq
from zsq.config import GenerateConfig
from zsq.core.errors import OptionError
from zsq.request.defaults import choose
from zsq.teacher import load_teacher

USAGE = 2
DIGITS = ("--teacher", "embedded:digits")
GENERATE = ("generate", *DIGITS, "--count", 4, "--method")
FIT = ("quantize", *DIGITS, "--images", "embedded:digits:val", "--bits", "W4A4", "--student")
MEMBERS = ("--train", "embedded:digits:train", "--holdout", "embedded:digits:test")
SOURCES = ("--shards", "run", "--real", "embedded:digits:train", "--eval", "embedded:digits:val")
GAP = ("gap", *DIGITS, *SOURCES, "--student", "ptq", "--bits", "W8A8")
RECIPE = """
title = "t"
real = "embedded:digits:train"
eval = "embedded:digits:test"
teacher = { name = "embedded:digits" }
generate = { count = 8, shard_sets = 1 }
sources = [{ method = "dsg", iterations = 5 }]
students = [{ name = "brecq", bits = "W4A4", first_last = 8 }]
"""


def complaint(capsys, *arguments):
    outcome = call(capsys, *arguments)
    assert outcome.status == USAGE
    return outcome.complaint()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ((*GENERATE, "dsg", "--iterations", 5, "--set", "iterations=3"), "--iterations 5 and --set iter"),
        ((*GENERATE, "noise", "--set", "epsilon=1", "--set", "epsilon=2"), "--set epsilon twice"),
        ((*FIT, "brecq", "--first-last", 8, "--set", "first_last=4"), "--first-last 8 and --set first_last"),
        (
            (*FIT, "brecq,lsq-kd", "--first-last", 8, "--set", "brecq.first_last=4"),
            "--first-last 8 and --set brecq.first_last=4",
        ),
        (
            (*FIT, "brecq,lsq-kd", "--first-last", 8, "--set", 'brecq={"first_last": 4}'),
            "--first-last 8 and --set brecq.first_last=4",
        ),
        (
            (*FIT, "brecq,lsq-kd", "--set", 'brecq={"batch": 4}', "--set", "brecq.batch=3"),
            "two values for brecq.batch",
        ),
    ],
)
def test_two_values_for_one_thing(arguments, found, capsys):
    assert found in complaint(capsys, *arguments)


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("iterations = 5", "iterations = 5, set = { iterations = 3 }", "--iterations 5 and --set iter"),
        ("first_last = 8", "first_last = 8, set = { first_last = 4 }", "--first-last 8 and --set first_last"),
    ],
)
def test_two_values_for_one_thing_in_a_recipe(old, new, found, tmp_path, capsys):
    (tmp_path / "mine.toml").write_text(RECIPE.replace(old, new))
    assert found in complaint(capsys, "run", "mine.toml", "--out", "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run and a student of it."""
    folder = tmp_path_factory.mktemp("made")
    run = zsq.generate("embedded:digits", "noise", count=4, out=folder / "run")
    zsq.quantize("embedded:digits", run, "ptq", "W8A8", out=folder / "student")
    return folder


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (
            ("verify", "run", "--tolerance", 0.1),
            "--tolerance 0.1 without --against; expected --against",
        ),
        (("verify", "run", "--teacher", "x"), "--teacher x without --against"),
        (("verify", "run", "--offline"), "--offline without --against"),
        (("verify", "run", "--against", "x", "--tolerance", 0.1), "--tolerance 0.1 without --teacher"),
        (("verify", "run", "--against", "x", "--weights", "w.pt"), "--weights w.pt without --teacher"),
        (("inspect", *DIGITS, "--fit", "crop"), "--fit crop without --images"),
        (("inspect", *DIGITS, "--class-names", "by-order"), "--class-names by-order without --images"),
        (("inspect", "run", "--fit", "crop"), "--fit crop with run"),
        (("inspect", *DIGITS, "--count", 3), "--count 3 with --teacher"),
        (("inspect", "student", "--layers", 3), "--layers 3 with student"),
        (("quantize", *DIGITS, "--bits", "W4A4", "--fit", "crop"), "--fit crop without --images and --eval"),
        ((*FIT, "mixed", "--set", "inner=brecq", "--set", "brecq.first_last=8"), "mixed: brecq.first_last"),
        (
            (*FIT, "ptq", "--out", "run"),
            "folder of a run",
        ),
        ((*FIT, "ptq", "--bits", "W8A8", "--out", "x.safetensors"), "x.safetensors with 2 --bits"),
        (("quantize", *DIGITS, "--images", "", "--student", "ptq", "--bits", "W8A8"), "images ''"),
        (("verify", ""), "folder ''"),
        (("import", "", "--out", "new"), "images ''"),
        (("audit", *DIGITS, *MEMBERS, "--shards", "run", "--out", "run/manifest.json"), "a file of a run"),
        ((*FIT, "ptq", "--onnx", "run/run.json"), "--onnx run/run.json is a file of a run"),
        ((*GAP, "--set", "ptq=3", "--out", "gap"), "--set ptq; expected STUDENT.KEY=VALUE"),
        ((*GAP, "--out", "run", "--resume"), "run holds a run of zsq generate; expected one of zsq gap"),
        (("export", "run", "--to", "files", "--out", "new"), "--to files without --each"),
        (
            ("verify", "run", "--against", "x", *DIGITS, "--tolerance", "nan"),
            "tolerance nan; expected 0 or more",
        ),
        ((*FIT, "ptq", "--out", "run/shards"), "folder of a run"),
    ],
)
def test_an_option_without_effect_or_place(arguments, found, made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    assert found in complaint(capsys, *arguments)


@pytest.mark.parametrize("given", [{"tolerance": 0.1}, {"weights": "w.pt"}, {"offline": True}])
def test_what_compares_no_logits_takes_no_option_of_them(given):
    with pytest.raises(OptionError, match=f"{next(iter(given))} without teacher"):
        zsq.verify_export("run", "arrays", **given)


@pytest.mark.parametrize(
    ("bits", "student", "found"),
    [
        ("W4A1", "ptq", "at least W2A2; students that take it: lq-net, binary"),
        ("W1A4", "lsq-kd", "at least W2A2; students that take it: lq-net, binary"),
    ],
)
def test_a_student_that_refuses_widths_names_those_that_take_them(bits, student, found, capsys):
    assert found in complaint(capsys, *FIT, student, "--bits", bits)


def test_iterations_that_are_set_have_no_default():
    chosen = choose(load_teacher("embedded:digits"))
    assert chosen.iterations
    asked = GenerateConfig(teacher="embedded:digits", method=chosen.method, set={"iterations": 3})
    assert chosen.completed(asked).iterations is None
