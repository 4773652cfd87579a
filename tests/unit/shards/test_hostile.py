"""Files that HDF5 itself reads without complaint and that must not be read as shards."""

import json
import os

import h5py
import numpy as np
import pytest

from zsq.core.errors import ShardError
from zsq.shards.reader import ShardDataset, read_shard
from zsq.shards.verify import verify_run
from zsq.shards.writer import write_shard


@pytest.fixture
def path(tmp_path, make_content, provenance):
    path = tmp_path / "shard-00000.h5"
    write_shard(path, make_content(), provenance)
    return path


def replaced(name, **arguments):
    def change(file):
        data = file[name][:]
        del file[name]
        file.create_dataset(name, **({"data": data} | arguments))

    return change


def soft_link(file):
    file.move("labels", "elsewhere")
    file["labels"] = h5py.SoftLink("/elsewhere")


def soft_link_alone(file):
    del file["targets"]
    file["targets"] = h5py.SoftLink("/logits")


def external_link(file):
    del file["labels"]
    file["labels"] = h5py.ExternalLink("/etc/passwd", "/labels")


def external_storage(file):
    del file["labels"]
    file.create_dataset("labels", shape=(4,), dtype="<i8", external=[("/etc/passwd", 0, 32)])


def virtual(file):
    layout = h5py.VirtualLayout(shape=(4,), dtype="<i8")
    layout[:] = h5py.VirtualSource("/etc/passwd", "labels", shape=(4,))
    del file["labels"]
    file.create_virtual_dataset("labels", layout)


def objects(file):
    del file["labels"]
    file.create_dataset("labels", (4,), dtype=h5py.string_dtype(), chunks=(4,))


def references(file):
    del file["labels"]
    file.create_dataset("labels", (4,), dtype=h5py.ref_dtype, chunks=(4,))


def huge(file):
    del file["pixels"]
    shape = (2**40, 3, 6, 5)
    file.create_dataset("pixels", shape, dtype="u1", chunks=(1, 3, 6, 5), fletcher32=True)


def absurd(file):
    del file["pixels"]
    file.create_dataset("pixels", (4, 3, 2**14, 2**14), "u1", chunks=(1, 3, 2**14, 2**14), fletcher32=True)


def bomb(file):
    del file["pixels"]
    file.create_dataset(
        "pixels", data=np.zeros((4, 3, 500, 500), "u1"), chunks=(1, 3, 500, 500), compression="gzip"
    )


def group(file):
    del file["labels"]
    file.create_group("labels")


def variable_text(file):
    file.attrs["method"] = '"dsg"'


def deep_json(file):
    file.attrs["method"] = np.bytes_("[" * 30_000)


CHANGES = {
    "soft link": soft_link,
    "soft link to another array": soft_link_alone,
    "external link": external_link,
    "external storage": external_storage,
    "virtual data set": virtual,
    "variable-length texts": objects,
    "references": references,
    "unallocated terabytes": huge,
    "unallocated images": absurd,
    "compression": bomb,
    "group for an array": group,
    "no checksums": replaced("pixels", chunks=(1, 3, 6, 5)),
    "other chunks": replaced("pixels", chunks=(2, 3, 6, 5), fletcher32=True),
    "contiguous": replaced("labels"),
    "other dtype": replaced("labels", dtype="<i4", chunks=(4,), fletcher32=True),
    "big-endian": replaced("logits", dtype=">f4", chunks=(1, 10), fletcher32=True),
    "scalar": replaced("labels", data=np.int64(3)),
    "extra array": lambda file: file.create_dataset("more", data=[1]),
    "missing array": lambda file: file.pop("labels"),
    "missing attribute": lambda file: file.attrs.pop("spec"),
    "variable-length attribute": variable_text,
    "attribute array": lambda file: file.attrs.create("method", np.array([b'"a"', b'"b"'])),
    "attribute number": lambda file: file.attrs.create("seed", 7),
    "attribute that is no JSON": lambda file: file.attrs.create("method", np.bytes_("{")),
    "attribute of deep JSON": deep_json,
    "attribute of a long number": lambda file: file.attrs.create("seed", np.bytes_("9" * 10_000)),
    "attribute of another kind": lambda file: file.attrs.create("groups", np.bytes_('"x"')),
    "format version 2": lambda file: file.attrs.create("format_version", np.bytes_("2")),
    "spec of another size": lambda file: file.attrs.create(
        "spec", np.bytes_(json.dumps({"channels": 3, "size": [5, 6], "mean": [0] * 3, "std": [1] * 3}))
    ),
    "spec of 16384 px": lambda file: file.attrs.create(
        "spec", np.bytes_(json.dumps({"channels": 3, "size": [16384] * 2, "mean": [0] * 3, "std": [1] * 3}))
    ),
    "lone surrogate": lambda file: file.attrs.create("method", np.bytes_(r'"\ud800"')),
    "lone surrogate inside": lambda file: file.attrs.create("options", np.bytes_(r'{"a": ["\udfff"]}')),
    "labels out of range": lambda file: file["labels"].write_direct(np.full(4, 10)),
    "logits NaN": lambda file: file["logits"].write_direct(np.full((4, 10), np.nan, np.float32)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_altered_file_is_refused_in_one_line(change, path):
    with h5py.File(path, "r+") as file:
        CHANGES[change](file)
    with pytest.raises(ShardError, match=r"shard-00000\.h5") as caught:
        read_shard(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["spec of 16384 px", "lone surrogate", "unallocated terabytes"])
def test_a_data_set_is_refused_before_an_image_is_asked_for(change, path):
    with h5py.File(path, "r+") as file:
        CHANGES[change](file)
    with pytest.raises(ShardError, match=r"shard-00000\.h5"):
        ShardDataset(path.parent)


@pytest.mark.parametrize("count", [2 * 10**9, 2**62, 2**70])
def test_counts_that_no_file_holds_take_no_memory(count, make_run):
    run, _ = make_run()
    manifest = run / "manifest.json"
    values = json.loads(manifest.read_text())
    values["shards"][1]["num_images"] = count
    values["num_images"] = count + 7
    manifest.write_text(json.dumps(values))
    with pytest.raises(ShardError, match=r"shard-00001\.h5|num_images"):
        ShardDataset(run)
    with pytest.raises(ShardError):
        verify_run(run)


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", ["shards/shard-00001.h5", "manifest.json"])
def test_pipes_and_devices_in_a_run_are_one_line(name, kind, make_run):
    run, _ = make_run()
    (run / name).unlink()
    if kind == "pipe":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to("/dev/zero")
    for call in (verify_run, lambda folder: ShardDataset(folder).pixels()):
        with pytest.raises(ShardError) as caught:
            call(run)
        assert "\n" not in str(caught.value)


def test_unaltered_rewrite_is_still_read(path, make_content):
    """The refusals above come from what was altered, not from the rewriting."""
    with h5py.File(path, "r+") as file:
        replaced("labels", chunks=(4,), fletcher32=True)(file)
        file.attrs.create("method", np.bytes_('"zeroq"'))
    content, provenance = read_shard(path)
    np.testing.assert_array_equal(content.labels, make_content().labels)
    assert provenance.method == "zeroq"
