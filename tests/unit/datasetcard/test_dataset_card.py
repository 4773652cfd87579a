"""The dataset card of a run and of an export: its facts, texts from strangers, and Hugging Face's loader."""

import json
import subprocess
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import yaml
from commands import call, run_python
from markdown_it import MarkdownIt
from PIL import Image

import zsq
from zsq.core.errors import ExportError, ShardError
from zsq.datasetcard.audited import audit_of
from zsq.datasetcard.page import MOST_SHOWN, RUN_FILES, page
from zsq.shards.manifest import read_manifest
from zsq.shards.verify import verify_run

HOSTILE = "dgh`</code>\n---\n\n# x <script>alert(1)</script> [a](javascript:b) \u202e | \x00" + "y" * 300


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """40 labelled images, and an audit of them."""
    folder = tmp_path_factory.mktemp("card") / "run"
    return zsq.generate("embedded:digits", "deepinversion", count=40, iterations=1, out=folder)


def header(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_a_run_has_a_card_with_its_facts(run, tmp_path):
    text, manifest = (run / "README.md").read_text(), read_manifest(run)
    facts = header(text)
    assert facts["pretty_name"] == "40 images of deepinversion for embedded:digits"
    assert facts["task_categories"] == ["image-classification"]
    assert facts["size_categories"] == ["n<1K"] and "configs" not in facts
    for said in (manifest.teacher.weights_sha256, manifest.shards_sha256, "Seed: 0", "40 of 1x32x32"):
        assert said in text
    assert "Of real images: `none`" in text and "Not computed" in text
    assert "![the first images](contact_sheet.png)" in text
    assert Image.open(run / "contact_sheet.png").size == (8 * 66 + 2, 4 * 66 + 2)
    again = zsq.generate("embedded:digits", "deepinversion", count=40, iterations=1, out=tmp_path / "again")
    for name in ("README.md", "contact_sheet.png"):
        assert (again / name).read_bytes() == (run / name).read_bytes()


def test_an_imported_set_says_that_nothing_is_known(tmp_path):
    torch.save({"images": torch.rand(3, 3, 8, 8)}, tmp_path / "a.pt")
    zsq.import_images(tmp_path / "a.pt", tmp_path / "run", name="other", mean=[0.0], std=[1.0])
    text = (tmp_path / "run/README.md").read_text()
    assert "How they were made is not known" in text and "task_categories" not in header(text)
    assert "unknown: images made elsewhere" in text and "No images have a label" in text


def test_texts_of_a_stranger_stay_texts(run):
    manifest = read_manifest(run)
    method = manifest.method.model_copy(
        update={"name": HOSTILE, "options": {HOSTILE: HOSTILE, "a": {"b": HOSTILE}}}
    )
    teacher = manifest.teacher.model_copy(update={"name": HOSTILE})
    strange = {"method": method, "teacher": teacher, "data_read": HOSTILE, "device": HOSTILE}
    strange |= {"zsq_version": HOSTILE, "libraries": {HOSTILE: HOSTILE}}
    text = page(manifest.model_copy(update=strange), (1, 8, 8), 0, None, RUN_FILES, "sheet.png")
    assert set(header(text)) == set(header((run / "README.md").read_text()))
    assert header(text)["pretty_name"].startswith("40 images of dgh`</code>\N{REPLACEMENT CHARACTER}---")
    body = text.split("\n---\n", 1)[1]
    shown = MarkdownIt("commonmark").render(body)
    assert "<script" not in shown and "href" not in shown and shown.count("<h1>") == 1
    assert shown.count("<h2>") == 5 and shown.count("<img") == 1
    assert "\u202e" not in text and "\x00" not in text and "y" * MOST_SHOWN not in text


def test_figures_of_an_audit_stand_in_the_card_of_these_images_alone(run, tmp_path):
    train = str(run)
    holdout = zsq.generate("embedded:digits", "noise", count=8, seed=1, out=tmp_path / "holdout")
    run = zsq.generate("embedded:digits", "noise", count=8, seed=2, out=tmp_path / "run")
    found = zsq.audit("embedded:digits", run, train, str(holdout), run / "audit.json")
    text = (run / "README.md").read_text()
    assert f"- {len(found.named)} of 8 images may be copies" in text
    assert f"membership AUC in `pixels`: {found.spaces['pixels'].membership_auc:.1f} [" in text
    zsq.generate("embedded:digits", "noise", count=9, seed=2, out=run, resume=True)
    verify_run(run)
    text = (run / "README.md").read_text()
    assert "9 images of `noise`" in text and "Not computed" in text
    for damaged in ("{", json.dumps({"named": []})):
        (run / "audit.json").write_text(damaged)
        with pytest.raises(ShardError, match="what zsq audit writes; make it again, or move it away"):
            audit_of(run, read_manifest(run))
        with pytest.raises(ShardError):
            zsq.export(run, "npz", tmp_path / "out", card=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [("imagefolder",), ("npz",), ("raw",), ("files", "--each", "png"), ("files", "--each", "raw")]
)
def test_an_export_with_a_card_is_whole(options, run, tmp_path, capsys):
    out = tmp_path / "out"
    done = call(capsys, "export", run, "--to", *options, "--card", "--out", out)
    assert done.status == 0
    assert zsq.verify_export(run, out).num_images == 40
    sums = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=out, capture_output=True, text=True)
    assert sums.returncode == 0 and {"README.md: OK", ".contact_sheet.png: OK"} < set(
        sums.stdout.splitlines()
    )
    text = (out / "README.md").read_text()
    assert "values per channel".capitalize() in text and "![the first images](.contact_sheet.png)" in text
    assert zsq.import_images(out, tmp_path / "back").num_images == 40


def test_without_the_option_there_is_no_card_and_strange_files_are_still_found(run, tmp_path):
    out = tmp_path / "out"
    zsq.export(run, "imagefolder", out)
    assert not (out / "README.md").exists()
    zsq.export(run, "imagefolder", tmp_path / "card", card=True)
    images = zsq.load_images(tmp_path / "card")
    np.testing.assert_array_equal(
        images.pixels.flatten(1).sum(1).sort()[0], zsq.load_images(out).pixels.flatten(1).sum(1).sort()[0]
    )
    (tmp_path / "card/0/README.md").write_text("not beside the images")
    with pytest.raises(ExportError, match="holds 41 files"):
        zsq.verify_export(run, tmp_path / "card")


LOAD = """
import json
import numpy as np
from datasets import load_dataset
found = [load_dataset("imagefolder", data_dir="out")["train"], load_dataset("out")["train"]]
print(json.dumps([
    [[names[row["label"]], int(np.asarray(row["image"]).sum())] for row in images]
    for images in found for names in [images.features["label"].names]
]))
"""


@pytest.mark.consumers
def test_hugging_face_loads_the_folder(run, tmp_path):
    if find_spec("datasets") is None:
        pytest.skip("datasets is not installed: use the environment of benchmarks/consumers/datasets.txt")
    zsq.export(run, "imagefolder", tmp_path / "out", card=True)
    dataset = zsq.ShardDataset(run)
    sums = dataset.pixels().flatten(1).sum(1).tolist()
    wanted = sorted([str(label), total] for label, total in zip(dataset.labels().tolist(), sums, strict=True))
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    for found in json.loads(run_python(LOAD, cwd=tmp_path, **offline)):
        assert sorted(found) == wanted
