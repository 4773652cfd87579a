"""Recipes that could not be run to their end are refused before anything is made, in one line."""

import pytest
from commands import call

USAGE = 2
RECIPE = """
title = "Small"
real = "embedded:digits:train"
eval = "embedded:digits:test"
[teacher]
name = "embedded:digits"
[generate]
count = 8
shard_sets = 1
iterations = 2
[[sources]]
method = "zeroq"
[[students]]
name = "ptq"
bits = ["W4A4"]
"""
AUDIT = '[audit]\ntrain = "embedded:digits:train"\nholdout = "embedded:digits:test"\n'
SOURCE, STUDENT, VIT = 'method = "zeroq"', 'name = "ptq"', "embedded:digits-vit"


def second(source):
    return RECIPE + f"[[sources]]\n{source}\n"


def changed(old, new):
    assert old in RECIPE
    return RECIPE.replace(old, new)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (changed(SOURCE, f'{SOURCE}\nname = "real"'), "source of zeroq is called 'real'"),
        (changed(SOURCE, f'{SOURCE}\nname = "noise"'), "source of zeroq is called 'noise'"),
        (changed(SOURCE, f'{SOURCE}\nname = "{"a" * 101}"'), "sources.0.name"),
        (changed('real = "embedded:digits:train"', 'real = ""'), "real"),
        (changed('["W4A4"]', "[]"), "students.0.bits"),
        (changed(STUDENT, f"{STUDENT}\nshard_sets = 2"), "'ptq' with shard_sets = 2; expected at most the 1"),
        (changed(STUDENT, f"{STUDENT}\nfirst_last = 64"), "students.0.first_last"),
        (changed(STUDENT, 'name = "repq"'), "LayerNorm"),
        (changed('"embedded:digits"', f'"{VIT}"'), "BN layers, which zeroq matches"),
        (second('method = "noise"\nreal = "x"'), "noise reads no images"),
        (second('method = "fdda"'), "fdda without --real"),
        (RECIPE + AUDIT + "count = 1\nplanted = 0\n", "[audit] with count of 1 image; expected at least 2"),
        (RECIPE + AUDIT + "count = 40\nplanted = 9\n", "[audit] with planted = 9; expected at most 8"),
        (
            changed(SOURCE, f"{SOURCE}\ncount = 1") + AUDIT + "planted = 0\n",
            "[audit] with sets of 1 image; expected at least 2",
        ),
    ],
)
def test_what_could_not_end_does_not_begin(text, found, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("zsq.workflow.generate", lambda *_, **__: pytest.fail("images were made"))
    (tmp_path / "mine.toml").write_text(text)
    outcome = call(capsys, "run", tmp_path / "mine.toml", "--out", tmp_path / "run")
    assert outcome.status == USAGE, outcome.err
    assert found in outcome.complaint()
    assert not (tmp_path / "run").exists()
