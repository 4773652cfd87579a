import os
import pickle
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from zsq.core.errors import ImagesError, ShardError
from zsq.shards.reader import MAX_OPEN_FILES, ShardDataset, ShardFile, read_shard
from zsq.shards.schema import DIAGNOSTICS, shard_name
from zsq.shards.writer import write_shard


def files_open_below(folder):
    targets = [entry.resolve() for entry in Path("/proc/self/fd").iterdir()]
    return [target for target in targets if target.is_relative_to(folder)]


@pytest.mark.parametrize(
    "parts", [{}, {"targets": False}, {"targets": False, "logits": False}, {"attention": True}]
)
def test_reads_back_what_was_written(parts, tmp_path, make_content, provenance):
    content = make_content(**parts)
    write_shard(tmp_path / "shard-00000.h5", content, provenance)
    found, found_provenance = read_shard(tmp_path / "shard-00000.h5")
    assert found_provenance == provenance
    assert [name for name, _ in found.arrays()] == [name for name, _ in content.arrays()]
    for (_, written), (_, stored) in zip(content.arrays(), found.arrays(), strict=True):
        np.testing.assert_array_equal(stored, written, strict=True)


def test_items_are_the_images_in_order(make_run):
    run, contents = make_run()
    pixels = np.concatenate([content.pixels for content in contents])
    labels = np.concatenate([content.labels for content in contents])
    images = ShardDataset(run)
    assert len(images) == images.num_images == 11
    for index in (0, 3, 4, 10, -1):
        item = images[index]
        assert set(item) == {"pixels", "label", "index"}
        np.testing.assert_array_equal(item["pixels"].numpy(), pixels[index], strict=True)
        assert item["label"] == labels[index]
        assert item["index"] == index % 11
    with pytest.raises(IndexError):
        images[11]
    for indices, said in (([11], "expected 0 to 10"), ([-1], "expected 0 to 10"), ([0.5], "whole numbers")):
        with pytest.raises(IndexError, match=said):
            images.pixels(indices)
    assert images.labels([]).shape == (0,)


def test_items_carry_logits_and_targets_where_asked(make_run):
    run, contents = make_run()
    item = ShardDataset(run, with_logits=True, with_targets=True)[5]
    np.testing.assert_array_equal(item["logits"].numpy(), contents[1].logits[1], strict=True)
    np.testing.assert_array_equal(
        item["targets"].numpy(), contents[1].targets[1].astype(np.float32), strict=True
    )


def test_asking_for_what_is_not_stored_is_wrong_usage(make_run):
    run, _ = make_run(targets=False, logits=False)
    with pytest.raises(ImagesError, match="targets"):
        ShardDataset(run, with_targets=True)


def test_whole_set_and_chosen_rows(make_run):
    run, contents = make_run()
    pixels = np.concatenate([content.pixels for content in contents])
    labels = np.concatenate([content.labels for content in contents])
    images = ShardDataset(run)
    assert images.pixels().dtype == torch.uint8
    np.testing.assert_array_equal(images.pixels().numpy(), pixels)
    np.testing.assert_array_equal(images.labels().numpy(), labels, strict=True)
    chosen = [10, 2, 7, 2, 0]
    np.testing.assert_array_equal(images.pixels(chosen).numpy(), pixels[chosen])
    np.testing.assert_array_equal(images.labels(chosen).numpy(), labels[chosen])


def test_what_the_teacher_says_of_each_image(make_run):
    for parts, names in (({}, ["bn_distance"]), ({"attention": True}, list(DIAGNOSTICS))):
        run, contents = make_run(**parts)
        said = ShardDataset(run).diagnostics()
        assert list(said) == names
        for name, values in said.items():
            wanted = np.concatenate([getattr(content, name) for content in contents])
            np.testing.assert_array_equal(values.numpy(), wanted, strict=True)


def test_reads_without_a_manifest_and_from_the_shards_folder(make_run):
    run, contents = make_run(manifest=False)
    for folder in (run, run / "shards"):
        images = ShardDataset(folder)
        assert len(images) == 11
        np.testing.assert_array_equal(images[10]["pixels"].numpy(), contents[2].pixels[2])


def test_states_spec_and_provenance(make_run, provenance):
    run, _ = make_run()
    images = ShardDataset(run)
    assert images.spec == provenance.spec
    assert images.provenance == provenance


def test_reading_one_image_decodes_only_its_chunk(make_run):
    """Damage in another image's chunk does not matter until that image is read."""
    run, contents = make_run()
    path = run / "shards" / shard_name(0)
    data = bytearray(path.read_bytes())
    place = bytes(data).index(contents[0].pixels[3].tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    images = ShardDataset(run)
    np.testing.assert_array_equal(images[2]["pixels"].numpy(), contents[0].pixels[2])
    with pytest.raises(ShardError, match=r"shard-00000\.h5"):
        images[3]


def test_few_files_stay_open(tmp_path, make_content, provenance):
    for index in range(MAX_OPEN_FILES + 5):
        made = replace(provenance, groups=(index,), first_image=index)
        write_shard(tmp_path / "run" / shard_name(index), make_content(1, seed=index), made)
    images = ShardDataset(tmp_path / "run")
    for index in range(len(images)):
        images[index]
    assert len(files_open_below(tmp_path)) == MAX_OPEN_FILES
    np.testing.assert_array_equal(images[0]["pixels"].numpy(), make_content(1, seed=0).pixels[0])


def test_pickled_data_set_opens_its_own_files(make_run):
    run, _ = make_run()
    images = ShardDataset(run)
    before = images[4]["pixels"]
    assert torch.equal(pickle.loads(pickle.dumps(images))[4]["pixels"], before)


def test_missing_shard_is_noticed_with_and_without_manifest(make_run):
    run, _ = make_run()
    (run / "shards" / shard_name(1)).unlink()
    with pytest.raises(ShardError, match="missing"):
        ShardDataset(run)[4]
    (run / "manifest.json").unlink()
    with pytest.raises(ShardError, match="missing"):
        ShardDataset(run)[4]


def test_shard_of_another_run_is_refused(make_run, make_content, provenance):
    run, _ = make_run()
    foreign = replace(provenance, seed=8, groups=(1,), first_image=4)
    write_shard(run / "shards" / shard_name(1), make_content(4), foreign)
    with pytest.raises(ShardError, match="another run"):
        ShardDataset(run)[4]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.9999])
def test_truncated_shard_is_one_line(share, tmp_path, make_content, provenance):
    path = tmp_path / "shard-00000.h5"
    write_shard(path, make_content(), provenance)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ShardError, match=r"shard-00000\.h5") as caught:
        read_shard(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "text"])
def test_what_is_no_shard_file_is_refused(kind, tmp_path):
    path = tmp_path / "shard-00000.h5"
    {
        "missing": lambda: None,
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "text": lambda: path.write_text("not HDF5 " * 1000),
    }[kind]()
    with pytest.raises(ShardError, match=r"shard-00000\.h5"):
        read_shard(path)


def test_closed_after_a_refusal(tmp_path, make_content, provenance):
    path = tmp_path / "shard-00000.h5"
    write_shard(path, make_content(), provenance)
    with h5py.File(path, "r+") as file:
        del file.attrs["method"]
    with pytest.raises(ShardError, match="method"):
        ShardFile(path)
    assert files_open_below(tmp_path) == []
