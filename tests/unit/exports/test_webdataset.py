"""Exports as tar files."""

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from exported_runs import stored
from PIL import Image

import zsq
import zsq.images.photos
from zsq.core.errors import (
    ExportError,
)
from zsq.exports.webdataset import WebDatasetReader


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
        "webdataset is not installed; expected the extra 'webdataset'; "
        "in the folder of zsq: pip install '.[webdataset]'"
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
