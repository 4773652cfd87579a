"""Exports hold what they state: checked against numpy alone."""

import hashlib
import json
import subprocess
import zipfile

import numpy as np
import pytest
import typer
from exported_runs import MEAN, SIZES, STD, make_run, read, stored
from PIL import Image
from toys import image_spec

import zsq
import zsq.images.photos
from zsq.cli import app
from zsq.core.errors import (
    ImagesError,
    OptionError,
    RunFolderError,
    ShardError,
)
from zsq.exports.formats import FORMATS
from zsq.exports.tools import TOOLS

ARRAYS = ("npy", "npz", "raw")


@pytest.mark.parametrize("to", ARRAYS)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_arrays_are_what_is_stated(run, tmp_path, to, layout):
    pixels, labels = stored(run)
    mean, std = np.array(MEAN).reshape(3, 1, 1), np.array(STD).reshape(3, 1, 1)
    unit = pixels.astype(np.float64) / 255
    for name, wanted in (("uint8", pixels), ("unit", unit), ("norm", (unit - mean) / std)):
        out = tmp_path / name
        record = zsq.export(run, to, out, layout=layout, range=name)
        found, found_labels = read(out, record)
        wanted = wanted if layout == "nchw" else wanted.transpose(0, 2, 3, 1)
        assert found.dtype == (np.uint8 if name == "uint8" else np.float32)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * (name != "uint8"))
        np.testing.assert_array_equal(found_labels, labels)
        assert zsq.verify_export(run, out).num_images == 7


def test_a_bgr_teacher_gets_its_channels_turned_round(tmp_path):
    spec = image_spec(size=(6, 8), mean=MEAN, std=STD, channel_order="bgr", input_size=(12, 16))
    run = make_run(tmp_path / "run", spec)
    record = zsq.export(run, "npy", tmp_path / "out", range="norm")
    found, _ = read(tmp_path / "out", record)
    unit = stored(run)[0].astype(np.float64)[:, 1] / 255
    np.testing.assert_allclose(found[:, 1], (unit - 0.5) / 0.25, atol=1e-5)
    unit = stored(run)[0].astype(np.float64)[:, 2] / 255
    np.testing.assert_allclose(found[:, 0], (unit - 0.6) / 0.3, atol=1e-5)
    assert "not resized: 6x8 as stored, the teacher takes 12x16" in record.applied
    assert zsq.verify_export(run, tmp_path / "out").num_images == 7


@pytest.mark.parametrize("channels", [1, 3])
def test_class_folders_of_png(tmp_path, channels):
    spec = image_spec(channels=channels, size=(6, 8))
    run, out = make_run(tmp_path / "run", spec), tmp_path / "out"
    zsq.export(run, "imagefolder", out)
    pixels, labels = stored(run)
    names = {path.relative_to(out).as_posix() for path in out.glob("*/*")}
    folders = ["unlabelled" if label < 0 else str(label) for label in labels]
    assert names == {f"{folder}/{index:08d}.png" for index, folder in enumerate(folders)}
    for index, folder in enumerate(folders):
        array = np.asarray(Image.open(out / folder / f"{index:08d}.png"))
        wanted = pixels[index].transpose(1, 2, 0) if channels == 3 else pixels[index][0]
        np.testing.assert_array_equal(array, wanted)
    assert zsq.verify_export(run, out).to == "imagefolder"


def test_the_npz_is_a_source_of_images(run, tmp_path):
    zsq.export(run, "npz", tmp_path / "out")
    images = zsq.load_images(tmp_path / "out" / "images.npz")
    np.testing.assert_array_equal(images.pixels.numpy(), stored(run)[0])
    np.testing.assert_array_equal(images.labels.numpy(), stored(run)[1])


def test_the_record_and_the_list_of_files(run, tmp_path):
    out = tmp_path / "out"
    zsq.export(run, "npy", out, range="norm")
    record = json.loads((out / "EXPORT.json").read_text())
    manifest = json.loads((run / "manifest.json").read_text())
    digests = "".join(entry["sha256"] for entry in manifest["shards"])
    assert record["source"]["shards_sha256"] == hashlib.sha256(digests.encode()).hexdigest()
    assert (record["num_images"], record["num_labelled"], len(record["use"])) == (7, 5, 3)
    assert record["sums_sha256"] == hashlib.sha256((out / "SHA256SUMS").read_bytes()).hexdigest()
    subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, check=True, capture_output=True
    )
    lines = (out / "SHA256SUMS").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == ["images.npy", "labels.npy"]


@pytest.mark.parametrize("to", [*ARRAYS, "imagefolder"])
def test_same_shards_same_bytes_and_no_pickle(run, tmp_path, to):
    files = []
    for name in ("a", "b"):
        zsq.export(run, to, tmp_path / name)
        paths = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        files.append([path.read_bytes() for path in paths])
    assert files[0] == files[1]
    if to == "npz":
        with zipfile.ZipFile(tmp_path / "a" / "images.npz") as archive:
            assert archive.namelist() == ["images.npy", "labels.npy"]
            assert all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def test_only_one_shard_is_in_memory(tmp_path, monkeypatch):
    """Every writer is fed shard by shard, and holds no array between two of them."""
    run = make_run(tmp_path / "run")
    for to in (*ARRAYS, "imagefolder"):
        kind = FORMATS[to]().writer
        fed = []

        def add(self, pixels, labels, first_image, kind=kind, fed=fed):
            fed.append(len(pixels))
            kind.add(self, pixels, labels, first_image)
            assert not any(
                isinstance(value, np.ndarray | list) and len(value) > 2 for value in vars(self).values()
            )

        watched = type("Watched", (kind,), {"add": add})
        other = FORMATS[to]()._replace(writer=watched)
        monkeypatch.setitem(FORMATS, to, lambda other=other: other)
        zsq.export(run, to, tmp_path / to)
        assert fed == list(SIZES)


def test_a_line_in_the_table_makes_a_format(run, tmp_path, monkeypatch):
    """Its record is read again, too; and the help names all lines of both tables."""
    monkeypatch.setitem(FORMATS, "mine", FORMATS["npy"])
    assert zsq.export(run, "mine", tmp_path / "out").to == "mine"
    assert zsq.verify_export(run, tmp_path / "out").to == "mine"
    monkeypatch.delitem(FORMATS, "mine")
    with pytest.raises(ImagesError, match="'mine' is none of files, imagefolder"):
        zsq.verify_export(run, tmp_path / "out")
    said = {each.name: each.help for each in typer.main.get_command(app).commands["export"].params}
    assert said["to"] == "Format: files, imagefolder, npy, npz, raw or webdataset."
    assert all(name in said["for_"] for name in TOOLS)


def test_a_failed_export_leaves_nothing(run, tmp_path):
    path = run / "shards" / "shard-00001.h5"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ShardError, match="sha256"):
        zsq.export(run, "npy", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_a_killed_export_left_is_removed_and_a_full_folder_is_not(run, tmp_path):
    (tmp_path / ".out.0a1b2c3d.zsq.tmp" / "7").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    zsq.export(run, "npy", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    with pytest.raises(RunFolderError, match="in the way"):
        zsq.export(run, "npy", tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "tfrecord"}, r"unknown format 'tfrecord'; expected one of files, imagefolder, npy"),
        ({"to": "npy", "range": "half"}, r"--range half; expected one of uint8, unit, norm"),
        ({"to": "npy", "layout": "hwcn"}, r"--layout hwcn; expected nchw or nhwc"),
        ({"to": "imagefolder", "range": "norm"}, r"--to imagefolder --range norm; expected --range uint8"),
        ({"to": "imagefolder", "layout": "nhwc"}, r"--layout nhwc; expected none"),
    ],
)
def test_options_that_cannot_be(run, tmp_path, options, message):
    with pytest.raises(OptionError, match=message):
        zsq.export(run, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
