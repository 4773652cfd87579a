"""A table that is made source by source is the one that is made at once."""

import json

import pytest
import table
import typer

RECIPE = """
title = "Digits"
real = "embedded:digits:train"
eval = "embedded:digits:test"
teacher = { name = "embedded:digits" }
generate = { count = 4, shard_sets = 2 }
sources = [{ method = "noise" }, { method = "zeroq", name = "zeroq-2", iterations = 2 }]
students = [{ name = "ptq", bits = ["W8A8", "W4A4"] }]
runtime = { threads = 1, compile = "off" }
"""
TIMED = {"seconds", "machine"}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The kept table after calls with these sources, without what was timed."""

    def made(*sources):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "digits-small.toml").write_text(RECIPE)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(table, "RESULTS", folder)
        for source in sources:
            table.main("digits-small.toml", source=source)
        return untimed(json.loads((folder / "digits-small.json").read_text()))

    return made


def untimed(entry):
    if isinstance(entry, dict):
        return {key: untimed(value) for key, value in entry.items() if key not in TIMED}
    return [untimed(each) for each in entry] if isinstance(entry, list) else entry


def test_source_by_source_is_all_at_once(made):
    whole = made(None)
    assert len(whole["fits"]) == 12 and set(whole["cost"]) == {"noise", "zeroq-2"}
    assert made(["zeroq-2"], ["noise"]) == whole
    assert made(["noise"]) != whole


def test_an_unknown_source_is_refused(made):
    with pytest.raises(typer.BadParameter, match="no source zeroq; expected one of noise, zeroq-2"):
        made(["zeroq"])


def test_a_table_with_replicates_is_made_in_one(monkeypatch, tmp_path):
    (tmp_path / "digits-detector.json").write_text('{"teacher": {"task": "detect"}}')
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    with pytest.raises(typer.BadParameter, match="bootstrap replicates"):
        table.main("digits-detector", source=["noise"])
