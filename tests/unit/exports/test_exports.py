"""Exports hold what they state: checked against numpy alone, and `verify --against` finds every change."""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from PIL import Image
from toys import image_spec

import zsq
import zsq.images.photos
from zsq.config import config_sha256
from zsq.core.errors import (
    ExportError,
    ImagesError,
    MismatchError,
    OptionError,
    RunFolderError,
    ShardError,
    ZsqError,
)
from zsq.core.imagespec import ImageSpec
from zsq.exports.exporting import FORMATS
from zsq.exports.webdataset import WebDatasetReader
from zsq.shards.manifest import Manifest, MethodRecord, library_versions, write_manifest
from zsq.shards.schema import ShardContent, ShardProvenance, shard_name
from zsq.shards.writer import write_shard

ARRAYS = ("npy", "npz", "raw")
SIZES = (5, 2)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def make_run(folder, spec=None, labels=(2, 0, -1, 10, 2, -1, 1)):
    """A run of two shards, all 256 values in its pixels."""
    spec = spec or image_spec(size=(6, 8), mean=MEAN, std=STD)
    numbers = np.random.default_rng(0)
    entries, first = [], 0
    for index, size in enumerate(SIZES):
        pixels = numbers.integers(0, 256, (size, *spec.shape), dtype=np.uint8)
        content = ShardContent(
            pixels=pixels,
            labels=np.array(labels[first : first + size], np.int64),
            logits=None,
            bn_distance=np.full(size, np.nan, np.float32),
        )
        provenance = ShardProvenance(None, None, spec, "toy", {}, 3, (index,), first, "none")
        entries.append(write_shard(folder / "shards" / shard_name(index), content, provenance))
        first += size
    manifest = Manifest(
        zsq_version="0",
        libraries=library_versions(),
        device="cpu",
        runtime={},
        config={},
        config_sha256=config_sha256({}),
        teacher=None,
        method=MethodRecord(name="toy", options={}, data_read="none"),
        seed=3,
        num_images=first,
        shards=tuple(entries),
        seconds=0,
        image_iterations_per_second=0,
        data_read="none",
    )
    write_manifest(folder, manifest)
    return folder


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def stored(run):
    dataset = zsq.ShardDataset(run)
    return dataset.pixels().numpy(), dataset.labels().numpy()


def read(folder, record):
    """With numpy, as EXPORT.json says."""
    variables = {}
    with contextlib.chdir(folder):
        exec("\n".join(record.use), variables)
    return np.array(variables["images"]), np.array(variables["labels"])


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
        kind = FORMATS[to].writer
        fed = []

        def add(self, pixels, labels, first_image, kind=kind, fed=fed):
            fed.append(len(pixels))
            kind.add(self, pixels, labels, first_image)
            assert not any(
                isinstance(value, np.ndarray | list) and len(value) > 2 for value in vars(self).values()
            )

        watched = type("Watched", (kind,), {"add": add})
        monkeypatch.setitem(FORMATS, to, FORMATS[to]._replace(writer=watched))
        zsq.export(run, to, tmp_path / to)
        assert fed == list(SIZES)


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
        ({"to": "tfrecord"}, r"--to tfrecord; expected one of files, imagefolder, npy"),
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


def change_pixel(path, by=1):
    array = np.load(path)
    array.flat[100] += by
    np.save(path, array)


def test_one_changed_pixel_is_found(run, tmp_path):
    zsq.export(run, "npy", tmp_path / "out", range="norm", layout="nhwc")
    change_pixel(tmp_path / "out" / "images.npy", by=1 / 255 / 0.25)
    with pytest.raises(
        ExportError, match=r"image 0 has \d+ at channel, row, column \(1, 4, 1\); expected \d+"
    ):
        zsq.verify_export(run, tmp_path / "out")


def test_one_changed_label_is_found(run, tmp_path):
    zsq.export(run, "npy", tmp_path / "out")
    labels = np.load(tmp_path / "out" / "labels.npy")
    labels[6] = 4
    np.save(tmp_path / "out" / "labels.npy", labels)
    with pytest.raises(ExportError, match="image 6 has label 4; expected 1"):
        zsq.verify_export(run, tmp_path / "out")


def test_another_statement_about_the_values_is_found(run, tmp_path):
    """The files are intact, but a reader who believes EXPORT.json sees other pictures."""
    zsq.export(run, "npy", tmp_path / "out", range="norm")
    path = tmp_path / "out" / "EXPORT.json"
    record = json.loads(path.read_text())
    record["image"]["mean"] = [0.4, 0.5, 0.59]
    path.write_text(json.dumps(record))
    with pytest.raises(ExportError, match=r"image 0 has|outside of the range"):
        zsq.verify_export(run, tmp_path / "out")


def test_moved_and_missing_and_additional_files_are_found(run, tmp_path):
    out = tmp_path / "out"
    zsq.export(run, "imagefolder", out)
    extra = out / "2" / "more.png"
    extra.write_bytes(b"")
    with pytest.raises(ExportError, match="holds 8 files; expected 7 images"):
        zsq.verify_export(run, out)
    extra.unlink()
    (out / "2" / "00000000.png").rename(out / "0" / "00000000.png")
    with pytest.raises(ExportError, match="damaged or missing"):
        zsq.verify_export(run, out)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "0/../../x.png", "0//x.png", ""])
def test_a_list_that_names_files_elsewhere_is_refused(run, tmp_path, name):
    out = tmp_path / "out"
    zsq.export(run, "imagefolder", out)
    (out / "SHA256SUMS").write_text(f"{'0' * 64}  {name}\n")
    with pytest.raises(ExportError, match="names"):
        zsq.verify_export(run, out)


@pytest.mark.parametrize("to", ARRAYS)
def test_cut_and_lengthened_files_are_refused(run, tmp_path, to):
    zsq.export(run, to, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("images.*")
    data = path.read_bytes()
    path.write_bytes(data[:-9])
    with pytest.raises(ExportError, match=r"ends early|damaged"):
        zsq.verify_export(run, tmp_path / "out")
    if to != "npz":
        path.write_bytes(data + b"\0")
        with pytest.raises(ExportError, match="more than 7 images"):
            zsq.verify_export(run, tmp_path / "out")


def test_another_run_is_not_the_same_pictures(run, tmp_path):
    zsq.export(run, "raw", tmp_path / "out")
    other = make_run(tmp_path / "other", ImageSpec(size=(8, 6), mean=MEAN, std=STD))
    with pytest.raises(ExportError, match=r"states images of \(3, 6, 8\); expected \(3, 8, 6\)"):
        zsq.verify_export(other, tmp_path / "out")
    with pytest.raises(ExportError, match=r"EXPORT\.json cannot be read"):
        zsq.verify_export(run, run)


def test_logits_are_compared_where_a_teacher_is_given(tmp_path, capsys):
    digits = zsq.generate("embedded:digits", "noise", count=8, out=tmp_path / "digits")
    out = tmp_path / "out"
    said = call(capsys, "export", digits, "--to", "npy", "--out", out, "--range", "norm", "--layout", "nhwc")
    assert said.status == 0 and "np.load('images.npy'" in said.out
    said = call(capsys, "verify", digits, "--against", out, "--teacher", "embedded:digits")
    assert said.status == 0 and "the same 8 images and labels, logits within" in said.out
    strict = ("--teacher", "embedded:digits", "--tolerance", "0")
    assert "differ by" in call(capsys, "verify", digits, "--against", out, *strict).complaint()
    assert "--teacher x without --against" in call(capsys, "verify", digits, "--teacher", "x").complaint()


def test_logits_of_other_weights_are_not_compared(tmp_path, tiny_teacher, run):
    from zsq.exports.exporting import verify_export

    zsq.export(run, "npy", tmp_path / "out")
    with pytest.raises(MismatchError, match="weights 0000"):
        verify_export(run, tmp_path / "out", tiny_teacher, 1e-3)


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("raw", "images.bin"),
        ("npy", "labels.npy"),
        ("npz", "images.npz"),
        ("imagefolder", "2/00000000.png"),
        ("imagefolder", "SHA256SUMS"),
        ("raw", "EXPORT.json"),
    ],
)
def test_pipes_and_devices_in_an_export_are_one_line(to, name, kind, run, tmp_path):
    zsq.export(run, to, tmp_path / "out")
    path = tmp_path / "out" / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    for read_it in (
        lambda: zsq.verify_export(run, tmp_path / "out"),
        lambda: zsq.import_images(tmp_path / "out", tmp_path / "again"),
    ):
        with pytest.raises(ZsqError) as caught:
            read_it()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("to", ["raw", "imagefolder", "npz"])
def test_a_record_of_huge_images_takes_no_memory(to, run, tmp_path, monkeypatch):
    monkeypatch.setattr(zsq.images.photos, "available_bytes", lambda: 2**33)
    zsq.export(run, to, tmp_path / "out")
    path = tmp_path / "out" / "EXPORT.json"
    values = json.loads(path.read_text())
    values["image"]["size"], values["num_images"] = [16384, 16384], 2**62
    path.write_text(json.dumps(values))
    with pytest.raises(ImagesError, match="GiB of what is free"):
        zsq.import_images(tmp_path / "out", tmp_path / "again")


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def webdataset_reader(run, folder, members):
    """A reader of a tar file that was made by hand."""
    record = zsq.export(run, "raw", folder)
    record = record.model_copy(update={"to": "webdataset", "layout": "png"})
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  images-00000.tar\n")
    write_tar(folder / "images-00000.tar", members)
    return WebDatasetReader(folder, record)


def test_tar_files_are_read_by_the_standard_library(run, tmp_path):
    pixels, _ = stored(run)
    pngs = []
    for image in pixels[:2]:
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG")
        pngs.append(buffer.getvalue())
    members = [("00000000.cls", b"2"), ("00000000.png", pngs[0]), ("00000001.png", pngs[1])]
    with webdataset_reader(run, tmp_path / "good", members) as reader:
        found, labels = reader.take(2)
        reader.check_end()
    np.testing.assert_array_equal(found, pixels[:2])
    assert labels.tolist() == [2, -1]
    for bad in ("00000001.png", "00000000.pyd"):
        with (
            webdataset_reader(run, tmp_path / bad, [(bad, pngs[0])]) as reader,
            pytest.raises(ExportError, match="next"),
        ):
            reader.take(1)


def test_a_tar_file_of_anything_else_is_damage(run, tmp_path):
    with webdataset_reader(run, tmp_path / "out", []) as reader:
        (tmp_path / "out" / "images-00000.tar").write_bytes(b"x" * 2048)
        with pytest.raises(ExportError, match="damaged or missing"):
            reader.take(1)


def test_pictures_of_another_size_are_refused(run, tmp_path):
    zsq.export(run, "imagefolder", tmp_path / "out")
    Image.new("RGB", (9, 9)).save(tmp_path / "out" / "2" / "00000000.png")
    with pytest.raises(ExportError, match=r"\('RGB', 9, 9\); expected \('RGB', 6, 8\)"):
        zsq.verify_export(run, tmp_path / "out")


def test_webdataset_without_its_package_names_the_extra(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    said = call(capsys, "export", run, "--to", "webdataset", "--out", tmp_path / "out")
    assert said.complaint() == (
        "webdataset is not installed; expected the extra 'webdataset'; pip install 'zsq[webdataset]'"
    )
    assert not Path(tmp_path / "out").exists()


@pytest.mark.consumers
@pytest.mark.parametrize(("layout", "name"), [(None, "uint8"), ("nhwc", "unit"), ("nchw", "norm")])
def test_webdataset_writes_and_reads(run, tmp_path, layout, name):
    pytest.importorskip("webdataset", reason="use the environment of benchmarks/consumers/webdataset.txt")
    for out in ("a", "b"):
        zsq.export(run, "webdataset", tmp_path / out, layout=layout, range=name)
        assert zsq.verify_export(run, tmp_path / out).num_images == 7
    for path in (tmp_path / "a").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert torch.equal(
        torch.from_numpy(stored(run)[0]), zsq.ShardDataset(imported(tmp_path / "a", tmp_path / "c")).pixels()
    )


def imported(source, out):
    zsq.import_images(source, out)
    return out
