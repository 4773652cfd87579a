"""Cards of detectors: the functions beside the network that make boxes of its raw maps."""

import pytest
import torch

from zsq.core.errors import UsageError
from zsq.core.runtime import Runtime
from zsq.images.sources import images_for
from zsq.tasks.detect import Detect
from zsq.teacher import load_teacher

MODULE = """
import torch
from torch import nn

IMPORTED = 0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4 + 3, 2, stride=2)

    def forward(self, x):
        maps = self.layer(x)
        return {"boxes": maps[:, :4], "scores": [maps[:, 4:]]}


def dense(outputs):
    boxes = outputs["boxes"].flatten(2).transpose(1, 2).sigmoid() * 3
    corners = torch.cat([boxes[..., :2], boxes[..., :2] + 1 + boxes[..., 2:]], -1)
    return corners, outputs["scores"][0].flatten(2).transpose(1, 2).sigmoid()


def decode(outputs):
    images = []
    for boxes, scores in zip(*dense(outputs)):
        best, labels = scores.max(1)
        images.append({"boxes": boxes, "scores": best, "labels": labels})
    return images


def loss(outputs, targets):
    return {"all": outputs["boxes"].sum()}


def wrong_decode(outputs):
    return outputs["scores"]


def wrong_dense(outputs):
    return outputs["nothing"]


def flat(outputs):
    return outputs["boxes"], outputs["scores"][0]
"""

CARD = """
architecture = "my_detector:Net"
weights = "weights.pt"
task = "detect"
FIELDS
[image]
size = [6, 8]
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
"""
ALL = """decode = "my_detector:decode"
dense = "my_detector:dense"
loss = "my_detector:loss"
"""


@pytest.fixture
def load(tmp_path):
    def load(fields):
        (tmp_path / "my_detector.py").write_text(MODULE)
        torch.save(
            torch.nn.ModuleDict({"layer": torch.nn.Conv2d(3, 7, 2)}).state_dict(), tmp_path / "weights.pt"
        )
        (tmp_path / "teacher.toml").write_text(CARD.replace("FIELDS", fields))
        return load_teacher(f"file:{tmp_path / 'teacher.toml'}")

    return load


def test_each_function_is_optional(load):
    plain = load("").task
    assert plain == Detect()
    assert load("num_classes = 3").task == Detect(num_classes=3, labels=(0, 1, 2))
    decoding = load('decode = "my_detector:decode"').task
    assert decoding.decode is not None and decoding.dense is None and decoding.num_classes is None


def test_functions_come_from_the_module_of_the_network(load):
    teacher = load(ALL)
    task = teacher.task
    assert (task.num_classes, task.labels) == (3, (0, 1, 2))
    assert task.decode.__globals__ is task.dense.__globals__ is task.training_loss.__globals__
    assert type(teacher.network).__mro__[1].__module__ == task.decode.__module__
    outputs = teacher.logits(torch.zeros(2, 3, 6, 8))
    assert len(task.found(outputs, 2)) == 2
    assert teacher.num_outputs is None and teacher.num_classes is None


def test_names_that_stand_for_no_class_are_no_labels(load):
    task = load(ALL + 'classes = ["__background__", "cat", "N/A"]').task
    assert (task.num_classes, task.labels) == (3, (1,))
    assert load('num_classes = 4\nclasses = ["N/A", "cat", "N/A", "dog"]').task.labels == (1, 3)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        (
            'decode = "my_detector:nothing"',
            "decode 'my_detector:nothing' of .*teacher.toml failed with AttributeError",
        ),
        ('decode = "no_module:decode"', "ModuleNotFoundError"),
        ('decode = "my_detector:IMPORTED"', "is a int; expected a callable"),
        ('decode = "my_detector"', "decode: String should match"),
        ('decode = "my_detector:wrong_decode"', "without boxes, scores and labels"),
        ('decode = "my_detector:wrong_dense"', "decode failed with KeyError"),
        ('dense = "my_detector:wrong_dense"', "dense failed with KeyError"),
        ('dense = "my_detector:decode"', "dense returned a list; expected two tensors"),
        ('dense = "my_detector:flat"', "dense returned shapes"),
        (ALL + "num_classes = 4", "scores of 3 classes; expected num_classes = 4"),
        ('classes = ["cat", "cat", "dog"]', "classes lists 2 different names, expected one for each .* 3"),
        ('num_classes = 3\nclasses = ["cat", "dog"]', "num_classes = 3"),
        ("embedding_size = 3", "needs no embedding_size"),
        ("border = 3", "border is for task 'image'"),
    ],
)
def test_a_wrong_card_is_one_line(load, fields, word):
    with pytest.raises(UsageError, match=word) as caught:
        load(fields)
    assert "\n" not in str(caught.value)


def test_only_detectors_have_these_functions(load, tmp_path):
    load("")
    path = tmp_path / "teacher.toml"
    path.write_text(
        path.read_text().replace('task = "detect"', 'num_classes = 3\ndecode = "my_detector:decode"')
    )
    with pytest.raises(UsageError, match="decode is for task 'detect', not 'classify'"):
        load_teacher(f"file:{path}")


@pytest.mark.data
def test_fastestdet_measures_what_is_known_of_it(data_folder):
    teacher = load_teacher(f"file:{data_folder / 'detector' / 'fastestdet.toml'}")
    images = images_for(teacher, data_folder / "detector" / "eval77.zip", labelled=True)
    assert len(images.boxes) == 77 and sum(len(each["labels"]) for each in images.boxes) == 535
    meter = teacher.task.meter()
    with torch.inference_mode(), Runtime().in_force():
        for first in range(0, 77, 16):
            rows = slice(first, first + 16)
            outputs = teacher.network(teacher.spec.pixels_to_norm(images.pixels[rows]))
            meter.add(outputs, outputs, images, rows)
    found = meter.scores().metrics
    assert found["map"] == pytest.approx(19.0, abs=0.05) and found["map50"] == pytest.approx(35.1, abs=0.05)
    assert found["agreement_ap"] == found["agreement_ap25"] == 100
    assert found["sqnr"] == 150
