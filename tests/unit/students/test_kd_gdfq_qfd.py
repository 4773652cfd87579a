"""Trained students other than lsq-kd, on the embedded digits teacher."""

import copy

import pytest
import torch
import torch.nn.functional as F
from toys import image_spec, make_teacher

from zsq.contract import Teacher
from zsq.core.errors import MismatchError, OptionError
from zsq.core.runtime import Runtime
from zsq.fitting.losses import distillation, imitation
from zsq.graph import capture
from zsq.quantizers.grids import FakeQuantizer
from zsq.quantizers.intervals import IntervalQuantizer
from zsq.students import create
from zsq.students.qfd import feature_reader, quantize_feature, with_feature
from zsq.tasks.embed import Embed
from zsq.widths import Bits

TRAINED = ("kd", "gdfq-ft", "qfd")
SHORT = {"iterations": 6, "batch": 32, "flip": False}


class Log:
    def __init__(self):
        self.losses = []

    def advance(self, amount, **values):
        self.losses.append(values["loss"])


def fit(name, teacher, images, bits, first_last=8, seed=0, log=None, **options):
    short = {**SHORT, "teacher_iterations": 0} if name == "qfd" else SHORT
    student = create(name, teacher.spec, {**short, **options}, Runtime())
    return student.fit(teacher, images, Bits.parse(bits), first_last=first_last, seed=seed, log=log)


@torch.no_grad()
def logits(model, pixels):
    return model.logits(model.spec.pixels_to_standard(pixels))


@pytest.mark.parametrize("name", TRAINED)
def test_w8a8_without_training_is_as_good_as_float(digits, images, accuracy, name):
    assert accuracy(fit(name, digits, images, "W8A8", iterations=0)) >= accuracy(digits) - 0.5


@pytest.mark.parametrize("name", TRAINED)
def test_training_lowers_the_loss_and_mends_two_bits(digits, images, accuracy, name):
    log = Log()
    student = fit(name, digits, images, "W2A4", iterations=40, batch=32, log=log)
    before = accuracy(fit(name, digits, images, "W2A4", iterations=0))
    assert log.losses[-1] < log.losses[0]
    assert accuracy(student) > max(before, 85)


@pytest.mark.parametrize("name", TRAINED)
def test_statistics_stay_the_rest_trains_and_the_seed_decides(digits, images, name):
    short = {"iterations": 3} | ({"teacher_iterations": 2} if name == "qfd" else {})
    before = copy.deepcopy(digits.network.state_dict())
    student, same = (fit(name, digits, images, "W3A3", seed=1, **short) for _ in range(2))
    after = student.network.state_dict()
    for key in before:
        assert torch.equal(digits.network.state_dict()[key], before[key]), "the teacher is left alone"
        if "running" in key or "num_batches" in key:
            assert torch.equal(before[key], after[key]), key
    for key, tensor in after.items():
        assert torch.equal(tensor, same.network.state_dict()[key]), key
    assert not torch.equal(before["bn1.weight"], after["bn1.weight"])
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])
    assert not any(parameter.requires_grad for parameter in student.network.parameters())
    other = fit(name, digits, images, "W3A3", seed=2, **short)
    assert not torch.equal(logits(student, images), logits(other, images))


@pytest.mark.parametrize("name", TRAINED)
def test_tables_name_every_tensor_and_embedders_are_refused(digits, images, name):
    rows = {row.name: row for row in fit(name, digits, images, "W4A3", iterations=0).tensors}
    assert (rows["conv1.weight"].bits, rows["linear.input"].bits) == (8, 8)
    weight, inputs = rows["block1.conv1.weight"], rows["block1.conv1.input"]
    assert (weight.bits, weight.signed, inputs.bits, inputs.num_scales) == (4, True, 3, 1)
    assert weight.num_scales == (1 if name == "qfd" else 16) and not inputs.signed
    embedder = Teacher("face", digits.network, digits.spec, 10, "0", task=Embed())
    if name != "gdfq-ft":  # the task's loss takes the place of its own
        assert fit(name, embedder, images, "W4A4", iterations=2).task == Embed()
        return
    with pytest.raises(MismatchError, match="expected a classifier; use student ptq"):
        fit(name, embedder, images, "W4A4")


def test_distilling_a_network_from_itself_is_a_fixed_point(digits, images):
    options = {"optimizer": "sgd", "learning_rate": 1e-3, "iterations": 20}
    student = fit("kd", digits, images, "W32A32", **options)
    for name, tensor in digits.network.state_dict().items():
        torch.testing.assert_close(student.network.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_w32a32_with_adam_stays_as_good(digits, images, accuracy):
    assert accuracy(fit("kd", digits, images, "W32A32", iterations=20)) >= accuracy(digits) - 0.5


def test_a_fresh_network_learns_from_the_teacher_alone(digits, images, accuracy):
    options = {"start": "random", "batch_norm": "train", "iterations": 50, "batch": 64, "learning_rate": 4e-3}
    state = torch.get_rng_state()
    start = fit("kd", digits, images, "W32A32", **{**options, "iterations": 0})
    assert torch.equal(torch.get_rng_state(), state)
    assert accuracy(start) < 30
    assert accuracy(fit("kd", digits, images, "W32A32", **options)) > 60
    with pytest.raises(OptionError, match="batch_norm=frozen; expected batch_norm=train"):
        create("kd", digits.spec, {"start": "random"}, Runtime())


def test_losses_are_the_published_ones(digits):
    student = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    teacher = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))
    hard = F.nll_loss(F.log_softmax(student, 1), teacher.argmax(1))
    assert imitation(student, teacher) == pytest.approx(hard.item())
    soft = distillation(student, teacher, 4.0)
    kd = create("kd", digits.spec, {"share": 0.7}, Runtime())
    assert kd.loss(student, teacher).item() == pytest.approx((0.7 * soft + 0.3 * hard).item(), rel=1e-5)
    gdfq = create("gdfq-ft", digits.spec, {"temperature": 4.0}, Runtime())
    assert gdfq.loss(student, teacher).item() == pytest.approx((soft / 10 + hard).item(), rel=1e-5)
    options = {"temperature": 4.0, "alpha": 20, "kl_reduction": "batchmean", "ce_weight": 0.5}
    intraq = create("gdfq-ft", digits.spec, options, Runtime())
    assert intraq.loss(student, teacher).item() == pytest.approx((20 * soft + 0.5 * hard).item(), rel=1e-5)
    features = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(2))
    qfd = create("qfd", digits.spec, {"task_loss": "ce"}, Runtime())
    expected = hard.item() + 0.5 * (features[0] - features[1]).square().mean().item()
    assert qfd.loss((student, (features[0],)), (teacher, (features[1],))).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_steps_of_gdfq_follow_the_number_of_images(digits):
    options = create("gdfq-ft", digits.spec, {}, Runtime()).options
    assert (options.steps(256), options.steps(1000), options.steps(1)) == (160, 625, 1)
    student = create("gdfq-ft", digits.spec, {}, Runtime())
    assert student.images_trained(digits, 256, Bits(4, 4)) == 160 * 128
    assert create("gdfq-ft", digits.spec, {"iterations": 7}, Runtime()).options.steps(9999) == 7


def test_ranges_of_gdfq_are_set_before_training_and_then_stay(digits, images):
    students = [fit("gdfq-ft", digits, images, "W4A4", iterations=steps) for steps in (0, 4)]
    quantizers = [
        {
            n: m
            for n, m in s.network.named_modules()
            if isinstance(m, FakeQuantizer) and m.kind == "activation"
        }
        for s in students
    ]
    assert quantizers[0].keys() == quantizers[1].keys() and quantizers[0]
    for name, quantizer in quantizers[0].items():
        assert torch.equal(quantizer.step, quantizers[1][name].step)
        assert quantizer.zero_point == 0, "behind ReLU"
    layer = students[1].network.get_submodule("block1.conv1")
    span = layer.weight.flatten(1).amax(1).clamp(min=0) - layer.weight.flatten(1).amin(1).clamp(max=0)
    torch.testing.assert_close(layer.weight_quantizer.step.flatten(), span / 15)


def test_the_teachers_feature_is_quantized_and_carries_no_gradient(digits, images):
    network = capture(digits.network, digits.example())
    norm = digits.spec.pixels_to_norm(images[:64])
    _, (exact,) = with_feature(network, feature_reader(network, "", None))(norm)
    for bits in (1, 8):
        quantized = capture(digits.network, digits.example())
        reader = feature_reader(quantized, "", None)
        quantize_feature(quantized, reader, digits.spec, images[:64], bits, search=True)
        taught = with_feature(quantized, reader, quantized=True)
        output, (feature,) = taught(norm)
        assert len(feature.unique()) <= 2**bits
        assert torch.equal(output, quantized(norm))
        _, (before,) = with_feature(quantized, reader)(norm)
        torch.testing.assert_close(before, exact)
    assert (feature - exact).abs().max() < 0.02 * exact.abs().max(), "8 bits are as good as float"


def test_ends_of_intervals_train_and_stay_in_order(digits, images):
    start = fit("qfd", digits, images, "W3A3", iterations=0, teacher_iterations=0).network
    after = fit("qfd", digits, images, "W3A3", teacher_iterations=2).network
    intervals = {n: m for n, m in after.named_modules() if isinstance(m, IntervalQuantizer)}
    assert len(intervals) > 8
    for name, module in intervals.items():
        before = start.get_submodule(name)
        assert module.low < module.high
        assert not torch.equal(module.high, before.high) and not torch.equal(module.scale, before.scale)


def test_qfd_names_what_it_cannot_take():
    class TwoHeads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = torch.nn.Conv2d(3, 5, 16), torch.nn.Conv2d(3, 5, 16)

        def forward(self, x):
            return (self.one(x) + self.two(x)).flatten(1)

    teacher = make_teacher(lambda channels, outputs: TwoHeads())
    pixels = torch.zeros(4, *image_spec().shape, dtype=torch.uint8)
    with pytest.raises(MismatchError, match=r"2 last layers; expected one; name one .* feature=LAYER"):
        fit("qfd", teacher, pixels, "W4A4")
    with pytest.raises(OptionError, match=r"feature=neck, which is no layer of teacher toy.*one, two"):
        fit("qfd", teacher, pixels, "W4A4", feature="neck")
