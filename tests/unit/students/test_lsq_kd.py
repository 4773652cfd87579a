"""LSQ with distillation on the embedded digits teacher."""

import copy

import pytest
import torch
from torch import nn

from zsq.contract import Teacher
from zsq.core.errors import MismatchError
from zsq.core.imagespec import ImageSpec
from zsq.core.runtime import Runtime
from zsq.quantizers.grids import FakeQuantizer
from zsq.students import create
from zsq.tasks import TASKS
from zsq.widths import Bits


def fit(teacher, images, bits, first_last=8, seed=0, runtime=None, log=None, **options):
    student = create("lsq-kd", teacher.spec, {"flip": False, **options}, runtime or Runtime())
    return student.fit(teacher, images, Bits.parse(bits), first_last=first_last, seed=seed, log=log)


@torch.no_grad()
def logits(model, pixels):
    return model.logits(model.spec.pixels_to_standard(pixels))


class Mapped(nn.Module):
    """A network whose output is inside a dict and a list."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        found = self.network(x)
        return {"boxes": found[:, :3], "more": [found[:, 3:]]}


class Losses:
    def __init__(self):
        self.amount, self.losses = 0, []

    def advance(self, amount, **values):
        self.amount += amount
        self.losses.append(values["loss"])


def test_w8a8_without_training_is_as_good_as_float(digits, images, accuracy):
    assert accuracy(fit(digits, images, "W8A8", iterations=0)) >= accuracy(digits) - 0.3


def test_training_lowers_the_loss_and_mends_two_bits(digits, images, accuracy):
    log = Losses()
    before = accuracy(fit(digits, images, "W2A4", iterations=0))
    student = fit(digits, images, "W2A4", iterations=60, batch=64, log=log)
    assert log.amount == 60 * 64 and len(log.losses) == 3
    assert log.losses[-1] < log.losses[0] / 2
    assert accuracy(student) > max(before + 5, 90)


@pytest.fixture(scope="module")
def trained(digits, images):
    return fit(digits, images, "W3A3", iterations=5, batch=32, seed=1)


def test_same_seed_same_student_and_other_seed_another(digits, images, trained):
    again = fit(digits, images, "W3A3", iterations=5, batch=32, seed=1)
    other = fit(digits, images, "W3A3", iterations=5, batch=32, seed=2)
    for name, tensor in trained.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name]), name
    assert not torch.equal(logits(trained, images), logits(other, images))


def test_the_global_generator_is_not_touched(digits, images):
    before = torch.get_rng_state()
    fit(digits, images, "W3A3", iterations=1, batch=8)
    assert torch.equal(before, torch.get_rng_state())


def test_from_four_bits_statistics_of_batch_norm_stay_and_its_affine_part_trains(digits, images):
    student = fit(digits, images, "W4A4", iterations=2, batch=16)
    before, after = digits.network.state_dict(), student.network.state_dict()
    for name in before:
        if "running" in name or "num_batches" in name:
            assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["bn1.weight"], after["bn1.weight"])
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])


def test_below_four_bits_statistics_of_batch_norm_follow_the_images(digits, images, trained):
    mean = digits.network.bn1.running_mean
    assert not torch.equal(mean, trained.network.get_buffer("bn1.running_mean"))
    assert not any(module.training for module in trained.network.modules())
    frozen = fit(digits, images, "W3A3", iterations=2, batch=16, batch_norm="frozen")
    assert torch.equal(mean, frozen.network.get_buffer("bn1.running_mean"))


def test_teacher_is_bit_identical_afterwards(digits, images):
    before = copy.deepcopy(digits.network.state_dict())
    fit(digits, images, "W4A4", iterations=2, batch=16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in digits.network.state_dict().items())
    assert not any(
        parameter.requires_grad or parameter.grad is not None for parameter in digits.network.parameters()
    )


def test_student_is_frozen_and_its_steps_are_positive_and_learned(digits, images, trained):
    assert not any(parameter.requires_grad for parameter in trained.network.parameters())
    steps = {n: m.step for n, m in trained.network.named_modules() if isinstance(m, FakeQuantizer)}
    start = fit(digits, images, "W3A3", iterations=0).network
    assert steps and all((step > 0).all() for step in steps.values())
    assert all(not torch.equal(step, start.get_submodule(name).step) for name, step in steps.items())


def test_grids_are_symmetric_per_channel_and_unsigned_after_relu(trained):
    modules = {n: m for n, m in trained.network.named_modules() if isinstance(m, FakeQuantizer)}
    weight, inputs = modules["block1.conv2.weight_quantizer"], modules["block1.conv2.input_quantizer"]
    assert (weight.lo, weight.hi, weight.step.numel()) == (-4, 3, 16)
    assert (inputs.lo, inputs.hi, inputs.step.numel()) == (0, 7, 1)
    assert all(module.zero_point.eq(0).all() for module in modules.values())
    by_name = {row.name: row for row in trained.tensors}
    assert by_name["conv1.weight"].bits == by_name["linear.input"].bits == 8
    weight_row = by_name["block1.conv2.weight"]
    assert (weight_row.bits, weight_row.num_scales, weight_row.signed) == (3, 16, True)


def toy(*layers):
    """A random classifier of digits: `layers`, then global pooling over their 4 channels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in layers:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    spec = ImageSpec(channels=1, size=(32, 32), mean=(0.5,), std=(0.5,))
    return Teacher("toy", network, spec, 4, "0" * 64)


def test_inputs_with_negative_values_get_a_signed_grid(images):
    teacher = toy(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3))
    student = fit(teacher, images[:8], "W4A4", first_last=None, iterations=0)
    assert student.network.get_submodule("1.input_quantizer").lo == -8


def test_w32a32_is_the_float_network(digits, images):
    student = fit(digits, images, "W32A32", iterations=5)
    torch.testing.assert_close(logits(student, images), logits(digits, images), rtol=1e-4, atol=1e-4)


def test_published_schedule_runs(digits, images):
    options = {
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "weight_decay": 1e-4,
        "temperature": 1,
        "ce_weight": 1,
        "batch_norm": "train",
    }
    log = Losses()
    fit(digits, images, "W4A4", iterations=40, batch=32, log=log, **options)
    assert log.losses[-1] < log.losses[0]


def test_bf16_and_fewer_images_than_a_batch(digits, images, accuracy):
    student = fit(digits, images[:20], "W8A8", iterations=3, batch=32, runtime=Runtime(precision="bf16"))
    assert accuracy(student) > 95


@pytest.mark.parametrize("task", ["embed", "image", "segment", "detect"])
def test_other_tasks_are_trained_by_their_own_loss(images, task):
    """From two bits, on outputs as the network returns them: a tensor, or a dict for a detector."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, 1)
        )
    if task == "embed":
        network.append(nn.Flatten())
    if task == "detect":
        network = Mapped(network)
    spec = ImageSpec(channels=1, size=(32, 32), mean=(0.3,), std=(0.3,))
    num_outputs = {"detect": None, "embed": 64}.get(task, 4)
    teacher = Teacher("toy", network, spec, num_outputs, "0", task=TASKS[task]())

    def distance(student):
        return teacher.task.loss(logits(student, images), logits(teacher, images)).item()

    start = fit(teacher, images, "W2A4", None, iterations=0)
    student = fit(teacher, images, "W2A4", None, iterations=40, batch=64, learning_rate=1e-2, shift=0)
    assert distance(student) < 0.7 * distance(start)


def test_a_task_without_a_loss_is_refused(digits, images):
    teacher = Teacher("toy", digits.network, digits.spec, None, "0", task=TASKS["other"]())
    with pytest.raises(MismatchError, match=r"'other', which has no loss .*; use student ptq"):
        fit(teacher, images, "W4A4")
