"""The shipped detector: canvases and their boxes, what the maps mean, and the shipped weights."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from zsq.core.boxes import iou
from zsq.core.errors import ImagesError
from zsq.tasks.average_precision import average_precision, match
from zsq.teacher.digits_canvases import load_digits_canvases, place_digits
from zsq.teacher.digits_detector import (
    DETECTOR_SPEC,
    LEAST_SCORE,
    WEIGHTS_PATH,
    DigitsDetector,
    decode,
    dense,
)


@pytest.fixture(scope="module")
def network():
    network = DigitsDetector()
    network.load_state_dict(load_file(WEIGHTS_PATH))
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def train():
    return load_digits_canvases("train")


@pytest.fixture(scope="module")
def test():
    return load_digits_canvases("test")


def maps(classes=-20.0, distances=0.0, centreness=20.0):
    shape = {"classes": (10, classes), "distances": (4, distances), "centreness": (1, centreness)}
    return {name: torch.full((1, count, 12, 12), value) for name, (count, value) in shape.items()}


def test_canvases_are_the_same_bytes_everywhere(train):
    pixels, targets = train
    assert (pixels.shape, pixels.dtype) == ((512, 1, 96, 96), torch.uint8)
    assert hashlib.sha256(pixels.numpy().data).hexdigest().startswith("ddf0faea0c66c6bd")
    assert sum(len(target["labels"]) for target in targets) == 1242


def test_a_canvas_does_not_depend_on_how_many_are_made(train):
    pixels, targets = place_digits("train", 3, seed=0)
    assert torch.equal(pixels, train[0][:3])
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(targets, train[1], strict=False))
    assert not torch.equal(pixels, place_digits("train", 3, seed=1)[0])


def test_boxes_are_inside_apart_and_around_the_brightest_pixels(test):
    pixels, targets = test
    for image, target in zip(pixels, targets, strict=True):
        boxes = target["boxes"]
        assert 1 <= len(boxes) <= 4 and boxes.dtype == torch.float32 and target["labels"].dtype == torch.int64
        assert (boxes >= 0).all() and (boxes <= 96).all() and (boxes[:, 2:] > boxes[:, :2]).all()
        assert torch.equal(iou(boxes, boxes) > 0, torch.eye(len(boxes), dtype=torch.bool))
        outside = image[0].clone()
        for x1, y1, x2, y2 in boxes.int().tolist():
            assert image[0, y1:y2, x1:x2].max() >= 110
            outside[y1:y2, x1:x2] = 0
        assert outside.max() < 110


def test_labels_are_of_all_classes(test):
    assert set(torch.cat([target["labels"] for target in test[1]]).tolist()) == set(range(10))


def test_unknown_split():
    with pytest.raises(ImagesError, match=r"split 'val' of embedded:digits-detector.*train, test"):
        load_digits_canvases("val")


def test_spec_holds_the_moments_of_the_train_canvases(train):
    unit = train[0].double() / 255
    assert DETECTOR_SPEC.mean == pytest.approx([unit.mean().item()], abs=1e-4)
    assert DETECTOR_SPEC.std == pytest.approx([unit.std().item()], abs=1e-4)


def test_dense_by_hand():
    outputs = maps(distances=(torch.tensor(2.0).exp() - 1).log().item())
    outputs["classes"][0, 3, 1, 2] = 0.0
    boxes, scores = dense(outputs)
    assert (boxes.shape, scores.shape) == ((1, 144, 4), (1, 144, 10))
    # The cell in row 1, column 2 has its centre at (20, 12); softplus gives 2 strides of 8 px each way.
    assert boxes[0, 14].tolist() == pytest.approx([4, -4, 36, 28], abs=1e-4)
    assert scores[0, 14, 3].item() == pytest.approx(0.5**0.5, abs=1e-4)
    assert scores[0].flatten().topk(2).values[1] < 1e-4


def test_decode_keeps_the_best_of_one_place_inside_the_canvas():
    outputs = maps(distances=2.0)
    outputs["classes"][0, 3, 1, 2] = 4.0
    outputs["classes"][0, 3, 1, 3] = 2.0
    outputs["classes"][0, 5, 9, 9] = 1.0
    (found,) = decode(outputs)
    assert found["labels"].tolist() == [3, 5]
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
    assert (found["boxes"] >= 0).all() and (found["boxes"] <= 96).all()
    assert len(decode(maps())[0]["labels"]) == 0
    assert dense(maps())[1].max() < LEAST_SCORE


def test_dense_has_a_gradient_to_every_map():
    outputs = {
        name: value.requires_grad_() for name, value in maps(classes=-200.0, centreness=-200.0).items()
    }
    boxes, scores = dense(outputs)
    (boxes.sum() + scores.sum()).backward()
    assert all(value.grad.isfinite().all() for value in outputs.values())
    assert outputs["distances"].grad.abs().min() > 0


def test_shipped_file_is_small():
    assert len(WEIGHTS_PATH.read_bytes()) < 200_000


def test_shipped_batch_norm_statistics_are_those_of_the_train_canvases(network, train):
    inputs, handles = {}, []
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            handles.append(
                module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
            )
    network(DETECTOR_SPEC.pixels_to_norm(train[0]))
    for handle in handles:
        handle.remove()
    assert len(inputs) == 10
    for name, activations in inputs.items():
        norm = network.get_submodule(name)
        var, mean = torch.var_mean(activations.double(), (0, 2, 3))
        assert torch.allclose(mean, norm.running_mean.double(), atol=1e-3)
        assert torch.allclose(var, norm.running_var.double(), rtol=1e-3)


def test_shipped_weights_reach_86_mean_average_precision(network, test):
    pixels, targets = test
    found = decode(network(DETECTOR_SPEC.pixels_to_norm(pixels)))
    assert 100 * average_precision(match(found, targets)).mean() == pytest.approx(86.4, abs=0.3)
