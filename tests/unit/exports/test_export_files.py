"""One file per image, and sets as tools take them: read back by readers that know nothing of zsq."""

import json

import numpy as np
import pytest
from commands import call
from exported_runs import MEAN, STD, make_run
from PIL import Image
from toys import image_spec

import zsq
from zsq.core.errors import ExportError, OptionError
from zsq.exports.tools import TOOLS


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def stored(run):
    return zsq.ShardDataset(run).pixels().numpy()


def lines_of(folder):
    return (folder / "list.txt").read_text().splitlines()


def test_rknn_is_a_list_of_pictures(run, tmp_path):
    zsq.export(run, tool="rknn", out=tmp_path / "out")
    found = [np.asarray(Image.open(tmp_path / "out" / line)) for line in lines_of(tmp_path / "out")]
    assert np.array_equal(np.stack(found).transpose(0, 3, 1, 2), stored(run))


def test_qnn_is_a_list_of_raw_normalised_values_with_channels_last(run, tmp_path):
    zsq.export(run, tool="qnn", out=tmp_path / "out")
    for line, pixels in zip(lines_of(tmp_path / "out"), stored(run), strict=True):
        values = np.fromfile(tmp_path / "out" / line, "<f4").reshape(6, 8, 3)
        again = (values * np.float32(STD) + np.float32(MEAN)) * 255
        assert np.array_equal(again.round().transpose(2, 0, 1), pixels)


def test_hailo_is_one_array_of_pixels_with_channels_last(run, tmp_path):
    zsq.export(run, tool="hailo", out=tmp_path / "out")
    found = np.load(tmp_path / "out" / "images.npy")
    assert found.dtype == np.uint8 and np.array_equal(found.transpose(0, 3, 1, 2), stored(run))


@pytest.mark.parametrize("tool", TOOLS)
def test_every_set_is_verified_and_says_what_it_is(tool, run, tmp_path, capsys):
    done = call(capsys, "export", str(run), "--for", tool, "--out", str(tmp_path / "out"))
    assert done.status == 0 and TOOLS[tool].page in done.out and "values per channel: lowest" in done.out
    record = json.loads((tmp_path / "out" / "EXPORT.json").read_text())
    assert record["tool"] == tool and len(record["seen"]) == 3
    assert zsq.verify_export(run, tmp_path / "out").num_images == 7


@pytest.mark.parametrize(
    ("each", "range"), [("png", "uint8"), ("npy", "norm"), ("npy", "uint8"), ("raw", "unit")]
)
def test_files_are_read_by_their_own_three_lines(each, range, run, tmp_path, monkeypatch):
    record = zsq.export(run, "files", tmp_path / "out", each=each, range=range)
    monkeypatch.chdir(tmp_path / "out")
    names = {}
    exec("\n".join(record.use), names)
    assert len(names["images"]) == 7
    labels = (tmp_path / "out" / "labels.txt").read_text().split()
    assert list(map(int, labels)) == [2, 0, -1, 10, 2, -1, 1]
    zsq.verify_export(run, tmp_path / "out")


def test_values_are_those_that_a_reader_of_the_files_finds(tmp_path):
    spec = image_spec(size=(4, 4), mean=MEAN, std=STD, channel_order="bgr")
    run = make_run(tmp_path / "run", spec)
    for range, layout in (("norm", "nchw"), ("unit", "nhwc"), ("uint8", "nchw")):
        out = tmp_path / f"{range}"
        record = zsq.export(run, "npy", out, range=range, layout=layout)
        values = np.load(out / "images.npy")
        values = values if layout == "nchw" else values.transpose(0, 3, 1, 2)
        for channel, seen in enumerate(record.seen):
            own = values[:, channel].astype(np.float64)
            assert (seen.low, seen.high) == pytest.approx((own.min(), own.max()), abs=1e-6)
            assert seen.mean == pytest.approx(own.mean(), abs=1e-6)
    assert "must do it and turn rgb into bgr" in record.values_line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither --to nor --for"),
        ({"to": "files"}, "--to files without --each; expected --to files with --each png"),
        ({"to": "npy", "each": "png"}, "--to npy with --each png"),
        ({"to": "files", "each": "png", "range": "norm"}, "--range norm; expected --range uint8"),
        ({"to": "files", "each": "png", "layout": "nhwc"}, "stores PNG"),
        ({"tool": "toaster"}, "unknown tool 'toaster'; expected one of rknn"),
        ({"tool": "rknn", "range": "norm"}, "--range norm with --for rknn"),
    ],
)
def test_options_that_do_not_go_together(options, message, run, tmp_path):
    with pytest.raises(OptionError, match=message):
        zsq.export(run, out=tmp_path / "out", **options)


def damage(run, tmp_path, each, change):
    out = tmp_path / "out"
    zsq.export(run, "files", out, each=each)
    change(out)
    with pytest.raises(ExportError):
        zsq.verify_export(run, out)


@pytest.mark.parametrize("each", ["png", "npy", "raw"])
def test_what_is_changed_cut_missing_or_added_is_found(each, run, tmp_path):
    third = f"images/00000002.{each}"
    changes = {
        "moved": lambda out: (out / "images" / f"00000001.{each}").replace(out / third),
        "cut": lambda out: (out / third).write_bytes((out / third).read_bytes()[:-30]),
        "added": lambda out: (out / "more.png").touch(),
        "list": lambda out: (out / "list.txt").write_text("images/00000000.png\n"),
        "link": lambda out: ((out / third).unlink(), (out / third).symlink_to(out / "list.txt")),
    }
    for name, change in changes.items():
        (tmp_path / name).mkdir()
        damage(run, tmp_path / name, each, change)
