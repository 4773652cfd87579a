"""Boxes of images in shards: as many as each image has."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from zsq.core.boxes import no_boxes
from zsq.core.errors import ShardError
from zsq.shards.manifest import Manifest
from zsq.shards.reader import ShardDataset, read_shard
from zsq.shards.verify import DamageError, verify_run
from zsq.shards.writer import write_shard


def same(found, expected):
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert torch.equal(left["boxes"], right["boxes"]) and torch.equal(left["labels"], right["labels"])
        assert left["boxes"].dtype == torch.float32 and left["labels"].dtype == torch.int64


@pytest.fixture
def path(tmp_path, make_content, provenance):
    path = tmp_path / "shard-00000.h5"
    write_shard(path, make_content(boxes=True), provenance)
    return path


def test_boxes_come_back_as_they_were_written(path, make_content):
    content = make_content(boxes=True)
    counts = [len(each["labels"]) for each in content.boxes]
    assert sum(counts) > 0 and len(set(counts)) > 1
    same(read_shard(path)[0].boxes, content.boxes)


def test_images_of_which_none_has_a_box(tmp_path, make_content, provenance):
    write_shard(tmp_path / "shard-00000.h5", replace(make_content(), boxes=(no_boxes(),) * 4), provenance)
    content, _ = read_shard(tmp_path / "shard-00000.h5")
    same(content.boxes, [no_boxes()] * 4)
    assert [name for name, _ in content.arrays()][-1] == "box_ends"


def test_a_method_without_boxes_stores_none(make_run):
    run, contents = make_run()
    assert ShardDataset(run).boxes() is None
    assert not {name for name, _ in contents[0].arrays()} & {"boxes", "box_labels", "box_ends"}


def test_boxes_of_any_images_of_a_run(make_run):
    run, contents = make_run(boxes=True)
    every = [boxes for content in contents for boxes in content.boxes]
    assert verify_run(run).num_images == len(every)
    same(ShardDataset(run).boxes(), every)
    chosen = [10, 4, 3, 0, 4]
    same(ShardDataset(run).boxes(chosen), [every[index] for index in chosen])


def test_boxes_that_the_schema_does_not_allow_are_not_written(tmp_path, make_content, provenance):
    for box, label, word in (
        ([0, 0, 5.5, 3], 1, "box"),
        ([2, 0, 2, 3], 1, "box"),
        ([-1, 0, 2, 3], 1, "box"),
        ([0, 0, float("nan"), 3], 1, "box"),
        ([0, 0, 2, 3], -1, "label"),
    ):
        target = {"boxes": torch.tensor([box], dtype=torch.float32), "labels": torch.tensor([label])}
        content = replace(make_content(), boxes=(target, no_boxes(), no_boxes(), no_boxes()))
        with pytest.raises(ShardError, match=word):
            write_shard(tmp_path / "shard-00000.h5", content, provenance)


def changed(name, values, dtype):
    def change(file):
        del file[name]
        file.create_dataset(name, data=np.asarray(values, dtype), chunks=np.shape(values), fletcher32=True)

    return change


CHANGES = {
    "ends that fall": changed("box_ends", [3, 1, 2, 5], "<i8"),
    "ends below 0": changed("box_ends", [-1, 1, 2, 5], "<i8"),
    "ends beyond the boxes": changed("box_ends", [0, 1, 2, 500], "<i8"),
    "ends before the boxes": changed("box_ends", [0, 0, 0, 1], "<i8"),
    "huge ends": changed("box_ends", [0, 0, 0, 2**62], "<i8"),
    "ends of other images": changed("box_ends", [0, 1], "<i8"),
    "boxes of three corners": changed("boxes", np.zeros((5, 3)), "<f4"),
    "fewer labels": changed("box_labels", [1], "<i8"),
    "labels alone": lambda file: file.pop("boxes"),
    "boxes without labels": lambda file: file.pop("box_labels"),
    "boxes without ends": lambda file: file.pop("box_ends"),
    "other chunks": lambda file: chunked(file, (1, 4)),
    "a box outside": lambda file: file["boxes"].write_direct(np.full(file["boxes"].shape, 9, "f4")),
    "NaN": lambda file: file["boxes"].write_direct(np.full(file["boxes"].shape, np.nan, "f4")),
}


def chunked(file, chunks):
    data = file["boxes"][:]
    del file["boxes"]
    file.create_dataset("boxes", data=data, chunks=chunks, fletcher32=True)


@pytest.mark.parametrize("change", CHANGES)
def test_altered_boxes_are_refused_in_one_line(change, path):
    with h5py.File(path, "r+") as file:
        CHANGES[change](file)
    with pytest.raises(ShardError, match=r"shard-00000\.h5") as caught:
        read_shard(path)
    assert "\n" not in str(caught.value)


def test_verify_finds_altered_boxes(make_run):
    run, _ = make_run(boxes=True)
    with h5py.File(run / "shards" / "shard-00001.h5", "r+") as file:
        CHANGES["a box outside"](file)
    with pytest.raises(DamageError, match=r"shard-00001\.h5"):
        verify_run(run)


def test_a_manifest_says_how_labels_were_found(make_run):
    run, _ = make_run(boxes=True)
    values = json.loads((run / "manifest.json").read_text())
    assert values["method"]["labels"] is None
    values["method"]["labels"] = "sampled"
    assert Manifest.model_validate(values).method.labels == "sampled"
    values["method"]["labels"] = "real"
    with pytest.raises(ValueError, match="labels"):
        Manifest.model_validate(values)


def test_a_manifest_of_an_earlier_version_is_read(make_run):
    run, _ = make_run()
    values = json.loads((run / "manifest.json").read_text())
    del values["method"]["labels"]
    (run / "manifest.json").write_text(json.dumps(values))
    assert verify_run(run).num_images == 11
