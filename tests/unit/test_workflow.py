"""Recipes: what each stage is asked, what is kept, and what a budget or a kill leaves."""

import dataclasses
import json
import math
import shutil
from functools import partial

import numpy as np
import pytest
from commands import Spoken
from small_recipe import NUM_FITS, RECIPE, load

import zsq
from zsq import bench
from zsq.config import GenerateConfig
from zsq.core.errors import RunFolderError, UsageError
from zsq.core.jobs import in_jobs
from zsq.report.build import explanation, html, markdown
from zsq.runfolder import RUN_FILE, held_folder
from zsq.shards.manifest import read_manifest
from zsq.shards.reader import ShardDataset
from zsq.shards.verify import verify_run
from zsq.synthesis import synthesize
from zsq.teacher.digits import load_digits_images
from zsq.workflow import (
    recipe_protocol,
    run_recipe,
    shard_sets_by_source,
)


class Killed(BaseException):
    """In place of a kill -9."""


@pytest.fixture
def recipe(tmp_path):
    return load(tmp_path)


@pytest.fixture
def no_pages(monkeypatch):
    """Reports are computed but not drawn."""
    monkeypatch.setattr(bench, "build_report", lambda data, out: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One whole run: its data, folder, and what was reported after each shard set."""
    folder, reports = tmp_path_factory.mktemp("finished"), []
    recipe = load(folder)
    data = run_recipe(
        recipe, folder / "run", on_report=lambda report, records: reports.append((report, list(records)))
    )
    return data, folder / "run", reports


def values(data):
    return {
        (row.source, row.bits, row.metric): [(run.shard_set, run.seed, run.value) for run in row.runs]
        for row in data.rows
    }


def test_run_leaves_shards_rows_and_report(finished):
    data, folder, _ = finished
    for name in ("zeroq-0", "zeroq-1", "noise-0", "noise-1"):
        assert verify_run(folder / name).num_images == 8
    wanted = {
        (source, "W4A4", metric)
        for source in ("real", "zeroq", "noise")
        for metric in ("accuracy", "agreement", "sqnr", "sqnr_centred")
    }
    assert set(values(data)) == wanted
    assert all([(s, seed) for s, seed, _ in runs] == [(0, 0), (1, 0)] for runs in values(data).values())
    assert len((folder / "fits.jsonl").read_text().splitlines()) == NUM_FITS
    stored = json.loads((folder / "report.json").read_text())
    assert {(row["source"], row["bits"], row["metric"]) for row in stored["rows"]} == wanted
    assert "NaN" not in (folder / "report.json").read_text()


TWICE = RECIPE.replace('method = "noise"', 'method = "zeroq"\niterations = 1')


def test_one_method_twice_needs_two_names(tmp_path, no_pages):
    with pytest.raises(UsageError, match="2 sources called 'zeroq'; expected a `name` of its own"):
        recipe_protocol(load(tmp_path, TWICE))
    named = load(tmp_path, TWICE.replace("iterations = 1", 'iterations = 1\nname = "zeroq-short"'))
    data = run_recipe(named, tmp_path / "run")
    assert {row.source for row in data.rows} == {"real", "zeroq", "zeroq-short"}
    assert ShardDataset(tmp_path / "run" / "zeroq-short-0").provenance.options["iterations"] == 1


def test_gaps_are_differences_of_means(finished):
    data, _, _ = finished
    for gap in data.gaps:
        real, own = (
            [value for _, _, value in values(data)[source, gap.bits, gap.metric]]
            for source in ("real", gap.source)
        )
        assert gap.gap == pytest.approx(math.fsum(real) / 2 - math.fsum(own) / 2)
    assert {gap.source for gap in data.gaps} == {"zeroq", "noise"}


def test_events_of_each_step_are_in_its_own_folder(finished):
    _, folder, _ = finished

    def titles(name):
        lines = (folder / name / "events.jsonl").read_text().splitlines()
        return {event["title"] for event in map(json.loads, lines) if event["event"] == "step"}

    assert titles("") == {"students"}
    assert titles("zeroq-1") == {"zeroq on embedded:digits"}


def test_report_after_each_shard_set(finished):
    _, _, reports = finished
    assert [len(records) for _, records in reports] == [NUM_FITS // 2, NUM_FITS]
    assert all(len(row.runs) == 1 for row in reports[0][0].rows)


def test_sets_are_made_as_the_recipe_says(finished):
    _, folder, _ = finished
    for shard_set in (0, 1):
        config = read_manifest(folder / f"zeroq-{shard_set}").config
        wanted = {"seed": 7 + shard_set, "batch": 2, "shard_size": 4, "count": 8, "method": "zeroq"}
        assert {key: config[key] for key in wanted} == wanted
        assert (config["set"]["learning_rate"], config["set"]["iterations"]) == (0.25, 2)
    assert read_manifest(folder / "noise-0").config["batch"] == 8


def test_report_knows_cost_and_distances(finished):
    data, _, _ = finished
    assert data.cost == {"zeroq": 2.0, "noise": 0.0}
    assert set(data.bn_distance) == {"real", "zeroq", "noise"}
    assert all(len(distances) == len(data.layer_names) for distances in data.bn_distance.values())
    assert sum(data.bn_distance["real"]) < sum(data.bn_distance["noise"])
    assert set(data.quantized_tensors) == {"ptq W4A4"}


def test_estimate_is_said_first(recipe, tmp_path, no_pages):
    reporter = Spoken()
    run_recipe(recipe, tmp_path / "run", budget_hours=0, reporter=reporter)
    assert reporter.lines[0].startswith("Tiny: 2 sets of 8 images from 2 sources, 6 fits; about ")
    assert "budget is spent: run the same command with --resume" in reporter.lines[1]


def test_budget_of_nothing_makes_nothing_and_can_be_continued(recipe, tmp_path, finished, no_pages):
    data = run_recipe(recipe, tmp_path / "run", budget_hours=0)
    assert (list(data.rows), list(data.gaps)) == ([], [])
    assert not list((tmp_path / "run").glob("*-0"))
    assert values(run_recipe(recipe, tmp_path / "run", resume=True)) == values(finished[0])


def test_kill_between_fits_loses_nothing(recipe, tmp_path, finished, monkeypatch, no_pages):
    """Twice: in the first sets and in the second ones."""
    lost, kept, add = [], [], bench.FitLog.add

    def add_or_die(self, record, *seen):
        if len(kept) == (1, NUM_FITS // 2 + 1, None)[len(lost)]:
            lost.append(record)
            raise Killed
        kept.append(record)
        add(self, record, *seen)

    monkeypatch.setattr(bench.FitLog, "add", add_or_die)
    for resume in (False, True):
        with pytest.raises(Killed):
            run_recipe(recipe, tmp_path / "run", resume=resume)
    data = run_recipe(recipe, tmp_path / "run", resume=True)
    assert (len(lost), len(kept)) == (2, NUM_FITS)
    assert values(data) == values(finished[0])
    for name in ("zeroq-1", "noise-0"):
        ours, theirs = (ShardDataset(folder / name).pixels() for folder in (tmp_path / "run", finished[1]))
        assert bool((ours == theirs).all())


def test_finished_fits_of_elsewhere_are_not_repeated(recipe, tmp_path, finished, monkeypatch, no_pages):
    _, _, reports = finished
    monkeypatch.setattr("zsq.students.ptq.PTQ.fit", None)
    fits = reports[-1][1]
    others = [
        {**fits[0], **change}
        for change in ({"source": "dsg"}, {"shard_set": 9}, {"num_images": 1}, {"first_last": 4})
    ]
    others.append({**fits[0], "options": {**fits[0]["options"], "weight_observer": "kl"}})
    data = run_recipe(recipe, tmp_path / "run", finished=[*others, *fits])
    assert values(data) == values(finished[0])
    # Nor counted twice where the folder has them, whatever a table leaves out of a fit.
    kept = [{**fit, "seconds": 0.0} for fit in fits]
    again = run_recipe(recipe, tmp_path / "run", resume=True, finished=kept)
    assert values(again) == values(finished[0])


def test_two_jobs_make_the_table_of_one(recipe, tmp_path, finished, no_pages):
    """In processes of their own: threads that capture networks side by side round differently."""
    reporter = Spoken()
    once = recipe.model_copy(update={"generate": recipe.generate.model_copy(update={"shard_sets": 1})})
    data = in_jobs(2, partial(run_recipe, once, tmp_path / "run"), reporter=reporter)
    assert values(data) == {key: runs[:1] for key, runs in values(finished[0]).items()}
    assert [row.source for row in data.rows] == [row.source for row in finished[0].rows]
    assert sorted(path.name for path in (tmp_path / "run").glob("fits*")) == ["fits.jsonl"]
    assert len((tmp_path / "run" / "fits.jsonl").read_text().splitlines()) == NUM_FITS // 2
    assert len([line for line in reporter.lines if line.startswith("8 images in")]) == 2
    for name in ("zeroq-0", "noise-0"):
        ours, theirs = (read_manifest(folder / name).shards for folder in (tmp_path / "run", finished[1]))
        assert ours == theirs


def test_what_a_dead_rank_left_is_taken_up(recipe, tmp_path, finished, monkeypatch, no_pages):
    lines = (finished[1] / "fits.jsonl").read_text().splitlines(keepends=True)
    run_recipe(recipe, tmp_path / "run", budget_hours=0)
    # The first line twice, as where two logs were joined by hand: a fit counts once.
    (tmp_path / "run" / "fits.jsonl").write_text("".join([lines[0], *lines[:2]]))
    (tmp_path / "run" / "fits-1.jsonl").write_text("".join(lines[1:4]) + lines[4][:50])
    made, add = [], bench.FitLog.add
    monkeypatch.setattr(bench.FitLog, "add", lambda *entry: made.append(entry) or add(*entry))
    data = run_recipe(recipe, tmp_path / "run", resume=True)
    assert values(data) == values(finished[0])
    assert len(made) == 2 + NUM_FITS - 4  # two were only in the other's file, two in none
    assert not (tmp_path / "run" / "fits-1.jsonl").exists()


def test_a_source_may_hold_more_images_than_the_real_sets(tmp_path, no_pages):
    recipe = load(tmp_path, RECIPE.replace("batch = 2\n", "batch = 2\ncount = 12\n"))
    reporter = Spoken()
    data = run_recipe(recipe, tmp_path / "run", reporter=reporter)
    assert "2 sets of 8 images (12 of zeroq) from 2 sources, 6 fits" in reporter.lines[0]
    images = {"real": 8, "zeroq": 12, "noise": 8}
    assert {row.source: row.num_images for row in data.rows} == images
    assert {gap.source: gap.num_images for gap in data.gaps} == {"zeroq": 12, "noise": 8}
    assert verify_run(tmp_path / "run" / "zeroq-1").num_images == 12
    assert "2 shard sets of 8 images per source (12 of zeroq), with 1 seed" in explanation(data)[0]


def test_a_fit_is_kept_whatever_comes_of_the_look_at_its_layers(recipe, tmp_path, monkeypatch, no_pages):
    def fails(*args, **options):
        raise Killed

    monkeypatch.setattr(bench, "layer_noise", fails)
    with pytest.raises(Killed):
        run_recipe(recipe, tmp_path / "run")
    assert len((tmp_path / "run" / "fits.jsonl").read_text().splitlines()) == 1


AUDIT = """
[audit]
train = "embedded:digits:train"
holdout = "embedded:digits:test"
count = 40
planted = 3
"""


def test_sets_are_audited_against_images_of_known_membership(tmp_path, no_pages):
    recipe = load(tmp_path, RECIPE.replace("shard_sets = 2", "shard_sets = 1") + AUDIT)
    data = run_recipe(recipe, tmp_path / "run")
    copied = "zeroq with 3 copies"
    assert set(data.leakage) == {"real", "zeroq", "noise", copied}
    # The real set is among the members, and its images are found there.
    assert data.leakage["real"].named == list(range(8)) and data.leakage["zeroq"].named == []
    assert data.leakage[copied].named == [0, 1, 2]
    audits = data.as_json()["leakage"]
    assert [audits[source]["num_train"] for source in audits] == [40] * 4
    page = markdown(data)
    assert "## What the sets reveal" in page and "| 3 of 8 | 5 and 5 of 5 |" in page
    assert "of a bootstrap over images." in page
    assert "membership in features" in html(data)


def test_a_run_that_another_process_works_in_is_not_taken_up(tmp_path, finished):
    with held_folder(finished[1]), pytest.raises(RunFolderError, match="another zsq works in"):
        run_recipe(load(tmp_path), finished[1], resume=True)


def test_resume_with_another_recipe_is_refused(tmp_path, finished):
    changed = load(tmp_path, RECIPE.replace("first_last = 8", "first_last = 4"))
    with pytest.raises(RunFolderError, match="--resume with students"):
        run_recipe(changed, finished[1], resume=True)


def other_images(path, first):
    pixels, labels = load_digits_images("train")
    chosen = slice(first, first + 40)
    np.savez(path, images=pixels[chosen].permute(0, 2, 3, 1).numpy(), labels=labels[chosen].numpy())


@pytest.mark.parametrize(("key", "what"), [("real", "real"), ("eval", "evaluation")])
def test_fits_on_other_images_of_the_same_name_are_not_taken_up(key, what, tmp_path, no_pages):
    other_images(tmp_path / "mine.npz", 0)
    split = {"real": "train", "eval": "val"}[key]
    recipe = load(tmp_path, RECIPE.replace(f'{key} = "embedded:digits:{split}"', f'{key} = "mine.npz"'))
    run_recipe(recipe, tmp_path / "run", budget_hours=0)
    run_recipe(recipe, tmp_path / "run", resume=True, budget_hours=0)
    other_images(tmp_path / "mine.npz", 40)
    with pytest.raises(RunFolderError, match=f"--resume with other {what} images than those"):
        run_recipe(recipe, tmp_path / "run", resume=True, budget_hours=0)


def test_nor_on_other_targets(tmp_path, no_pages):
    def eval_with(level):
        other_images(tmp_path / "mine.npz", 0)
        with np.load(tmp_path / "mine.npz") as arrays:
            masks = np.full(arrays["images"].shape[:3], level, dtype=np.uint8)
            np.savez(tmp_path / "mine.npz", **arrays, targets=masks)

    recipe = load(tmp_path, RECIPE.replace('eval = "embedded:digits:val"', 'eval = "mine.npz"'))
    eval_with(0)
    run_recipe(recipe, tmp_path / "run", budget_hours=0)
    run_recipe(recipe, tmp_path / "run", resume=True, budget_hours=0)
    eval_with(1)
    with pytest.raises(RunFolderError, match="--resume with other evaluation images"):
        run_recipe(recipe, tmp_path / "run", resume=True, budget_hours=0)


def test_nor_on_other_shards(tmp_path, no_pages, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench.Bench, "fit", lambda *_: None)
    sources = {"real": "embedded:digits:train", "eval": "embedded:digits:val"}

    def gap(seed, **asked):
        shutil.rmtree("set", ignore_errors=True)
        zsq.generate("embedded:digits", "noise", count=4, seed=seed, out="set")
        zsq.measure_gap("embedded:digits", "set", students="ptq", bits="W8A8", out="gap", **sources, **asked)

    gap(0)
    gap(0, resume=True)
    with pytest.raises(RunFolderError, match="--resume with other synthetic images"):
        gap(1, resume=True)


def test_a_folder_of_the_first_versions_is_taken_up(tmp_path, no_pages):
    recipe = load(tmp_path)
    run_recipe(recipe, tmp_path / "run", budget_hours=0)
    path = tmp_path / "run" / RUN_FILE
    stored = {key: value for key, value in json.loads(path.read_text()).items() if "sha256" not in key}
    path.write_text(json.dumps(stored))
    run_recipe(recipe, tmp_path / "run", resume=True, budget_hours=0)


def test_sets_by_source(finished):
    _, folder, _ = finished
    folders = [folder / name for name in ("zeroq-0", "noise-0", "zeroq-1")]
    assert shard_sets_by_source(folders) == {"zeroq": [folders[0], folders[2]], "noise": [folders[1]]}


def test_cost_counts_shared_training_and_knows_what_it_does_not_know(tmp_path, tiny_teacher):
    """3 steps of 4 images for 8 images."""
    config = GenerateConfig(teacher="toy", method="gdfq", count=8, batch=4, shard_size=8, iterations=3)
    images = ShardDataset(synthesize.generate(config, tmp_path / "run", teacher=tiny_teacher))
    assert bench.passes_per_image(images) == 1.5
    origin = images.provenance
    images.provenance = dataclasses.replace(origin, options=origin.options | {"colour": 1})
    assert bench.passes_per_image(images) is None
    images.provenance = dataclasses.replace(origin, method="elsewhere")
    assert bench.passes_per_image(images) is None
