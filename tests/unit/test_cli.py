"""The commands on the shipped teacher, as a user calls them."""

import json

import pytest
import torch
from commands import call

import zsq
from zsq.catalogue import CATALOGUES

DIGITS = ("--teacher", "embedded:digits")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def generate(capsys, *arguments):
    return call(capsys, "generate", *DIGITS, "--method", "noise", "--count", 8, "--threads", 1, *arguments)


def test_generate_prints_the_folder_and_says_an_estimate_first(tmp_path, capsys):
    outcome = generate(capsys, "--out", "mine")
    assert (outcome.status, outcome.out) == (0, "mine\n")
    estimate, result = outcome.err.splitlines()
    assert "8 images" in estimate
    assert "MB on disk" in estimate
    assert result == "8 images in 1 shard: mine"
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        *("README.md", "contact_sheet.png", "events.jsonl", "manifest.json", "run.json", "shards")
    ]


def test_finished_runs_are_kept(tmp_path, capsys):
    folders = [generate(capsys).out.strip() for _ in range(3)]
    assert folders == [f"outputs/embedded-digits-noise{end}" for end in ("", "-2", "-3")]
    assert generate(capsys, "--resume").out.strip() == folders[-1]


def test_options_reach_the_run(tmp_path, capsys):
    outcome = call(
        *(capsys, "generate", *DIGITS, "--method", "zeroq", "--count", 6, "--batch", 2, "--shard-size", 4),
        *("--seed", 5, "--iterations", 1, "--set", "learning_rate=0.25", "--threads", 1, "--out", "run"),
    )
    assert outcome.status == 0
    record = json.loads((tmp_path / "run/run.json").read_text())
    wanted = {"count": 6, "batch": 2, "shard_size": 4, "seed": 5, "method": "zeroq", "threads": 1}
    assert {key: record[key] for key in wanted} == wanted
    assert (record["set"]["iterations"], record["set"]["learning_rate"]) == (1, 0.25)
    assert zsq.ShardDataset(tmp_path / "run").pixels().shape == (6, 1, 32, 32)


def test_verify_and_inspect_accept_a_run_and_its_shards(tmp_path, capsys):
    generate(capsys, "--out", "mine")
    for folder in ("mine", "mine/shards"):
        assert "8 images in 1 shard, all intact" in call(capsys, "verify", folder).out
        lines = call(capsys, "inspect", folder).out.splitlines()
        assert lines[0] == "8 images of 1x32x32, without labels"
        assert "method noise, seed 0, data read: none" in lines
        assert (tmp_path / "mine/contact_sheet.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "mine/contact_sheet.png").unlink()


def test_quantize_scores_and_lists_tensors(capsys):
    arguments = ("--images", "embedded:digits:val", "--student", "ptq", "--bits", "W8A8", "--count", 64)
    outcome = call(
        capsys, "quantize", *DIGITS, *arguments, "--first-last", 8, "--eval", "embedded:digits:test"
    )
    assert outcome.status == 0
    *tensors, last = outcome.out.splitlines()
    assert "conv1.weight: weight, 8 bits, 16 scales" in tensors
    assert any("activation, 8 bits, per tensor" in line for line in tensors)
    assert last.startswith("ptq W8A8, accuracy 9")
    assert "agreement" in last
    assert last.endswith("(teacher 99.36)")
    assert "not kept: --out FOLDER would keep it" in outcome.err


def test_a_student_that_is_written_is_not_said_to_be_lost(capsys, tmp_path):
    arguments = ("--images", "embedded:digits:val", "--student", "ptq", "--bits", "W8A8", "--count", 8)
    outcome = call(capsys, "quantize", *DIGITS, *arguments, "--out", tmp_path / "student")
    assert outcome.status == 0
    assert "not kept" not in outcome.err


@pytest.mark.parametrize("what", ["methods", "teachers", "students", "recipes"])
def test_list(what, capsys):
    plain, as_json = call(capsys, "list", what), call(capsys, "list", what, "--json")
    entries = json.loads(as_json.out)
    known = {"methods": "dsg", "teachers": "embedded:digits", "students": "lsq-kd", "recipes": "digits"}
    names = [entry["name"] for entry in entries]
    assert known[what] in names
    assert [line for line in plain.out.splitlines() if not line.startswith(" ")] == names
    assert all(entry["summary"] for entry in entries)


def test_help_names_everything_that_can_be_listed(capsys):
    shown = " ".join(call(capsys, "list", "--help").out.replace("│", " ").split())
    assert ", ".join(list(CATALOGUES)[:-1]) + f" or {list(CATALOGUES)[-1]}." in shown


def test_lists_show_no_default_that_is_none(capsys):
    for what in ("methods", "students"):
        assert "Pydantic" not in call(capsys, "list", what).out


def test_list_says_which_methods_suit_a_teacher(capsys):
    entries = json.loads(call(capsys, "list", "methods", "--teacher", "embedded:digits-vit", "--json").out)
    fit = [entry["name"] for entry in entries if "refusal" not in entry]
    assert fit[:4] == ["mimiq", "psaq", "fdd", "sardfq"] and "noise" in fit
    refused = {entry["name"]: entry["refusal"] for entry in entries if "refusal" in entry}
    assert "no BatchNorm layer" in refused["dgh"]
    assert call(capsys, "list", "students", "--teacher", "embedded:digits").status == 2


def test_gap_ends_in_a_table_and_a_report(tmp_path, capsys):
    generate(capsys, "--out", "mine")
    sources = ("--shards", "mine", "--real", "embedded:digits:val", "--eval", "embedded:digits:val")
    student = ("--student", "ptq", "--bits", "W4A4", "--seeds", 1)
    outcome = call(capsys, "gap", *DIGITS, *sources, *student, "--out", "gap")
    assert outcome.status == 0
    assert "noise" in outcome.out
    assert outcome.out.splitlines()[-1] == "report: gap/report.html"
    assert "Gap to real images: embedded:digits: 2 fits; about " in outcome.err
    assert outcome.out.startswith("At W4A4 with ptq, noise ")
    rows = json.loads((tmp_path / "gap/report.json").read_text())["rows"]
    assert {row["source"] for row in rows} == {"real", "noise"}


def test_global_random_state_is_left_alone(capsys):
    before = torch.random.get_rng_state()
    generate(capsys, "--out", "mine")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help(arguments, capsys):
    outcome = call(capsys, *arguments)
    assert (outcome.status, outcome.err) == (0, "")
    assert "generate" in outcome.out


def test_help_of_generate_says_that_a_method_is_chosen_and_names_cards(capsys):
    said = " ".join(call(capsys, "generate", "--help").out.split())
    assert "see `zsq list methods`. Without it, what is best for the teacher." in said
    assert "file:CARD.toml for your own network" in said


def test_version(capsys):
    outcome = call(capsys, "--version")
    assert (outcome.status, outcome.out) == (0, f"{zsq.__version__}\n")
