import io
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zsq.images.photos
from zsq.core.errors import ImagesError, MismatchError, OptionError, ShardError
from zsq.core.imagespec import ImageSpec
from zsq.images.sources import load_images
from zsq.shards.manifest import find_shards
from zsq.shards.schema import ShardContent, ShardProvenance, shard_name
from zsq.shards.writer import write_shard

RGB = ImageSpec(channels=3, size=(6, 5), mean=(0.5,) * 3, std=(0.25,) * 3)
GREY = ImageSpec(channels=1, size=(6, 5), mean=(0.5,), std=(0.25,))


def photo(seed, height=6, width=5, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(array, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array.squeeze()).save(buffer, kind)
    return buffer.getvalue()


def write(folder, name, data):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def as_pixels(*photos):
    return np.stack([image.transpose(2, 0, 1) for image in photos])


def read_either(kind, tmp_path, members):
    """The same members as class folders or as a .zip of them."""
    if kind == "zip":
        return load_images(zipped(tmp_path / "images.zip", members))
    for name, data in members.items():
        write(tmp_path / "images", name, data)
    return load_images(tmp_path / "images")


@pytest.mark.parametrize("kind", ["folders", "zip"])
def test_named_classes_count_by_rank(kind, tmp_path):
    photos = [photo(seed) for seed in range(4)]
    names = ["zebra/0.png", "ant/1.png", "unlabelled/0.png", "ant/0.PNG"]
    images = read_either(kind, tmp_path, {n: encoded(p) for n, p in zip(names, photos, strict=True)})
    assert images.labels.tolist() == [0, 0, -1, 1]
    assert images.labels.dtype == torch.int64
    np.testing.assert_array_equal(images.pixels.numpy(), as_pixels(*[photos[i] for i in (3, 1, 2, 0)]))
    assert not images.is_shards


@pytest.mark.parametrize("kind", ["folders", "zip"])
def test_numeric_classes_are_indices(kind, tmp_path):
    members = {
        f"{name}/a.png": encoded(photo(seed)) for seed, name in enumerate(["10", "2", "007", "unlabelled"])
    }
    images = read_either(kind, tmp_path, members)
    assert sorted(images.labels.tolist()) == [-1, 2, 7, 10]


@pytest.mark.parametrize("kind", ["folders", "zip"])
def test_numbers_beside_names_are_refused(kind, tmp_path):
    with pytest.raises(ImagesError, match="'3' and 'cat'"):
        read_either(kind, tmp_path, {"3/a.png": encoded(photo(0)), "cat/a.png": encoded(photo(1))})


@pytest.mark.parametrize("kind", ["folders", "zip"])
def test_other_files_are_passed_over(kind, tmp_path):
    members = {
        "cat/a.png": encoded(photo(0)),
        "cat/notes.txt": b"text",
        "cat/._a.png": b"resource fork",
        "__MACOSX/a.png": b"resource fork",
        ".cache/a.png": b"junk",
        "readme.md": b"text",
    }
    images = read_either(kind, tmp_path, members)
    np.testing.assert_array_equal(images.pixels.numpy(), as_pixels(photo(0)))
    assert images.labels.tolist() == [0]


def test_empty_class_folder_keeps_its_rank(tmp_path):
    (tmp_path / "ant").mkdir()
    write(tmp_path, "bee/a.png", encoded(photo(0)))
    assert load_images(tmp_path).labels.tolist() == [1]


def test_the_folder_itself_may_be_hidden(tmp_path):
    write(tmp_path / ".cache", "ant/a.png", encoded(photo(0)))
    assert load_images(tmp_path / ".cache").labels.tolist() == [0]


def test_folder_without_permission_is_one_line(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ImagesError, match="Permission denied"):
        load_images(tmp_path)
    with pytest.raises(ImagesError, match="Permission denied"):
        find_shards(tmp_path)


def test_zip_may_hold_its_folder(tmp_path):
    members = {f"train/{name}/a.png": encoded(photo(0)) for name in ("ant", "bee")}
    assert load_images(zipped(tmp_path / "a.zip", members)).labels.tolist() == [0, 1]
    members["test/ant/a.png"] = encoded(photo(0))
    with pytest.raises(ImagesError, match="side by side"):
        load_images(zipped(tmp_path / "b.zip", members))


def test_zip_is_not_unpacked(tmp_path):
    outside = {f"{root}{name}.png": encoded(photo(0)) for root in ("../../x/", "/x/") for name in "ab"}
    for number, names in enumerate((list(outside)[:2], list(outside)[2:])):
        path = zipped(tmp_path / f"{number}.zip", {name: outside[name] for name in names})
        assert load_images(path).labels.tolist() == [0, 0]
    assert sorted(child.name for child in tmp_path.iterdir()) == ["0.zip", "1.zip"]


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_other_formats_decode_as_pillow_does(kind, tmp_path):
    data = encoded(photo(0), kind)
    write(tmp_path, f"cat/a.{kind.lower()}", data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(load_images(tmp_path).pixels.numpy(), as_pixels(expected))


def test_channels_follow_the_spec(tmp_path):
    colour, grey = photo(0), photo(1, channels=1)
    write(tmp_path, "cat/a.png", encoded(colour))
    write(tmp_path, "cat/b.png", encoded(grey))
    as_rgb = load_images(tmp_path, RGB).pixels.numpy()
    np.testing.assert_array_equal(as_rgb, as_pixels(colour, np.repeat(grey, 3, axis=2)))
    as_grey = load_images(tmp_path, GREY).pixels.numpy()
    luma = colour.astype(np.float64) @ [0.299, 0.587, 0.114]  # ITU-R 601
    assert np.abs(as_grey[0, 0] - luma).max() <= 0.51
    np.testing.assert_array_equal(as_grey[1, 0], grey[..., 0])


def test_photos_of_another_size_are_refused_naming_both(tmp_path):
    write(tmp_path, "cat/a.png", encoded(photo(0)))
    write(tmp_path, "cat/b.png", encoded(photo(1, height=7)))
    with pytest.raises(MismatchError, match=r"cat/b\.png is 5x7 px .* expected 5x6 .*first image"):
        load_images(tmp_path)
    with pytest.raises(MismatchError, match=r"5x7.*expected 5x6.*teacher"):
        load_images(tmp_path, RGB)


def test_photos_cannot_have_two_channels(tmp_path):
    write(tmp_path, "cat/a.png", encoded(photo(0)))
    with pytest.raises(MismatchError, match="2 channels"):
        load_images(tmp_path, ImageSpec(channels=2, size=(6, 5), mean=(0, 0), std=(1, 1)))


def test_sixteen_bit_images_are_refused(tmp_path):
    write(tmp_path, "cat/a.png", encoded(np.arange(30, dtype=np.uint16).reshape(6, 5)))
    with pytest.raises(ImagesError, match="more than 8 bits"):
        load_images(tmp_path)


@pytest.mark.parametrize("kind", ["folders", "zip"])
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:40], lambda data: b"%!PS-Adobe"])
def test_damaged_photo_is_one_line_naming_it(damage, kind, tmp_path):
    members = {"cat/a.png": encoded(photo(0)), "cat/b.png": damage(encoded(photo(1)))}
    with pytest.raises(ImagesError, match=r"cat/b\.png cannot be read") as caught:
        read_either(kind, tmp_path, members)
    assert "\n" not in str(caught.value)


def giant_png(side):
    """A PNG that is small on disk and declares `side` x `side` pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [20_000, 2_000_000])
@pytest.mark.parametrize("spec", [None, RGB])
def test_decompression_bomb_is_refused_by_its_header(side, spec, tmp_path):
    write(tmp_path, "cat/a.png", giant_png(side))
    with pytest.raises((ImagesError, MismatchError), match=r"a\.png"):
        load_images(tmp_path, spec)


def test_zip_member_larger_than_a_photo_is_refused_before_unpacking(tmp_path, monkeypatch):
    monkeypatch.setattr(zsq.images.photos, "MAX_FILE_BYTES", 1000)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/a.png", b"\0" * 100_000)
    with pytest.raises(ImagesError, match="100000 bytes unpacked"):
        load_images(path)


def test_more_than_fits_is_refused(tmp_path, monkeypatch):
    write(tmp_path, "cat/a.png", encoded(photo(0)))
    monkeypatch.setattr(zsq.images.photos, "MAX_SET_BYTES", 89)
    with pytest.raises(ImagesError, match="GiB"):
        load_images(tmp_path)


@pytest.mark.parametrize("data", [b"", b"no zip", b"PK\x05\x06" + b"\0" * 18])
def test_zips_without_images_are_refused(data, tmp_path):
    write(tmp_path, "a.zip", data)
    with pytest.raises(ImagesError, match=r"a\.zip"):
        load_images(tmp_path / "a.zip")


def test_encrypted_zip_is_one_line(tmp_path):
    path = zipped(tmp_path / "a.zip", {"cat/a.png": encoded(photo(0))})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(ImagesError, match="encrypted"):
        load_images(path)


@pytest.mark.parametrize("name", ["nothing", "empty", "file.txt"])
def test_what_is_no_source_is_wrong_usage(name, tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path, "file.txt", b"text")
    with pytest.raises(ImagesError, match=name) as caught:
        load_images(str(tmp_path / name))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", ["folders", "zip"])
def test_photos_alone_have_no_label(kind, tmp_path):
    photos = [photo(seed) for seed in range(3)]
    names = ["c.png", "a.png", "b.png"]
    images = read_either(kind, tmp_path, {n: encoded(p) for n, p in zip(names, photos, strict=True)})
    np.testing.assert_array_equal(images.pixels.numpy(), as_pixels(*[photos[i] for i in (1, 2, 0)]))
    assert images.labels.tolist() == [-1, -1, -1] and images.labels.dtype == torch.int64
    source = tmp_path / ("images.zip" if kind == "zip" else "images")
    np.testing.assert_array_equal(load_images(source, limit=1).pixels.numpy(), as_pixels(photos[1]))


def save_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_npz_is_read_as_stored(tmp_path):
    stored = np.stack([photo(seed) for seed in range(3)])
    images = load_images(
        save_npz(tmp_path / "a.npz", images=stored, labels=np.array([4, -1, 0], np.int8)), RGB
    )
    np.testing.assert_array_equal(images.pixels.numpy(), stored.transpose(0, 3, 1, 2))
    assert images.pixels.is_contiguous()
    assert images.labels.tolist() == [4, -1, 0]
    unlabelled = load_images(save_npz(tmp_path / "b.npz", images=stored))
    assert unlabelled.labels.tolist() == [-1, -1, -1]


NPZ_REFUSED = {
    "no images": {"pictures": np.zeros((1, 6, 5, 3), np.uint8)},
    "float": {"images": np.zeros((1, 6, 5, 3))},
    "no channels": {"images": np.zeros((1, 6, 5), np.uint8)},
    "empty": {"images": np.zeros((0, 6, 5, 3), np.uint8)},
    "objects": {"images": np.array([{}, {}], dtype=object)},
    "float labels": {"images": np.zeros((1, 6, 5, 3), np.uint8), "labels": np.zeros(1)},
    "too many labels": {"images": np.zeros((1, 6, 5, 3), np.uint8), "labels": np.zeros(2, np.int64)},
}


@pytest.mark.parametrize("case", NPZ_REFUSED)
def test_other_arrays_are_refused(case, tmp_path):
    with pytest.raises(ImagesError, match=r"a\.npz") as caught:
        load_images(save_npz(tmp_path / "a.npz", **NPZ_REFUSED[case]))
    assert "\n" not in str(caught.value)


def test_damaged_npz_is_one_line(tmp_path):
    path = save_npz(tmp_path / "a.npz", images=np.zeros((4, 6, 5, 3), np.uint8))
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(ImagesError, match=r"a\.npz cannot be read"):
        load_images(path)


def test_npz_that_declares_more_than_it_holds_is_refused(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 64, 64, 3), }"
    header += b" " * (117 - len(header)) + b"\n"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 100
    with pytest.raises(ImagesError, match=r"a\.npz cannot be read"):
        load_images(zipped(tmp_path / "a.npz", {"images.npy": member}))


@pytest.mark.parametrize("spec", [GREY, RGB.model_copy(update={"size": (5, 6)})])
def test_arrays_and_shards_of_another_shape_are_refused(spec, tmp_path, shards):
    path = save_npz(tmp_path / "a.npz", images=np.zeros((1, 6, 5, 3), np.uint8))
    expected = "x".join(map(str, spec.shape))
    for source in (path, shards):
        with pytest.raises(MismatchError, match=f"3x6x5.*{expected}"):
            load_images(source, spec)


@pytest.fixture
def shards(tmp_path):
    random = np.random.default_rng(0)
    for index in range(2):
        content = ShardContent(
            random.integers(0, 256, (4, *RGB.shape), dtype=np.uint8),
            np.arange(4) - 1,
            random.normal(size=(4, 3)).astype(np.float32),
            np.ones(4, np.float32),
        )
        origin = ShardProvenance("t", "0" * 64, RGB, "noise", {}, 0, (index,), 4 * index, "none")
        write_shard(tmp_path / "run" / "shards" / shard_name(index), content, origin)
    return tmp_path / "run"


def test_shards_carry_their_provenance(shards):
    for folder in (shards, shards / "shards"):
        images = load_images(folder, RGB)
        assert images.is_shards
        assert images.provenance.method == "noise"
        assert images.pixels.shape == (8, 3, 6, 5)
        assert images.labels.tolist() == [-1, 0, 1, 2] * 2
        assert images.source == str(folder)


def test_damaged_shard_stays_a_shard_error(shards):
    path = shards / "shards" / shard_name(1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ShardError, match="shard-00001"):
        load_images(shards)


def test_limit_spreads_over_the_source(tmp_path, shards):
    for label in range(3):
        for index in range(4):
            write(tmp_path / "c", f"{label}/{index}.png", encoded(photo(10 * label + index)))
    images = load_images(tmp_path / "c", limit=6)
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(images.pixels[3].numpy(), as_pixels(photo(12))[0])
    assert len(load_images(tmp_path / "c", limit=100)) == 12
    assert torch.equal(load_images(shards, limit=2).pixels, load_images(shards).pixels[[0, 4]])
    npz = save_npz(tmp_path / "a.npz", images=np.zeros((10, 6, 5, 3), np.uint8), labels=np.arange(10))
    assert load_images(npz, limit=3).labels.tolist() == [0, 3, 6]
    with pytest.raises(OptionError, match="at least 1"):
        load_images(npz, limit=0)


@pytest.mark.data
def test_real_zip_is_fast_and_balanced(data_folder):
    start = time.process_time()
    images = load_images(data_folder / "cifar10_jpeg" / "train20000.zip")
    assert time.process_time() - start < 20
    assert images.pixels.shape == (20_000, 3, 32, 32)
    assert images.labels.bincount().tolist() == [2000] * 10


@pytest.mark.data
def test_real_npz_and_original_photos(data_folder):
    digits = load_images(
        data_folder / "cifar10" / "test1000.npz", ImageSpec(size=(32, 32), mean=(0,) * 3, std=(1,) * 3)
    )
    assert digits.labels[:4].tolist() == [3, 8, 8, 0]  # the published order: cat, ship, ship, airplane
    photos = load_images(data_folder / "tiny_imagenet" / "train2000.zip", limit=200)
    assert photos.labels.tolist() == list(range(200))
