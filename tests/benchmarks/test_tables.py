"""Every committed table is the one that its JSON gives."""

import json
import re

import common
import pytest
import tables
from rooms import FOUNDATION, imports, reduced

from zsq.report.tables import DASH

RECIPES = common.DOCS.parent / "recipes"
# What `zsq audit` writes, one JSON per set, into the folder of the run; what `zsq inspect` prints, quoted.
WITHOUT_JSON = {"faces.md": 1, "layers.md": 1}


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_committed_tables_are_those_of_their_json(page):
    text = page.read_text(encoding="utf-8")
    assert text == tables.rendered(text), "run `python benchmarks/tables.py`"


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_every_table_of_numbers_is_made(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- table ") == len(tables.BLOCK.findall(text)) == text.count("<!-- end of table -->")
    by_hand = re.findall(r"^\|.*---:.*\|$", tables.BLOCK.sub("", text), re.MULTILINE)
    assert len(by_hand) == WITHOUT_JSON.get(page.name, 0)


def test_another_number_is_noticed():
    made = tables.markdown_table(tables.TABLES["methods-curve"]())
    page = f"<!-- table methods-curve -->\n{made}\n<!-- end of table -->\n"
    assert tables.rendered(page) == page
    assert tables.rendered(page.replace("79.74", "79.75")) == page


def test_every_table_is_shown_somewhere():
    shown = {name for page in tables.PAGES for _, name, _, _ in tables.BLOCK.findall(page.read_text())}
    assert shown == {*tables.TABLES, "rooms"}


def test_arrows_that_others_imply_are_left_out():
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "d": set()}
    assert reduced(graph) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set()}


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda recipe: recipe.stem)
def test_results_under_the_name_of_a_recipe_are_its_own(recipe):
    results = common.RESULTS / f"{recipe.stem}.json"
    if results.exists():
        assert "settings" in json.loads(results.read_text(encoding="utf-8")), "table.py cannot continue it"


def test_every_room_is_explained():
    page = (tables.DOCS / "architecture.md").read_text(encoding="utf-8")
    first_cells = re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
    listed = set(re.findall(r"`(\w+)`", " ".join(first_cells)))
    assert {*imports(), *FOUNDATION} - {"foundation"} <= listed


def test_students_are_by_source_and_recipes_that_were_not_run_have_no_line(tmp_path, monkeypatch):
    rows = [
        {"student": "kd", "bits": bits, "source": source, "metric": metric, "mean": mean}
        for bits, source, mean in (("W8A8", "real", 80.0), ("W8A8", "noise", 20.0), ("W4A4", "real", 70.0))
        for metric, mean in (("accuracy", mean), ("sqnr", 3.0))
    ]
    (tmp_path / "one.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    grid = tables.by_arm({"one": "1,000", "two": "5,000"}, "images", ("real", "noise"))
    assert grid.header == ("images", "student", "bits", "real", "noise")
    assert grid.lines == (
        ("1,000", "`kd`", "W8A8", "80.00", "20.00"),
        ("1,000", "`kd`", "W4A4", "70.00", DASH),
    )
    assert tables.by_arm({"two": ""}, None, ("real",)).lines == ()
    fit = {"student": "kd", "bits": "W8A8", "source": "noise"}
    choices = {"entropies": {"layer1": 0.0}, "bit_operations": 1.0}
    (tmp_path / "one.json").write_text(json.dumps({"rows": rows, "fits": [fit | {"choices": choices}]}))
    line, _ = tables.by_arm({"one": ""}, None, ("real", "noise")).lines
    assert line == ("`kd`", "W8A8", "80.00", "20.00, always the same choice")
