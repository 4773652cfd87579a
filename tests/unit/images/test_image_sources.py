"""Image sets in memory, and data sets that are given by name."""

import struct

import numpy as np
import pytest
import torch

from zsq.core.errors import ImagesError, MismatchError
from zsq.core.imagespec import ImageSpec
from zsq.images.imageset import ImageSet
from zsq.images.sources import load_images


def numbered(count):
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImageSet(pixels, torch.arange(count), "numbers")


def test_subset_takes_images_with_their_labels():
    chosen = numbered(10).subset([7, 2, 2])
    assert chosen.labels.tolist() == chosen.pixels.flatten().tolist() == [7, 2, 2]
    assert chosen.source == "numbers"


def test_disjoint_sets_share_no_image_and_follow_the_seed():
    sets = numbered(100).disjoint_sets(3, 30, seed=5)
    drawn = [set(each.labels.tolist()) for each in sets]
    assert [len(each) for each in drawn] == [30, 30, 30]
    assert len(set.union(*drawn)) == 90
    again = numbered(100).disjoint_sets(2, 30, seed=5)
    assert [each.labels.tolist() for each in again] == [each.labels.tolist() for each in sets[:2]]
    other = numbered(100).disjoint_sets(3, 30, seed=6)
    assert other[0].labels.tolist() != sets[0].labels.tolist()


def test_too_few_images_for_disjoint_sets_is_wrong_usage():
    assert len(numbered(90).disjoint_sets(3, 30, seed=0)) == 3
    with pytest.raises(ImagesError, match="89 images; expected 90 for 3 disjoint sets of 30") as caught:
        numbered(89).disjoint_sets(3, 30, seed=0)
    assert caught.value.exit_code == 2


def test_embedded_digits_by_split():
    sizes = {split: len(load_images(f"embedded:digits:{split}")) for split in ("train", "val", "test")}
    assert sum(sizes.values()) == 1797
    digits = load_images("embedded:digits")
    assert len(digits) == sizes["train"]
    assert digits.pixels.shape[1:] == (1, 32, 32)
    for source in ("embedded:letters", "embedded:digits:all"):
        with pytest.raises(ImagesError):
            load_images(source)
    with pytest.raises(MismatchError, match=r"1x32x32.*3x6x5"):
        load_images("embedded:digits", ImageSpec(size=(6, 5), mean=(0.5,) * 3, std=(0.25,) * 3))


def test_torchvision_data_set_by_split(tmp_path):
    """FashionMNIST's files are plain: a 16-byte header and bytes for images, 8 bytes and bytes for labels."""
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    stored = {}
    for prefix, split, count in (("train", "train", 6), ("t10k", "test", 3)):
        stored[split] = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        labels = struct.pack(">II", 0x801, count) + bytes(range(count))
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + stored[split].tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    spec = ImageSpec(channels=1, size=(28, 28), mean=(0.5,), std=(0.25,))
    for source, split in (("", "train"), (":train", "train"), (":test", "test")):
        images = load_images(f"torchvision:FashionMNIST:{tmp_path}{source}", spec)
        np.testing.assert_array_equal(images.pixels[:, 0].numpy(), stored[split])
        assert images.labels.tolist() == list(range(len(stored[split])))
    assert load_images(f"torchvision:FashionMNIST:{tmp_path}", spec, limit=2).labels.tolist() == [0, 3]
    with pytest.raises(ImagesError, match="no split 'val'"):
        load_images(f"torchvision:FashionMNIST:{tmp_path}:val")


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("torchvision:CIFAR10:{}", "downloads no images"),
        ("torchvision:CIFA10:{}", "CIFAR10"),
        ("torchvision:FakeData:{}", "folder"),
        ("torchvision:CIFAR10", "NAME:ROOT"),
        ("torchvision:CocoDetection:{}", "annFile"),
        ("torchvision:__name__:{}", "no data set"),
    ],
)
def test_torchvision_refusals_are_one_line(source, word, tmp_path):
    with pytest.raises(ImagesError, match=word) as caught:
        load_images(source.format(tmp_path))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
