"""The recipe for faces, on digits seen as identities: rows, paired intervals, report, resume."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from commands import call

from zsq import bench
from zsq.bench import roc_curves
from zsq.core.errors import ImagesError, MismatchError, OptionError
from zsq.core.selection import split_source
from zsq.images.sources import load_images
from zsq.measure.contrasts import contrasts
from zsq.measure.gap import gaps_from_rows, replicates_of, rows_from_runs
from zsq.recipefile import load_recipe
from zsq.tasks import verification
from zsq.teacher import load_teacher
from zsq.workflow import recipe_protocol, run_recipe

RECIPE = """
title = "Small faces"
real = "embedded:digits:train#labels=0-4"
eval = "embedded:digits:test#labels=5-9"
[teacher]
name = "embedded:digits-features"
[generate]
count = 16
shard_sets = 1
iterations = 2
[[sources]]
method = "dgh"
[[sources]]
method = "genie"
[[sources]]
method = "noise"
[[students]]
name = "quantface"
bits = ["W4A4", "W8A8"]
set = { iterations = 2, batch = 8 }
[runtime]
threads = 1
compile = "off"
"""
METRICS = ["cosine", "tar@1e-3", "tar@1e-2", "auc", "eer", "accuracy"]
RATIOS = ["sqnr", "sqnr_centred"]
SOURCES = ("real", "dgh", "genie", "noise")


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "BOOTSTRAP_DRAWS", 40)
        yield


def load(folder, text=RECIPE):
    (folder / "small.toml").write_text(text)
    return load_recipe(str(folder / "small.toml"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder, kept = tmp_path_factory.mktemp("finished"), []
    data = run_recipe(
        load(folder), folder / "run", on_report=lambda data, fits: kept.extend(dict(fit) for fit in fits)
    )
    return data, folder / "run", kept


def test_every_metric_of_every_source_and_width(finished):
    data, _, fits = finished
    wanted = {(s, b, m) for s in SOURCES for b in ("W4A4", "W8A8") for m in METRICS + RATIOS}
    assert {(row.source, row.bits, row.metric) for row in data.rows} == wanted
    assert [row.metric for row in data.rows[:8]] == METRICS + RATIOS and data.rows[0].bits == "W4A4"
    shares = [row.mean for row in data.rows if row.metric in METRICS and row.metric != "cosine"]
    assert all(np.isfinite(share) and 0 <= share <= 100 for share in shares)
    assert len(fits) == 8 and all(len(fit["replicates"]["auc"]) == 40 for fit in fits)
    assert data.teacher["task"] == "embed" and data.teacher["identities"] == 5
    assert data.teacher["auc"] > 99 and data.teacher["accuracy"] > 95


def test_intervals_are_percentiles_of_paired_draws(finished):
    data, _, fits = finished
    draws = {(f["source"], f["bits"], m): np.array(v) for f in fits for m, v in f["replicates"].items()}
    values = {(f["source"], f["bits"], m): v for f in fits for m, v in f["metrics"].items()}
    for row in data.rows:
        if row.metric in RATIOS:  # of all images at once, without draws
            assert row.ci95 is None
            continue
        wanted = np.percentile(draws[row.source, row.bits, row.metric], [2.5, 97.5])
        np.testing.assert_allclose(row.ci95, wanted, atol=1e-6)
    assert len(data.gaps) == 3 * 2 * 8
    for gap in (gap for gap in data.gaps if gap.metric in METRICS):
        real, own = ("real", gap.bits, gap.metric), (gap.source, gap.bits, gap.metric)
        assert gap.gap == pytest.approx(values[real] - values[own])
        np.testing.assert_allclose(gap.ci95, np.percentile(draws[real] - draws[own], [2.5, 97.5]), atol=1e-6)
        noise = ("noise", gap.bits, gap.metric)
        span, error = values[real] - values[noise], (draws[real] - draws[noise]).std(ddof=1)
        if span > 3 * error:
            assert gap.recovery == pytest.approx((values[own] - values[noise]) / span)
        else:
            assert gap.recovery is None
    for c in data.contrasts:
        own, noise = (c.source, c.bits, c.metric), ("noise", c.bits, c.metric)
        assert (c.minus_real is None) == (c.source == "real")
        assert (c.minus_noise is None) == (c.source == "noise")
        if c.source != "noise":
            assert c.minus_noise == pytest.approx(values[own] - values[noise])
            wanted = np.percentile(draws[own] - draws[noise], [2.5, 97.5])
            np.testing.assert_allclose(c.minus_noise95, wanted, atol=1e-6)
    assert [(c.bits, c.metric, c.source) for c in data.contrasts[:4]] == [
        ("W4A4", "cosine", source) for source in SOURCES
    ]


def test_several_shard_sets_have_welchs_interval(finished):
    _, _, fits = finished
    second = [
        {**fit, "shard_set": 1, "metrics": {k: v - 1 for k, v in fit["metrics"].items()}} for fit in fits
    ]
    one, two = (rows_from_runs(records) for records in (fits, fits + second))
    replicates = replicates_of(fits)
    gap_of_one, gap_of_two = (gaps_from_rows(rows, replicates)[0] for rows in (one, two))
    assert gap_of_one.ci95 != gap_of_two.ci95 and gap_of_two.bootstrap95 is not None
    assert gaps_from_rows(one)[0].ci95 is None


def test_fits_without_replicates_are_made_again(tmp_path, finished, monkeypatch):
    _, _, fits = finished
    monkeypatch.setattr(bench, "build_report", lambda data, out: None)
    given = [*fits[:6], *({k: v for k, v in fit.items() if k != "replicates"} for fit in fits[6:])]
    made = []
    run_recipe(load(tmp_path), tmp_path / "run", finished=given, on_report=lambda _, own: made.extend(own))
    assert len(made) == 8 and all("replicates" in fit for fit in made)
    assert made[:6] == fits[:6]
    assert all(own["seconds"] != fit["seconds"] for own, fit in zip(made[6:], fits[6:], strict=True))


def test_an_audit_draws_identities(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "build_report", lambda data, out: None)
    sets = [
        f'{key} = "embedded:digits:{images}"' for key, images in (("train", "train"), ("holdout", "test"))
    ]
    audited = "\n".join([RECIPE, "[audit]", *sets, "count = 40"])
    data = run_recipe(load(tmp_path, audited), tmp_path / "run")
    assert {audit.resampled for audit in data.leakage.values()} == {"identities"}


def test_no_committed_table_holds_replicates():
    tables = [
        json.loads(path.read_text())
        for path in (Path(__file__).parents[2] / "benchmarks" / "results").glob("*.json")
    ]
    fits = [fit for table in tables for fit in table.get("fits", ()) if isinstance(fit, dict)]
    assert fits and not any("replicates" in fit for fit in fits)


def test_classifiers_have_no_replicates():
    record = {"source": "real", "student": "ptq", "bits": "W4A4", "num_images": 4, "shard_set": 0, "seed": 0}
    record |= {"metrics": {"accuracy": 50.0}, "seconds": 1.0}
    rows = rows_from_runs([record])
    assert replicates_of([record]) == {} and contrasts(rows, {}) == [] and roc_curves([record]) == {}
    assert rows[0].ci95 is None


def test_the_report_leads_with_cosine_and_says_what_images_reveal(finished):
    _, folder, _ = finished
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for shown in (page, text):
        assert "What a synthetic face may reveal" in shown and "zsq audit" in shown
        assert "Every metric against real images and noise" in shown
        assert "bootstrap over the identities" in shown and "Welch" not in shown
    assert "ROC curves" in page and "Cosine to the teacher with real images minus" in page
    assert "Contact sheet of 16 images from dgh" in page and "images from real" not in page
    stored = json.loads((folder / "report.json").read_text())
    assert stored["rows"][0]["metric"] == "cosine" and len(stored["contrasts"]) == 48
    assert set(stored["roc"]["quantface W4A4"]) == set(SOURCES)
    assert "NaN" not in (folder / "report.json").read_text()
    assert "replicates" not in stored["rows"][0]


def test_a_killed_run_resumes_to_the_same_rows(tmp_path, finished, monkeypatch):
    monkeypatch.setattr(bench, "build_report", lambda data, out: None)
    calls = []
    add = bench.FitLog.add

    def add_or_die(self, record, *seen):
        calls.append(record)
        if len(calls) == 3:
            raise KeyboardInterrupt
        add(self, record, *seen)

    monkeypatch.setattr(bench.FitLog, "add", add_or_die)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(load(tmp_path), tmp_path / "run")
    data = run_recipe(load(tmp_path), tmp_path / "run", resume=True)
    assert len(calls) == 8 + 1

    def values(report):
        return [(row.source, row.bits, row.metric, row.mean, row.ci95) for row in report.rows]

    assert values(data) == values(finished[0])


def test_an_identity_that_calibrates_makes_no_pairs(tmp_path):
    text = RECIPE.replace("embedded:digits:test#labels=5-9", "embedded:digits:train#labels=4-9")
    with pytest.raises(MismatchError, match=r"identity 4 of .*#labels=4-9 is in the real and"):
        recipe_protocol(load(tmp_path, text))
    protocol = recipe_protocol(load(tmp_path))
    assert set(protocol.eval.labels.tolist()) == {5, 6, 7, 8, 9}
    assert {label for real in protocol.real_sets for label in real.labels.tolist()} <= {0, 1, 2, 3, 4}


def test_face_recipe_divides_the_identities_and_says_what_it_needs(capsys, tmp_path, monkeypatch):
    recipe = load_recipe("face")
    assert split_source(recipe.real)[1] == range(10) and split_source(recipe.eval)[1] == range(10, 30)
    assert split_source(recipe.real)[0] == split_source(recipe.eval)[0]
    assert recipe.generate.count == 64 and recipe.generate.iterations == 250
    assert "needs" not in recipe.model_dump()
    monkeypatch.setenv("ZSQ_DATA", str(tmp_path / "nowhere"))
    outcome = call(capsys, "run", "face", "--out", tmp_path / "run")
    assert outcome.status == 2
    assert "mobilefacenet.toml does not exist" in outcome.complaint()
    assert "orl30_aligned112.npz in the folder ZSQ_DATA" in outcome.err
    assert not (tmp_path / "run").exists()


def test_selection_of_labels():
    assert split_source("a.npz") == ("a.npz", None)
    assert split_source("a#b.npz#labels=3-12") == ("a#b.npz", range(3, 13))
    for wrong in ("a.npz#labels=", "a.npz#labels=3", "a.npz#labels=5-4", "a.npz#labels=1-2,4"):
        with pytest.raises(OptionError, match="FIRST-LAST"):
            split_source(wrong)


def test_selected_images_and_their_limit():
    everything = load_images("embedded:digits:val")
    some = load_images("embedded:digits:val#labels=2-3")
    wanted = (everything.labels == 2) | (everything.labels == 3)
    assert (some.pixels == everything.pixels[wanted]).all() and some.labels.tolist() == [
        label for label in everything.labels.tolist() if label in (2, 3)
    ]
    limited = load_images("embedded:digits:val#labels=2-3", limit=5)
    assert len(limited) == 5 and set(limited.labels.tolist()) <= {2, 3}
    with pytest.raises(ImagesError, match="no image of a label 20 to 30"):
        load_images("embedded:digits#labels=20-30")


def test_digits_features_are_an_embedding_teacher():
    teacher = load_teacher("embedded:digits-features")
    classifier = load_teacher("embedded:digits")
    images = load_images("embedded:digits:val").subset(range(4))
    standard = teacher.spec.pixels_to_standard(images.pixels)
    features = teacher.logits(standard)
    assert features.shape == (4, 48) and teacher.num_classes is None and teacher.num_outputs == 48
    logits = classifier.network.linear(features)
    np.testing.assert_allclose(logits.numpy(), classifier.logits(standard).numpy(), rtol=1e-5, atol=1e-5)
    assert dataclasses.replace(teacher, name=classifier.name).weights_sha256 == classifier.weights_sha256
    with pytest.raises(OptionError, match="has its own weights"):
        load_teacher("embedded:digits-features", weights="w.safetensors")
