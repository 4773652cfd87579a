"""`verify --against` finds every change of an export, and nothing in it takes memory or time."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from commands import call
from exported_runs import MEAN, STD, make_run

import zsq
import zsq.images.photos
from zsq.core.errors import (
    ExportError,
    ImagesError,
    MismatchError,
    ZsqError,
)
from zsq.core.imagespec import ImageSpec

ARRAYS = ("npy", "npz", "raw")


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
    with pytest.raises(ImagesError, match=r"EXPORT\.json cannot be read"):
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


def test_a_teacher_of_another_image_size_is_refused(tmp_path, capsys, monkeypatch):
    """A second card of the same weights: its logits are of other images."""
    digits = zsq.generate("embedded:digits", "noise", count=2, out=tmp_path / "digits")
    train = ("--images", "embedded:digits", "--count", 8, "--student", "ptq", "--bits", "W8A8")
    call(capsys, "quantize", "--teacher", "embedded:digits", *train, "--out", tmp_path / "student")
    call(capsys, "export", digits, "--to", "npy", "--out", tmp_path / "out")
    own = zsq.load_teacher("embedded:digits")
    smaller = replace(own, spec=own.spec.model_copy(update={"size": (24, 28)}))
    for module in ("checking", "describing"):
        monkeypatch.setattr(f"zsq.api.{module}.load_teacher", lambda *_, **__: smaller)
    for line, named in (
        (("verify", digits, "--against", tmp_path / "out"), "digits holds"),
        (("inspect", tmp_path / "student", "--images", "embedded:digits"), "student takes"),
    ):
        outcome = call(capsys, *line, "--teacher", "embedded:digits")
        assert outcome.status == 2
        assert f"{named} 1x32x32 images; expected 1x24x28 as the teacher takes" in outcome.complaint()


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


@pytest.mark.parametrize("to", ARRAYS)
def test_exports_of_signals_are_compared(to, tmp_path):
    spec = ImageSpec(channels=2, size=(40,), range=(-3, 3), mean=(0, 0), std=(1, 1))
    run = make_run(tmp_path / "run", spec=spec)
    zsq.export(run, to, tmp_path / "out")
    assert zsq.verify_export(run, tmp_path / "out").num_images == 7


def test_one_changed_value_of_a_signal_is_found(tmp_path):
    run = make_run(tmp_path / "run", spec=ImageSpec(channels=2, size=(40,), mean=(0, 0), std=(1, 1)))
    zsq.export(run, "npy", tmp_path / "out")
    change_pixel(tmp_path / "out" / "images.npy")
    with pytest.raises(ExportError, match=r"image 1 has \d+ at channel, position \(0, 20\); expected \d+"):
        zsq.verify_export(run, tmp_path / "out")


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_only_images_in_colour_have_an_order_of_colours(channels, tmp_path):
    spec = ImageSpec(channels=channels, size=(6, 8), mean=(0.5,) * channels, std=(0.25,) * channels)
    run = make_run(tmp_path / "run", spec=spec)
    record = zsq.export(run, "npy", tmp_path / "out", range="norm")
    assert "rgb" not in record.values_line + "".join(record.applied)
