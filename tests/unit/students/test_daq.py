"""DAQ on small networks whose output is an image."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_students import fit, outputs
from torch import nn
from toys import conv_bn, shared_teacher, structured_images

import zsq
from zsq.core.errors import StudentFileError
from zsq.core.runtime import Runtime
from zsq.quantizers.distribution import AroundMean, FromZero, HalfSteps
from zsq.saved.cost import student_cost
from zsq.students import create
from zsq.widths import Bits


class Block(nn.Module):
    """A residual block with a gate, before an upsampler."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.head = nn.Conv2d(channels, 8, 3, padding=1)
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.join, self.up = nn.Conv2d(16, 8, 1), nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.ReLU())
        self.tail = nn.Conv2d(8, outputs, 3, padding=1)

    def forward(self, x):
        x = self.head(x)
        hidden = torch.relu(self.first(x))
        y = self.second(hidden)
        x = x + y * self.gate(y)
        x = self.join(torch.cat([torch.relu(x), hidden], 1))
        return self.tail(nn.functional.pixel_shuffle(self.up(x), 2))


@pytest.fixture(scope="module")
def teacher():
    return shared_teacher(Block, outputs=3, task="image")


@pytest.fixture(scope="module")
def pixels(teacher):
    return teacher.spec.standard_to_pixels(structured_images((8, *teacher.spec.shape)))


def test_the_graph_says_what_is_behind_a_relu(teacher, pixels):
    network = fit("daq", teacher, pixels, iterations=0).network
    kinds = {
        name: type(network.get_submodule(f"{name}.input_quantizer"))
        for name in ("first", "second", "gate.1", "join", "up.0", "tail")
    }
    rectified = {"second", "join", "tail"}
    assert kinds == {name: FromZero if name in rectified else AroundMean for name in kinds}
    assert isinstance(network.head.weight_quantizer, HalfSteps)


def test_first_and_last_layer_are_float_unless_asked_for(teacher, pixels):
    rows = {row.name for row in fit("daq", teacher, pixels, first_last=None, iterations=0).tensors}
    assert not rows & {"head.weight", "tail.weight", "tail.input"} and "up.0.weight" in rows


def test_without_training_the_images_do_not_matter(teacher, pixels):
    noise = torch.randint(0, 256, pixels.shape, dtype=torch.uint8)
    one, other = (fit("daq", teacher, images, iterations=0) for images in (pixels, noise))
    tensors = other.network.state_dict()
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in one.network.state_dict().items())
    alone = torch.cat([outputs(one, pixels[i : i + 1]) for i in range(len(pixels))])
    torch.testing.assert_close(outputs(one, pixels), alone)


def test_training_brings_it_nearer_to_the_teacher(teacher, pixels):
    wanted = outputs(teacher, pixels)
    errors = []
    for iterations in (0, 40):
        options = {"iterations": iterations, "learning_rate": 2e-3, "shift": 0, "flip": False}
        student = create("daq", teacher.spec, options, Runtime())
        fitted = student.fit(teacher, pixels, Bits(3, 3))
        errors.append((outputs(fitted, pixels) - wanted).abs().mean().item())
    assert errors[1] < 0.9 * errors[0]


def test_eight_bits_are_near_to_float(teacher, pixels):
    wanted, given = (
        outputs(teacher, pixels),
        outputs(fit("daq", teacher, pixels, "W8A8", iterations=0), pixels),
    )
    assert (given - wanted).square().mean() < 1e-3 * wanted.var()


def test_batch_norm_is_kept(pixels):
    def normed(channels, outputs):
        return nn.Sequential(conv_bn(channels, 8), conv_bn(8, 8), nn.Conv2d(8, outputs, 1))

    teacher = shared_teacher(normed, outputs=3, task="image")
    fitted = fit("daq", teacher, pixels, "W4A4", iterations=2)
    assert [m for m in fitted.network.modules() if isinstance(m, nn.BatchNorm2d)]


def test_saved_and_counted(teacher, pixels, tmp_path):
    fitted = fit("daq", teacher, pixels, "W2A3", iterations=2)
    zsq.save_student(fitted, teacher, tmp_path)
    assert torch.equal(outputs(zsq.load_student(tmp_path), pixels), outputs(fitted, pixels))
    cost = {layer.name: layer for layer in student_cost(fitted).layers}
    assert cost["second"].bit_operations == cost["second"].macs * 2 * 3


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("second.input_quantizer.axis", 0.0),
        ("second.input_quantizer.axis", float("nan")),
        ("second.input_quantizer.scale_bits", 2.5),
        ("second.input_quantizer.scale_bits", 900.0),
        ("second.weight_quantizer.step", -1.0),
    ],
)
def test_hostile_grids_are_one_line(teacher, pixels, tmp_path, part, value):
    zsq.save_student(fit("daq", teacher, pixels, iterations=0), teacher, tmp_path)
    tensors = load_file(tmp_path / "student.safetensors")
    tensors[part] = torch.full_like(tensors[part], value)
    save_file(tensors, tmp_path / "student.safetensors")
    _restamp(tmp_path)
    with pytest.raises(StudentFileError) as caught:
        zsq.load_student(tmp_path)
    assert "quantizer' has " in str(caught.value) and "\n" not in str(caught.value)


def _restamp(folder):
    """The record's sum of the tensor file as it is now."""
    path = folder / "student.json"
    record = json.loads(path.read_text())
    digest = hashlib.sha256((folder / "student.safetensors").read_bytes()).hexdigest()
    path.write_text(json.dumps(record | {"tensors_sha256": digest}))
