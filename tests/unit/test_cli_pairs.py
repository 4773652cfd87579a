"""Options that say one thing twice, or that have no effect without another, end in one line."""

import pytest
from commands import call

from zsq.config import GenerateConfig
from zsq.request.defaults import choose
from zsq.teacher import load_teacher

USAGE = 2
DIGITS = ("--teacher", "embedded:digits")
GENERATE = ("generate", *DIGITS, "--count", 4, "--method")
FIT = ("quantize", *DIGITS, "--images", "embedded:digits:val", "--bits", "W4A4", "--student")
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


def test_iterations_that_are_set_have_no_default():
    chosen = choose(load_teacher("embedded:digits"))
    assert chosen.iterations
    asked = GenerateConfig(teacher="embedded:digits", method=chosen.method, set={"iterations": 3})
    assert chosen.completed(asked).iterations is None
