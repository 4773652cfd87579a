"""Signals from the card to shards, exports, sheets and real signals, by the command line and from Python."""

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call_for_all
from user_networks import SignalNet

import zsq
from zsq.core.errors import ImagesError, MismatchError, OptionError, ShardError, UsageError
from zsq.core.runtime import Runtime
from zsq.datasetcard.sheets import contact_sheet, curves
from zsq.imports.blocks import open_source
from zsq.students import create
from zsq.teacher import load_teacher
from zsq.widths import Bits

TESTS = str(Path(__file__).parents[2])
QUICK = ("--iterations", 2, "--compile", "off")
CARD = """
architecture = "user_networks:SignalNet"
arguments = {channels = 4, outputs = 5}
weights = "weights.pt"
num_classes = 5
[image]
channels = 4
size = [64]
range = [-2.0, 2.0]
mean = [0.0, 0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0, 1.0]
"""


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    torch.manual_seed(0)
    network = SignalNet()
    with torch.no_grad():
        network.train()(torch.randn(64, 4, 64))
    torch.save(network.state_dict(), folder / "weights.pt")
    (folder / "teacher.toml").write_text(CARD)
    return folder / "teacher.toml"


@pytest.fixture
def teacher(card, monkeypatch):
    monkeypatch.syspath_prepend(TESTS)
    return load_teacher(f"file:{card}")


@pytest.fixture(scope="module")
def run(card, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "signals"
    teacher = f"file:{card}"
    said = called("generate", "--teacher", teacher, "--method", "zeroq", "--count", 3, "--out", out, *QUICK)
    assert "values -2..2 are stored as 0..255: one step is 0.01569" in said
    return out


def called(*arguments):
    outcome = call_for_all(*arguments)
    assert outcome.status == 0, outcome.err
    return outcome.out + outcome.err


def test_shards_hold_signals(run, teacher):
    images = zsq.ShardDataset(run)
    assert images.pixels().shape == (3, 4, 64) and images.spec == teacher.spec
    assert images[0]["pixels"].shape == (4, 64)
    assert zsq.verify_run(run).num_images == 3


@pytest.mark.parametrize(
    ("to", "layout", "shape"), [("npy", "nchw", (3, 4, 64)), ("npz", "nhwc", (3, 64, 4))]
)
def test_arrays_are_exported_and_read_again(run, teacher, tmp_path, to, layout, shape):
    zsq.export(run, to, tmp_path / to)
    file = tmp_path / to / f"images.{to}"
    found = np.load(file)
    found = found["images"] if to == "npz" else found
    assert found.shape == shape
    images = zsq.load_images(file, teacher.spec)
    assert torch.equal(images.pixels, zsq.ShardDataset(run).pixels())


def test_pictures_are_no_signals(run, teacher, tmp_path):
    with pytest.raises(OptionError, match="use --to npy"):
        zsq.export(run, "imagefolder", tmp_path / "out")
    photos = tmp_path / "photos"
    photos.mkdir()
    from PIL import Image

    Image.new("RGB", (64, 64)).save(photos / "a.png")
    with pytest.raises(MismatchError, match="photos for a teacher of"):
        zsq.load_images(photos, teacher.spec)


def test_real_signals_are_floats_in_the_units_of_the_range(teacher, tmp_path):
    values = np.random.default_rng(0).normal(0, 0.8, (6, 4, 64)).astype("f4")
    np.save(tmp_path / "real.npy", values)
    images = zsq.load_images(tmp_path / "real.npy", teacher.spec)
    stored = -2 + images.pixels.numpy() * teacher.spec.step
    assert np.abs(stored - values.clip(-2, 2)).max() <= teacher.spec.step / 2 + 1e-6
    assert images.notes == (teacher.spec.step_line,)
    np.save(tmp_path / "far.npy", values * 100)
    with pytest.raises(ImagesError, match=r"% of the values of .* are outside of -2..2"):
        zsq.load_images(tmp_path / "far.npy", teacher.spec)
    values[0, 0, 0] = np.nan
    np.save(tmp_path / "nan.npy", values)
    with pytest.raises(ImagesError, match="NaN"):
        zsq.load_images(tmp_path / "nan.npy", teacher.spec)
    with pytest.raises(ImagesError, match="expected uint8"):
        zsq.load_images(tmp_path / "far.npy")
    np.save(tmp_path / "levels.npy", np.zeros((2, 4, 64), "u1"))
    with pytest.raises(ImagesError, match="a teacher of signals"):
        zsq.load_images(tmp_path / "levels.npy")
    with pytest.raises(MismatchError, match="4x32 images; expected 4x64"):
        np.save(tmp_path / "short.npy", np.zeros((2, 4, 32), "u1"))
        zsq.load_images(tmp_path / "short.npy", teacher.spec)
    with pytest.raises(ImagesError, match="signals go to quantize"):
        open_source(str(tmp_path / "levels.npy"), None, None)


def test_a_student_of_signals_is_fitted_saved_and_loaded(run, teacher, tmp_path):
    pixels = zsq.ShardDataset(run).pixels()
    fitted = create("ptq", teacher.spec, {}, Runtime()).fit(teacher, pixels, Bits(8, 8))
    saved, _ = zsq.save_student(fitted, teacher, tmp_path / "student.safetensors")
    loaded = zsq.load_student(saved)
    standard = teacher.spec.pixels_to_standard(pixels)
    assert loaded.spec == teacher.spec
    assert torch.equal(loaded.logits(standard), fitted.logits(standard))
    torch.testing.assert_close(fitted.logits(standard), teacher.logits(standard), rtol=0.1, atol=0.1)


def test_inspect_says_the_step(card):
    said = called("inspect", "--teacher", f"file:{card}")
    assert "signals 4x64; mean 0 0 0 0, std 1 1 1 1 of values" in said
    assert "one step is 0.01569" in said and "Traceback" not in said


def test_cards_of_signals_refuse_what_is_for_images(card, tmp_path):
    for old, new, message in (
        ("num_classes = 5", 'task = "segment"\nnum_classes = 5', "task 'segment' is for images"),
        ("size = [64]", "size = [8, 8, 8]", "video is out of scope"),
        ("[-2.0, 2.0]", "[2.0, -2.0]", "is not .lowest, highest."),
    ):
        path = tmp_path / "other.toml"
        path.write_text(CARD.replace(old, new))
        with pytest.raises(UsageError, match=message):
            load_teacher(f"file:{path}")


def test_a_sheet_draws_the_first_channel_as_a_curve():
    ramp = torch.arange(64, dtype=torch.uint8)[None] * 4
    (picture,) = curves(ramp)
    assert picture.shape == (1, 64, 64)
    dark = (picture[0] == 0).nonzero()
    assert set(dark[:, 1].tolist()) == set(range(64))
    assert abs((63 - dark[:, 0]) - dark[:, 1]).max() <= 1
    assert contact_sheet(torch.randint(256, (9, 4, 1000), dtype=torch.uint8)).shape[0] == 3
    constant = curves(torch.zeros(1, 5, dtype=torch.uint8))[0, 0]
    assert (constant[-1] == 0).all() and (constant[:-1] == 255).all()


def test_a_shard_whose_pixels_have_another_rank_than_its_spec_is_refused(run, tmp_path):
    import h5py

    path = tmp_path / "shard-00000.h5"
    path.write_bytes((run / "shards" / "shard-00000.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        pixels = file["pixels"][()][:, :, None]
        del file["pixels"]
        file.create_dataset("pixels", data=pixels, chunks=(1, *pixels.shape[1:]), fletcher32=True)
    with pytest.raises(ShardError):
        from zsq.shards.reader import read_shard

        read_shard(path)
