"""The shipped digits: images against numpy, the split, and the shipped weights' accuracy."""

import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from zsq.core.errors import ImagesError
from zsq.graph import capture
from zsq.teacher import load_teacher
from zsq.teacher.digits import WEIGHTS_PATH, load_digits_images

SPLITS = ("train", "val", "test")


def enlarged(image: np.ndarray) -> np.ndarray:
    """Bilinear 8x8 -> 32x32 with half-pixel centres and repeated borders, as uint8 0..255."""
    matrix = np.zeros((32, 8))
    for row in range(32):
        source = min(max((row + 0.5) / 4 - 0.5, 0), 7)
        low = int(source)
        matrix[row, low] += 1 - (source - low)
        matrix[row, min(low + 1, 7)] += source - low
    return np.rint(matrix @ image @ matrix.T * 255 / 16).astype(np.uint8)


def test_images_and_split_follow_the_stated_rule():
    digits = load_digits()
    seen = dict.fromkeys(range(10), 0)
    wanted = {split: ([], []) for split in SPLITS}
    for image, label in zip(digits.images, digits.target, strict=True):
        part = seen[label] % 15
        split = "train" if part < 9 else "val" if part < 11 else "test"
        seen[label] += 1
        wanted[split][0].append(enlarged(image))
        wanted[split][1].append(label)
    for split in SPLITS:
        pixels, labels = load_digits_images(split)
        assert (pixels.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert np.array_equal(pixels[:, 0].numpy(), np.stack(wanted[split][0]))
        assert labels.tolist() == wanted[split][1]
    assert [len(wanted[split][1]) for split in SPLITS] == [1089, 238, 470]


def test_no_image_is_in_two_splits():
    seen = [{image.numpy().tobytes() for image in load_digits_images(split)[0]} for split in SPLITS]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_train_has_three_disjoint_sets_of_256():
    assert len(load_digits_images("train")[0]) >= 3 * 256


def test_unknown_split():
    with pytest.raises(ImagesError, match=r"split 'all'.*train, val, test"):
        load_digits_images("all")


def test_spec_holds_the_moments_of_the_train_split():
    unit = load_digits_images("train")[0].numpy().astype(np.float64) / 255
    spec = load_teacher("embedded:digits").spec
    assert spec.mean == pytest.approx([unit.mean()], abs=1e-4)
    assert spec.std == pytest.approx([unit.std()], abs=1e-4)


def test_shipped_weights_name_98_percent_of_the_test_digits():
    teacher = load_teacher("embedded:digits")
    pixels, labels = load_digits_images("test")
    accuracy = (
        100 * (teacher.network(teacher.spec.pixels_to_norm(pixels)).argmax(1) == labels).double().mean()
    )
    assert accuracy >= 98
    assert teacher.expected_accuracy == pytest.approx(float(accuracy), abs=0.3)


def test_shipped_file_is_small_and_is_what_the_teacher_reports():
    content = WEIGHTS_PATH.read_bytes()
    assert len(content) < 500_000
    assert load_teacher("embedded:digits").weights_sha256 == hashlib.sha256(content).hexdigest()


def test_shipped_batch_norm_statistics_are_those_of_the_train_split():
    teacher = load_teacher("embedded:digits")
    inputs = {}
    for name, module in teacher.network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
    with torch.no_grad():
        teacher.network(teacher.spec.pixels_to_norm(load_digits_images("train")[0]))
    assert len(inputs) == 9
    for name, activations in inputs.items():
        norm = teacher.network.get_submodule(name)
        values = activations.double().numpy()
        deviation = np.sqrt(norm.running_var.numpy())
        assert np.abs(values.mean((0, 2, 3)) - norm.running_mean.numpy()).max() < 0.02 * deviation.max()
        assert values.var((0, 2, 3)) == pytest.approx(norm.running_var.numpy(), rel=0.05, abs=1e-3)


def test_the_captured_graph_computes_the_same():
    network = load_teacher("embedded:digits").network
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(capture(network, images)(images), network(images))
