"""The Python API on the shipped teacher, with the smallest settings that do the whole job."""

import json
import re
from pathlib import Path

import pytest
import torch

import zsq
from zsq import bench
from zsq.config import RuntimeConfig
from zsq.core.errors import ImagesError, OptionError, RunFolderError
from zsq.runfolder import plain_name
from zsq.teacher.digits import load_digits_images

DIGITS, RUNTIME = "embedded:digits", RuntimeConfig(threads=1, compile="off")

FAST = {"ptq.observer": "minmax", "ptq.weight_observer": "minmax"}

RECIPE = """
title = "Tiny"
real = "embedded:digits:train"
eval = "embedded:digits:val"
teacher = { name = "embedded:digits" }
generate = { count = 8, shard_sets = 2, iterations = 1 }
sources = [{ method = "noise" }]
students = [{ name = "ptq", bits = "W4A4", set = { observer = "minmax" } }]
"""


class Killed(BaseException):
    """In place of a kill -9."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("embedded:digits", "embedded-digits"),
        ("resnet18", "resnet18"),
        ("file:card.toml", "card"),
        ("file:cards/mine.b16.toml", "mine.b16"),
        ("file:cards/mine", "mine"),
        ("recipes/quick.toml", "quick"),
        ("digits-0.5", "digits-0.5"),
    ],
)
def test_default_folders_are_called_after_the_card_or_recipe(name, plain):
    assert plain_name(name) == plain


@pytest.fixture
def no_pages(monkeypatch):
    """Reports are computed but not drawn."""
    monkeypatch.setattr(bench, "build_report", lambda data, out: None)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two shard sets of noise, and two of zeroq that differ in an option."""
    folder = tmp_path_factory.mktemp("sets")
    for seed in (0, 1):
        zsq.generate(DIGITS, "noise", count=8, seed=seed, out=folder / f"noise-{seed}", runtime=RUNTIME)
        options = {"count": 8, "set": {"learning_rate": 0.1 + seed}, "iterations": 1, "runtime": RUNTIME}
        zsq.generate(DIGITS, "zeroq", out=folder / f"zeroq-{seed}", **options)
    return folder


def gap(sets, out, shards=("noise-0", "noise-1"), **changes):
    values = {
        **{"real": "embedded:digits:train", "eval": "embedded:digits:val", "students": ["ptq"]},
        **{"bits": ["W4A4"], "seeds": 1, "runtime": RUNTIME, "set": FAST},
    }
    return zsq.measure_gap(DIGITS, [sets / name for name in shards], out=out, **(values | changes))


def test_generate_gives_a_verified_folder():
    folder = zsq.generate(DIGITS, "noise", count=5, seed=2, runtime=RUNTIME)
    assert str(folder) == "outputs/embedded-digits-noise"
    assert zsq.verify_run(folder).num_images == 5
    assert zsq.generate(DIGITS, "noise", count=5, runtime=RUNTIME).name == "embedded-digits-noise-2"


def test_shards_as_a_dataset_and_as_images(sets):
    dataset = zsq.ShardDataset(sets / "noise-0")
    images = zsq.load_images(sets / "noise-0")
    assert len(dataset) == len(images) == 8
    assert torch.equal(dataset.pixels(), images.pixels)
    assert images.provenance.method == "noise"


def test_teacher_and_images_measure_what_is_promised():
    teacher = zsq.load_teacher(DIGITS)
    images = zsq.load_images("embedded:digits:test", teacher.spec)
    pixels, labels = load_digits_images("test")
    assert torch.equal(images.pixels, pixels)
    logits = teacher.logits(teacher.spec.pixels_to_standard(images.pixels))
    share = 100 * (logits.argmax(1) == labels).double().mean().item()
    assert share == pytest.approx(teacher.expected_accuracy, abs=0.01)


def test_inspect_tells_and_shows(sets):
    lines = zsq.inspect(sets / "zeroq-0")
    assert "8 images of 1x32x32" in lines[0]
    assert any("learning_rate=0.1" in line for line in lines)
    assert any(re.fullmatch(r"means over images: bn distance [\d.e-]+", line) for line in lines)
    assert (sets / "zeroq-0/contact_sheet.png").is_file()


def test_quantize_without_scores(sets):
    result = zsq.quantize(DIGITS, sets / "noise-0", "ptq", "W8A8", runtime=RUNTIME)
    assert (result.metrics, result.teacher_score) == ({}, None)
    assert result.fitted.network(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_quantize_scores_as_counted_by_hand():
    result = zsq.quantize(
        *(DIGITS, "embedded:digits:train", "ptq", "W3A4"),
        **{"count": 64, "first_last": 8, "eval": "embedded:digits:val", "runtime": RUNTIME},
    )
    pixels, labels = load_digits_images("val")
    standard = result.fitted.spec.pixels_to_standard(pixels)
    student = result.fitted.logits(standard).argmax(1)
    teacher = zsq.load_teacher(DIGITS).logits(standard).argmax(1)
    one_image = 100 / len(labels)
    share = 100 * (student == labels).double().mean().item()
    assert result.metrics["accuracy"] == pytest.approx(share, abs=one_image)
    share = 100 * (student == teacher).double().mean().item()
    assert result.metrics["agreement"] == pytest.approx(share, abs=one_image)
    assert {tensor.bits for tensor in result.fitted.tensors} >= {3, 8}


def test_quantize_is_the_same_twice(sets):
    fits = [
        zsq.quantize(DIGITS, sets / "noise-0", "lsq-kd", "W4A4", set={"iterations": 2}, runtime=RUNTIME)
        for _ in range(2)
    ]
    image = torch.linspace(-1, 1, 1024).view(1, 1, 32, 32)
    assert torch.equal(fits[0].fitted.network(image), fits[1].fitted.network(image))


def test_sets_of_one_source_are_replicates(sets, tmp_path):
    data = gap(sets, tmp_path / "gap", ("noise-0", "noise-1", "zeroq-0", "zeroq-1"))
    sizes = {row.source: len(row.runs) for row in data.rows if row.metric == "accuracy"}
    assert sizes == {"real": 2, "noise": 2, "zeroq": 1, "zeroq 2": 1}
    means = {row.source: row.mean for row in data.rows if row.metric == "accuracy"}
    gaps = {found.source: found.gap for found in data.gaps if found.metric == "accuracy"}
    assert gaps["noise"] == pytest.approx(means["real"] - means["noise"])
    stored = json.loads((tmp_path / "gap/report.json").read_text())
    assert stored["teacher"]["name"] == DIGITS
    assert {row["source"] for row in stored["rows"]} == set(sizes)
    assert (tmp_path / "gap/report.html").is_file()
    assert (tmp_path / "gap/report.md").is_file()


def test_gap_uses_as_many_images_everywhere(sets, tmp_path, no_pages):
    assert {row.num_images for row in gap(sets, tmp_path / "all").rows} == {8}
    assert {row.num_images for row in gap(sets, tmp_path / "five", count=5).rows} == {5}


def test_gap_resumes_after_a_kill(sets, tmp_path, monkeypatch, no_pages):
    """The kill tears the line of the second fit; only what is missing is fitted again."""
    fitted = []
    add = bench.FitLog.add

    def add_or_die(self, record, *seen):
        fitted.append((record["source"], record["shard_set"]))
        if len(fitted) == 2:
            with self.path.open("a") as file:
                file.write(json.dumps({"record": record})[:40])
            raise Killed
        add(self, record, *seen)

    monkeypatch.setattr(bench.FitLog, "add", add_or_die)
    with pytest.raises(Killed):
        gap(sets, tmp_path / "gap")
    resumed = gap(sets, tmp_path / "gap", resume=True)
    assert fitted == [("real", 0), ("noise", 0), ("noise", 0), ("real", 1), ("noise", 1)]
    lines = (tmp_path / "gap/fits.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 4
    unbroken = gap(sets, tmp_path / "unbroken")
    assert values(resumed) == values(unbroken)
    fitted.clear()
    assert values(gap(sets, tmp_path / "gap", resume=True)) == values(unbroken)
    assert fitted == []


def values(data):
    return [(row.source, row.metric, row.mean, [run.value for run in row.runs]) for row in data.rows]


def test_gap_refuses_a_folder_and_other_options(sets, tmp_path, no_pages):
    gap(sets, tmp_path / "gap", count=2)
    with pytest.raises(RunFolderError, match="is not empty"):
        gap(sets, tmp_path / "gap", count=2)
    with pytest.raises(RunFolderError, match="count = 3"):
        gap(sets, tmp_path / "gap", count=3, resume=True)


def test_options_of_students_are_addressed_by_name(sets, tmp_path, no_pages):
    with pytest.raises(OptionError, match=r"--set observer;.*STUDENT\.KEY"):
        gap(sets, tmp_path / "gap", set={"observer": "mse"})
    data = gap(sets, tmp_path / "gap", count=2, set={"ptq.observer": "minmax"})
    assert data.settings["students"][0]["options"] == {"observer": "minmax"}


def test_run_keeps_finished_runs_and_resumes_the_last(tmp_path, no_pages):
    (tmp_path / "tiny.toml").write_text(RECIPE)
    folders = [zsq.run("tiny.toml", budget_hours=0, runtime=RUNTIME)[1] for _ in range(2)]
    assert [str(folder) for folder in folders] == ["outputs/tiny", "outputs/tiny-2"]
    data, folder = zsq.run("tiny.toml", resume=True, runtime=RUNTIME)
    assert folder == folders[1]
    assert {row.source for row in data.rows} == {"real", "noise"}
    assert not (folders[0] / "noise-0").exists()
    assert zsq.verify_run(folder / "noise-0").num_images == 8


def test_one_value_stands_for_a_sequence_of_one(tmp_path):
    """A string is not its letters."""
    given = {"real": Path("nowhere"), "eval": Path("nowhere"), "out": tmp_path / "gap", "passes": "fold"}
    with pytest.raises(ImagesError, match=r"^none does not exist"):
        zsq.measure_gap("embedded:digits", "none", students="ptq", bits="W4A4", **given)
    with pytest.raises(OptionError, match="unknown pass 'none'"):
        zsq.quantize("embedded:digits", "nowhere", "ptq", "W4A4", passes="none")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"bits": 8}, "bits: Input should be a valid string"),
        ({"images": torch.zeros(1)}, "images: Input should be a valid string"),
        ({"set": "observer=mse"}, "set: Input should be a valid dictionary"),
        ({"out": 3}, "--out 3; expected the name of a file or folder"),
    ],
)
def test_values_of_another_kind_are_refused_as_options(changes, found):
    given = {"images": "nowhere", "student": "ptq", "bits": "W4A4"} | changes
    with pytest.raises(OptionError, match=found):
        zsq.quantize("embedded:digits", **given)
