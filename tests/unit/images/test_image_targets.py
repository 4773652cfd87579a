"""What a network should make of each image: `targets` of an .npz."""

import numpy as np
import pytest
import torch

from zsq.core.errors import ImagesError
from zsq.images.sources import load_images

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
LARGER = RANDOM.integers(0, 256, (5, 8, 12, 3), dtype=np.uint8)
MASKS = RANDOM.integers(0, 4, (5, 4, 6), dtype=np.uint8)


def saved(folder, **arrays):
    np.savez(folder / "set.npz", **arrays)
    return folder / "set.npz"


@pytest.mark.parametrize("targets", [LARGER, MASKS], ids=["images", "masks"])
def test_targets_stand_beside_their_images_in_every_choice(tmp_path, targets):
    images = load_images(saved(tmp_path, images=IMAGES, targets=targets))
    wanted = torch.from_numpy(targets if targets.ndim == 3 else targets.transpose(0, 3, 1, 2).copy())
    assert torch.equal(images.targets, wanted) and images.targets.is_contiguous()
    assert torch.equal(images.subset([3, 1]).targets, wanted[[3, 1]])
    (drawn,) = images.disjoint_sets(1, 5, 0)
    rows = [(images.pixels == one).flatten(1).all(1).nonzero().item() for one in drawn.pixels]
    assert torch.equal(drawn.targets, wanted[rows])
    fewer = load_images(tmp_path / "set.npz", limit=2)
    assert fewer.targets.shape == (2, *wanted.shape[1:])
    assert (images.labels == -1).all()


@pytest.mark.parametrize("dtype", [np.int64, np.float16, np.float64])
@pytest.mark.parametrize("shape", [(5,), (5, 7)])
def test_targets_may_be_numbers(dtype, shape, tmp_path):
    targets = RANDOM.normal(0, 100, shape).astype(dtype)
    images = load_images(saved(tmp_path, images=IMAGES, targets=targets))
    assert torch.equal(images.targets, torch.from_numpy(targets))


def test_targets_have_the_layout_of_the_images(tmp_path):
    planes = IMAGES.transpose(0, 3, 1, 2)
    images = load_images(saved(tmp_path, images=planes, targets=LARGER.transpose(0, 3, 1, 2)))
    assert images.targets.shape == (5, 3, 8, 12)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (MASKS[:4], r"`targets` of shape \(4, 4, 6\); expected one for each of 5 images"),
        (MASKS[:, :0], r"`targets` of shape \(5, 0, 6\)"),
        (MASKS.astype(bool), "`targets` bool .*expected uint8, signed integers or floats"),
        (np.uint8(3), r"`targets` of shape \(\)"),
    ],
)
def test_other_targets_are_refused(tmp_path, targets, message):
    with pytest.raises(ImagesError, match=message):
        load_images(saved(tmp_path, images=IMAGES, targets=targets))
