"""Results of benchmarks: pieces that are there are not measured again, and other entries stay."""

import json

import common
import pytest
import typer
from common import Results


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    return tmp_path


def test_a_value_is_measured_once(folder):
    calls = []

    def measure():
        calls.append(1)
        return 4.5

    for _ in range(2):
        assert Results("x", "python x.py").once("fits", "ptq", measure) == 4.5
    Results("x", "python x.py").once("fits", "kd", lambda: 2)
    assert len(calls) == 1
    kept = json.loads((folder / "x.json").read_text())
    assert kept["fits"] == {"ptq": 4.5, "kd": 2}
    assert kept["command"] == "python x.py" and "torch" in kept["machine"]


def test_rows_are_found_by_their_facts_and_sorted():
    results = Results("x", "python x.py", timed=False)
    for name in ("b", "a"):
        results.add({"network": name, "seconds": 1}, order=lambda row: row["network"])
    assert [row["network"] for row in results.rows()] == ["a", "b"]
    assert results.has({"network": "a"}) and not results.has({"network": "a", "seconds": 2})
    assert "machine" not in results.read()


def test_a_later_write_leaves_other_entries():
    Results("x", "python x.py --rounds 3").write(rows={"a": 1})
    Results("x").write(more=2)
    assert Results("x").read() | {"machine": None} == {
        "command": "python x.py --rounds 3",
        "machine": None,
        "rows": {"a": 1},
        "more": 2,
    }


def test_what_is_timed_on_another_machine_says_so(monkeypatch):
    results = Results("x", "python x.py")
    results.add({"network": "a", "seconds": 1})
    results.once("fits", "ptq", lambda: 2)
    first = results.read()["machine"]
    monkeypatch.setattr(common, "machine", lambda: {"processor": "another"})
    results.add({"network": "b", "seconds": 3})
    assert results.rows() == [
        {"network": "a", "seconds": 1},
        {"network": "b", "seconds": 3, "machine": {"processor": "another"}},
    ]
    assert results.once("fits", "ptq", lambda: 4) == 2
    with pytest.raises(typer.BadParameter, match=r"another machine measured x\.json"):
        results.once("fits", "kd", lambda: 4)
    assert results.read()["machine"] == first
    results.write(rows=[])
    assert results.read()["machine"] == {"processor": "another"}


def test_another_process_answers_with_its_last_line():
    code = "import os; print('loading'); print('{\"seconds\": ' + os.environ['SECONDS'] + '}')"
    assert common.run_again("-c", code, environment={"SECONDS": "2"}) == {"seconds": 2}


def test_options_are_short_texts():
    assert common.option_texts({"feature": "a.0", "rate": 5e-5, "batch": 16}) == [
        "feature=a.0",
        "rate=5e-05",
        "batch=16",
    ]
