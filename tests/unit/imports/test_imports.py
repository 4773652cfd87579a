"""Images made elsewhere become a run that verifies, and that `zsq gap` takes."""

import numpy as np
import pytest
import torch
from commands import call
from PIL import Image
from safetensors.torch import save_file

import zsq
from zsq.core.errors import ImagesError, OptionError, RunFolderError, WeightsError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def pixels():
    return np.random.default_rng(1).integers(0, 256, (300, 3, 4, 6), dtype=np.uint8)


def normalised(pixels):
    """In float64 with numpy, then float32."""
    mean, std = np.array(MEAN).reshape(3, 1, 1), np.array(STD).reshape(3, 1, 1)
    return torch.from_numpy(((pixels / 255 - mean) / std).astype(np.float32))


def imported(source, tmp_path, **options):
    out = tmp_path / "imported"
    done = zsq.import_images(source, out, **options)
    assert zsq.verify_run(out).num_images == done.num_images
    return done, zsq.ShardDataset(out)


@pytest.mark.parametrize("ending", ["pt", "safetensors", "npz"])
def test_normalised_tensors_give_the_pixels_back(tmp_path, pixels, ending):
    path, labels = tmp_path / f"images.{ending}", np.arange(300) % 7
    content = {"images": normalised(pixels), "labels": torch.from_numpy(labels)}
    if ending == "pt":
        torch.save(content, path)
    elif ending == "safetensors":
        save_file(content, path)
    else:
        np.savez(path, images=content["images"].permute(0, 2, 3, 1).numpy(), labels=labels)
    done, found = imported(path, tmp_path, mean=MEAN, std=STD)
    np.testing.assert_array_equal(found.pixels().numpy(), pixels)
    np.testing.assert_array_equal(found.labels().numpy(), labels)
    assert (done.num_images, done.num_labelled, done.clamped) == (300, 300, 0)
    assert found.spec.mean == MEAN and found.provenance.teacher is None


def test_a_list_of_single_images_as_other_tools_return_them(tmp_path, pixels):
    torch.save([image[None] for image in normalised(pixels)], tmp_path / "list.pt")
    _, found = imported(tmp_path / "list.pt", tmp_path, mean=MEAN, std=STD, name="mct")
    np.testing.assert_array_equal(found.pixels().numpy(), pixels)
    assert (found.labels() == -1).all() and found.provenance.method == "mct"


def test_uint8_is_taken_as_it_is(tmp_path, pixels):
    torch.save(torch.from_numpy(pixels), tmp_path / "a.pt")
    _, found = imported(tmp_path / "a.pt", tmp_path)
    np.testing.assert_array_equal(found.pixels().numpy(), pixels)
    assert (found.spec.mean, found.spec.std) == ((0, 0, 0), (1, 1, 1))


def test_layouts_are_stated_not_guessed(tmp_path, pixels):
    np.savez(tmp_path / "a.npz", images=pixels)
    with pytest.raises(ImagesError, match=r"6 channels in the layout nhwc.*pass --layout nchw"):
        zsq.import_images(tmp_path / "a.npz", tmp_path / "out")
    _, found = imported(tmp_path / "a.npz", tmp_path, layout="nchw")
    np.testing.assert_array_equal(found.pixels().numpy(), pixels)


def test_class_folders(tmp_path, pixels):
    for index, folder in enumerate(("0", "10", "2", "unlabelled")):
        (tmp_path / "source" / folder).mkdir(parents=True)
        Image.fromarray(pixels[index].transpose(1, 2, 0)).save(tmp_path / "source" / folder / "a.png")
    done, found = imported(tmp_path / "source", tmp_path)
    assert found.labels().tolist() == [0, 10, 2, -1] and done.num_labelled == 3
    np.testing.assert_array_equal(found.pixels().numpy(), pixels[:4])


def test_values_outside_are_clamped_and_counted(tmp_path):
    values = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 0.25, 0.75]).reshape(1, 1, 2, 4)
    torch.save(values, tmp_path / "a.pt")
    done, found = imported(tmp_path / "a.pt", tmp_path, mean=(0,), std=(1,))
    assert found.pixels().flatten().tolist() == [0, 0, 128, 255, 255, 255, 64, 191]
    assert done.clamped == 3 / 8


@pytest.mark.parametrize(
    ("content", "options", "error", "message"),
    [
        (torch.rand(2, 3, 4, 4), {}, OptionError, "holds floats and no --mean and --std.*--mean 0 --std 1"),
        (torch.rand(2, 3, 4, 4), {"mean": (0,)}, OptionError, "--mean without --std"),
        (torch.rand(2, 3, 4, 4), {"mean": (0, 0), "std": (1,)}, OptionError, "--mean with 2 values"),
        (torch.rand(2, 3, 4, 4), {"mean": (0,), "std": (0,)}, OptionError, "--std above 0"),
        (
            torch.rand(2, 3, 4, 4),
            {"mean": (123.675,), "std": (58.395,)},
            OptionError,
            r"--mean \[123\.675\].*pixels 0\.\.1.*divide them by 255: mean 0\.485",
        ),
        (torch.rand(2, 3, 4, 4) * 255, {"mean": (0,), "std": (1,)}, ImagesError, r"\d+% of the values"),
        (torch.full((1, 3, 2, 2), torch.nan), {"mean": (0,), "std": (1,)}, ImagesError, "NaN"),
        (
            torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
            {"mean": (0,), "std": (1,)},
            OptionError,
            "uint8, which is",
        ),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int32), {}, ImagesError, "int32"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), {}, ImagesError, "shape"),
        ({"pictures": torch.zeros(1)}, {}, ImagesError, "no `images`"),
        (
            torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
            {"name": "real"},
            OptionError,
            "noise are taken",
        ),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), {"name": "../x"}, OptionError, "--name"),
    ],
)
def test_what_cannot_be_imported_leaves_nothing(tmp_path, content, options, error, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(error, match=message):
        zsq.import_images(tmp_path / "a.pt", tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_pickles_are_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    torch.save({"images": Evil()}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="would run code"):
        zsq.import_images(tmp_path / "a.pt", tmp_path / "out")
    np.savez(tmp_path / "a.npz", images=np.array([Evil()], dtype=object))
    with pytest.raises(ImagesError, match="`images` object"):
        zsq.import_images(tmp_path / "a.npz", tmp_path / "out")
    assert not (tmp_path / "made").exists()


def test_a_folder_in_the_way_and_options_without_effect(tmp_path, capsys):
    (tmp_path / "out" / "x").mkdir(parents=True)
    with pytest.raises(RunFolderError, match="in the way"):
        zsq.import_images("embedded:digits:val", tmp_path / "out")
    arguments = ("import", "embedded:digits:val", "--out", tmp_path / "new")
    assert "states what its values are" in call(capsys, *arguments, "--layout", "nchw").complaint()
    assert "expected numbers" in call(capsys, *arguments, "--mean", "a,b", "--std", "1").complaint()
    said = call(capsys, *arguments)
    assert said.status == 0 and "with a label" in said.out


FORMS = [("imagefolder", "uint8"), ("npy", "norm"), ("npz", "uint8"), ("npz", "norm"), ("raw", "unit")]


@pytest.fixture(scope="module")
def four_shards(tmp_path_factory):
    """Digits with classes, in four shards."""
    out = tmp_path_factory.mktemp("four") / "run"
    sizes = {"count": 32, "batch": 8, "shard_size": 8, "iterations": 2}
    zsq.generate("embedded:digits", "deepinversion", out=out, **sizes)
    assert zsq.verify_run(out).num_shards == 4
    return out


@pytest.mark.parametrize(("to", "name"), FORMS)
def test_made_exported_and_imported(four_shards, tmp_path, to, name):
    wanted = zsq.ShardDataset(four_shards)
    zsq.export(four_shards, to, tmp_path / "out", range=name)
    _, found = imported(tmp_path / "out", tmp_path)
    assert torch.equal(found.pixels(), wanted.pixels())
    assert torch.equal(found.labels(), wanted.labels()) and (found.labels() >= 0).all()


def test_an_imported_set_stands_in_a_gap_table(tmp_path):
    teacher = zsq.load_teacher("embedded:digits")
    made = zsq.generate("embedded:digits", "noise", count=16, out=tmp_path / "noise")
    images = zsq.load_images("embedded:digits:val", teacher.spec, 16).pixels
    torch.save(teacher.spec.pixels_to_norm(images), tmp_path / "a.pt")
    moments = {"mean": teacher.spec.mean, "std": teacher.spec.std}
    zsq.import_images(tmp_path / "a.pt", tmp_path / "other", name="other", **moments)
    data = zsq.measure_gap(
        "embedded:digits",
        [made, tmp_path / "other"],
        real="embedded:digits:train",
        eval="embedded:digits:test",
        students=["ptq"],
        bits=["W4A4"],
        out=tmp_path / "gap",
        seeds=1,
    )
    assert {row.source for row in data.rows} == {"real", "noise", "other"}


@pytest.mark.parametrize("kind", ["S3", "V5", "M8[s]", "longdouble", "complex64"])
def test_npz_members_that_are_no_numbers_are_named(kind, tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8, 1), kind))
    with pytest.raises(ImagesError, match=r"holds `images` .*expected uint8 or floats"):
        zsq.import_images(tmp_path / "a.npz", tmp_path / "out")


def test_npz_members_of_another_byte_order_are_read(tmp_path):
    images = np.arange(128, dtype=">u2").reshape(2, 8, 8, 1)
    np.savez(tmp_path / "a.npz", images=(images / 255).astype(">f4"), labels=np.array([3, 4], ">i8"))
    zsq.import_images(tmp_path / "a.npz", tmp_path / "out", mean=[0.0], std=[1.0])
    made = zsq.ShardDataset(tmp_path / "out")
    assert made.pixels().flatten().tolist() == list(range(128)) and made.labels().tolist() == [3, 4]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_any_number_of_channels_is_taken_where_the_layout_is_stated(layout, tmp_path):
    """Bands of a satellite; without a word, 12 of them may as well be rows."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 12, 6, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels if layout == "nchw" else np.moveaxis(pixels, 1, -1))
    if layout == "nhwc":
        with pytest.raises(ImagesError, match=r"12 channels.*; if they are channels, --layout nhwc"):
            zsq.import_images(tmp_path / "a.npz", tmp_path / "out")
    _, found = imported(tmp_path / "a.npz", tmp_path, layout=layout)
    np.testing.assert_array_equal(found.pixels().numpy(), pixels)


def test_more_channels_than_a_teacher_may_have_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 65, 4, 4), np.uint8))
    with pytest.raises(ImagesError, match=r"65 channels.*at most 64"):
        zsq.import_images(tmp_path / "a.npy", tmp_path / "out", layout="nchw")
