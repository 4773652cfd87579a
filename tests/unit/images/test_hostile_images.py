"""Files that a stranger sends: each is one line, and takes neither time nor memory."""

import lzma
import os
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import zsq
import zsq.images.photos
from zsq.core.errors import ImagesError, OptionError, WeightsError, ZsqError
from zsq.core.imagespec import ImageSpec
from zsq.core.photofit import PhotoFit
from zsq.images.sources import load_images

SPEC = ImageSpec(size=(4, 4), mean=(0.5,) * 3, std=(0.25,) * 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4), dtype=np.uint8)


def refused(source, tmp_path, error=ZsqError, match=None):
    """As a source of images and as what is imported: one line, exit code 1 or 2."""
    for call in (lambda: load_images(source, SPEC), lambda: zsq.import_images(source, tmp_path / "out")):
        with pytest.raises(error, match=match) as caught:
            call()
        assert "\n" not in str(caught.value) and caught.value.exit_code in (1, 2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", [".png", ".npz", ".npy", ".pt", ".safetensors", ".zip"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_not_read(suffix, kind, tmp_path):
    inside = tmp_path / "images"
    inside.mkdir()
    path = inside / f"a{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    refused(inside if suffix == ".png" else path, tmp_path)


def numpy_file(descr, shape=(2, 4, 4, 3), data=b"\0" * 96, header=None):
    header = header or f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-len(header) % 16) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


MEMBERS = {
    "bytes": numpy_file("|S1"),
    "text": numpy_file("<U1", data=b"\0" * 384),
    "struct": numpy_file([("a", "|u1")]),
    "nested struct": numpy_file([("a", "|u1", (2,))], data=b"\0" * 192),
    "datetime": numpy_file("<M8[s]", data=b"\0" * 768),
    "longdouble": numpy_file(np.dtype(np.longdouble).str, data=b"\0" * 1536),
    "complex": numpy_file("<c8", data=b"\0" * 768),
    "object": numpy_file("|O"),
    "unclosed header": numpy_file("", header="{'descr': '|u1', 'shape': (2, 4, 4, 3"),
    "unclosed text": numpy_file("", header="{'descr': '|u1"),
    "brackets": numpy_file("", header="{'descr': " + "(" * 5000),
    "more than is there": numpy_file("|u1", shape=(2**40, 4, 4, 3)),
    "negative": numpy_file("|u1", shape=(-2, 4, 4, 3)),
    "no header": b"\x93NUMPY",
    "another version": b"\x93NUMPY\x09\x00" + numpy_file("|u1")[8:],
    "nothing": b"",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("name", MEMBERS)
def test_arrays_that_are_no_images_are_refused(name, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        path.write_bytes(MEMBERS[name])
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", MEMBERS[name])
    refused(path, tmp_path, ImagesError, rf"a\{suffix}")


LABELS = {
    "floats": np.zeros(2),
    "text": np.array(["cat", "dog"]),
    "too many": np.zeros(3, np.int64),
    "beyond any class": np.array([0, 2**63], np.uint64),
    "negative": np.array([0, -2]),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_are_none_are_refused(name, tmp_path):
    np.savez(tmp_path / "a.npz", images=PIXELS.transpose(0, 2, 3, 1), labels=LABELS[name])
    refused(tmp_path / "a.npz", tmp_path, ImagesError, "labels")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for _ in range(2):
            archive.writestr("images.npy", numpy_file("|u1"))
    refused(tmp_path / "a.npz", tmp_path, ImagesError, "two members have one name")


@pytest.mark.parametrize("suffix", [".zip", ".npz"])
def test_damaged_lzma_members_are_one_line(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    content = numpy_file("|u1", data=bytes(range(96)))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("images.npy" if suffix == ".npz" else "cat/a.png", content)
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02") - 60
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive, pytest.raises((lzma.LZMAError, zipfile.BadZipFile, EOFError)):
        archive.read(archive.namelist()[0])
    refused(path, tmp_path, ImagesError, "cannot be read")


@pytest.mark.filterwarnings("ignore:Image size")
def test_photos_that_do_not_fit_into_memory_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(zsq.images.photos, "available_bytes", lambda: 2**30)
    for index in range(3):
        (tmp_path / "images" / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("L", (12_000, 12_000)).save(tmp_path / "images" / "cat" / f"{index}.png")
    with pytest.raises(ImagesError, match=r"3 images of 3x12000x12000, 1\.2 GiB; expected at most 0\.8 GiB"):
        load_images(tmp_path / "images")


def test_large_photos_are_not_decoded_where_they_do_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(zsq.images.photos, "available_bytes", lambda: 2**26)
    Image.new("RGB", (5000, 5000)).save(tmp_path / "a.png")
    with pytest.raises(ImagesError, match=r"a\.png is 5000x5000 px, 1 such at once, 0\.1 GiB"):
        load_images(tmp_path, SPEC, fit=PhotoFit())


def test_a_tensor_that_repeats_what_is_stored_is_refused(tmp_path):
    once = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    for name, content in (
        ("alone", once.expand(10**6, 3, 122, 123)),  # 45 GB
        ("dict", {"images": once.expand(10**6, 3, 122, 123)}),
        ("list", [once.expand(1, 3, 10_000, 10_000)] * 150),
    ):
        torch.save(content, tmp_path / f"{name}.pt")
        refused(tmp_path / f"{name}.pt", tmp_path, ImagesError, "every value stored")
    labels = torch.zeros(1, dtype=torch.int64).expand(10**10)
    torch.save({"images": torch.from_numpy(PIXELS), "labels": labels}, tmp_path / "labels.pt")
    refused(tmp_path / "labels.pt", tmp_path, ImagesError, "every value stored")


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(2, 3, 4, 4, dtype=torch.complex64),
        torch.zeros(2, 3, 4, 4, dtype=torch.bool),
        torch.zeros(2, 3, 4, 4, dtype=torch.float8_e4m3fn),
        torch.zeros(2, 3, 4, 4).to_sparse(),
        torch.zeros(2, 3, 4, 4, device="meta"),
        torch.quantize_per_tensor(torch.zeros(2, 3, 4, 4), 0.1, 0, torch.quint8),
        [torch.zeros(3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)],
        {"images": torch.zeros(2, 3, 4, 4), "labels": torch.zeros(2, dtype=torch.bfloat16)},
        {"images": torch.zeros(2, 3, 4, 4), "labels": [1, [2]]},
        {"images": torch.zeros(2, 3, 4, 4), "labels": "ab"},
        {"images": [[1, 2], [3]]},
        [],
        7,
    ],
    ids=str,
)
def test_tensors_of_other_kinds_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", tmp_path)


def test_a_checkpoint_that_unpacks_to_more_than_it_has_is_refused(tmp_path):
    torch.save(torch.zeros(1000, 3, 64, 64, dtype=torch.uint8), tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    refused(tmp_path / "a.pt", tmp_path, WeightsError, "unpacks to")


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".safetensors", ".npz"])
def test_plain_files_of_uint8_are_read_whatever_their_layout(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    for layout in ("nchw", "nhwc"):
        values = PIXELS if layout == "nchw" else np.ascontiguousarray(PIXELS.transpose(0, 2, 3, 1))
        if suffix == ".npy":
            np.save(path, values)
        elif suffix == ".npz":
            np.savez_compressed(path, images=values, labels=np.array([1, 0], np.int8))
        elif suffix == ".pt":
            torch.save({"images": torch.from_numpy(values), "labels": torch.tensor([1, 0])}, path)
        else:
            from safetensors.torch import save_file

            save_file({"images": torch.from_numpy(values)}, path)
        for spec in (SPEC, None):
            found = load_images(path, spec)
            np.testing.assert_array_equal(found.pixels.numpy(), PIXELS)
        assert found.labels.tolist() == ([1, 0] if suffix in (".npz", ".pt") else [-1, -1])
    assert load_images(path, SPEC, limit=1).pixels.shape == (1, 3, 4, 4)


def test_the_other_byte_order_is_read_as_it_is_meant(tmp_path):
    values = (PIXELS / 255).astype(">f4").transpose(0, 2, 3, 1)
    np.savez(tmp_path / "a.npz", images=values, labels=np.array([3, 1], ">i8"))
    with pytest.raises(ImagesError, match="float32"):
        load_images(tmp_path / "a.npz", SPEC)
    zsq.import_images(tmp_path / "a.npz", tmp_path / "out", mean=(0,), std=(1,))
    found = load_images(tmp_path / "out", SPEC)
    np.testing.assert_array_equal(found.pixels.numpy(), PIXELS)
    assert found.labels.tolist() == [3, 1]


def test_fortran_order_is_read_as_it_is_meant(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(PIXELS))
    np.testing.assert_array_equal(load_images(tmp_path / "a.npy", SPEC).pixels.numpy(), PIXELS)


def test_floats_are_for_the_import_command(tmp_path):
    np.save(tmp_path / "a.npy", (PIXELS / 255).astype(np.float32))
    with pytest.raises(ImagesError, match=r"holds float32; expected uint8 pixels.*zsq import SRC --mean"):
        load_images(tmp_path / "a.npy", SPEC)
    with pytest.raises(OptionError, match=r"no --mean and --std"):
        zsq.import_images(tmp_path / "a.npy", tmp_path / "out")
    zsq.import_images(tmp_path / "a.npy", tmp_path / "out", mean=(0,), std=(1,))
    np.testing.assert_array_equal(load_images(tmp_path / "out", SPEC).pixels.numpy(), PIXELS)
