"""Passes around a student and aac-abn, on the embedded digits teacher; passes in the records of a gap."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import image_spec, make_teacher, without_bn

from zsq import catalogue
from zsq.core.errors import MismatchError, NoBatchNormError, OptionError
from zsq.core.runtime import Runtime
from zsq.images.imageset import ImageSet
from zsq.measure.evaluate import score_teacher
from zsq.measure.gap import fit_and_score, rows_from_runs
from zsq.measure.protocol import Protocol, StudentSpec, resolve_students
from zsq.passes import PASSES, check_passes, prepare
from zsq.students import create
from zsq.widths import Bits

DFQ = ("fold", "relu6-to-relu", "equalize", "absorb-bias")


def fit(name, teacher, images, bits, passes=(), **options):
    student = create(name, teacher.spec, options, Runtime(), passes=passes)
    return student.fit(teacher, images[:96], Bits.parse(bits))


@torch.no_grad()
def logits(model, pixels):
    return model.logits(model.spec.pixels_to_standard(pixels))


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("ptq", DFQ),
        ("ptq", (*DFQ, "correct-bias")),
        ("ptq", (*DFQ, "correct-bias-analytic")),
        ("kd", ("adapt-bn", "correct-bias")),
        ("aac-abn", ()),
    ],
)
def test_without_quantization_the_function_stays(digits, images, name, passes):
    options = {"iterations": 0} if name == "kd" else {}
    student = fit(name, digits, images, "W32A32", passes, **options)
    torch.testing.assert_close(logits(student, images), logits(digits, images), rtol=1e-5, atol=1e-5)


def test_the_teacher_is_left_alone_and_the_student_frozen(digits, images):
    before = copy.deepcopy(digits.network.state_dict())
    student = fit("ptq", digits, images, "W4A4", (*DFQ, "correct-bias"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in digits.network.state_dict().items())
    assert not any(p.requires_grad for p in student.network.parameters())
    assert student.student == "ptq" and len(student.tensors) > 8


def test_correction_mends_two_bits(digits, images, accuracy):
    plain, *corrected = (
        accuracy(fit("ptq", digits, images, "W2A4", passes))
        for passes in ((), ("correct-bias",), ("correct-bias-analytic",))
    )
    assert min(corrected) > plain + 10


def test_equalization_helps_one_grid_per_tensor(digits, images, accuracy):
    """A network whose channels were made unequal, which changes nothing in float."""
    teacher = copy.deepcopy(digits)
    scale = torch.logspace(-2, 2, 16)
    with torch.no_grad():
        block = teacher.network.block1
        block.bn1.weight.mul_(scale)
        block.bn1.bias.mul_(scale)
        block.conv2.weight.div_(scale.view(1, -1, 1, 1))
    torch.testing.assert_close(logits(teacher, images), logits(digits, images), rtol=1e-3, atol=1e-3)
    options = {"granularity": "tensor", "weight_observer": "minmax", "observer": "minmax"}
    plain, equalized = (
        logits(fit("ptq", teacher, images, "W8A8", passes, **options), images)
        for passes in ((), ("fold", "equalize"))
    )
    exact = logits(digits, images)
    assert (equalized - exact).square().mean() < (plain - exact).square().mean() / 10


def test_smoothing_helps_activations_of_unequal_channels(digits, images):
    """One channel is made a hundred times as large, which changes nothing in float."""
    teacher = copy.deepcopy(digits)
    with torch.no_grad():
        block = teacher.network.block1
        block.bn1.weight[0] *= 100
        block.bn1.bias[0] *= 100
        block.conv2.weight[:, 0] /= 100
    student = create("ptq", teacher.spec, {}, Runtime(), passes=["fold", "smooth"])
    errors = []
    exact = logits(digits, images)
    for pixels in (images, images[:32]):
        smoothed = student.fit(teacher, pixels, Bits.parse("W32A6"))
        errors.append((logits(smoothed, images) - exact).square().mean())
    plain = logits(fit("ptq", teacher, images, "W32A6"), images)
    assert max(errors) < (plain - exact).square().mean() / 4
    assert errors[0] != errors[1]  # its ranges are those of the images at hand


def test_adapted_statistics_mend_the_means_of_logits(digits, images, test_set):
    exact = logits(digits, test_set[0]).mean(0)
    rules = ("relative", "absolute", "stored")
    students = (fit("aac-abn", digits, images, "W3A4", statistics=rule) for rule in rules)
    errors = [(logits(student, test_set[0]).mean(0) - exact).abs().mean() for student in students]
    assert errors[0] < errors[2] and errors[1] < errors[2]


def test_aac_is_as_good_as_float_at_8_bits_up_to_the_peak(digits, images, accuracy):
    student = fit("aac-abn", digits, images, "W8A8")
    assert accuracy(student) >= accuracy(digits) - 0.5
    seen = []
    handle = digits.network.relu.register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    logits(digits, images[:96])
    handle.remove()
    quantizer = student.network.get_submodule("block1.conv1.input_quantizer")
    assert quantizer.step.item() * 255 == pytest.approx(seen[0].max().item(), rel=1e-5)
    assert quantizer.zero_point == 0
    lower = fit("aac-abn", digits, images, "W8A8", percentile=99.0)
    assert lower.network.get_submodule("block1.conv1.input_quantizer").step < quantizer.step


def test_weights_without_activations_do_not_depend_on_the_images(digits, images):
    """Unless BN statistics are re-estimated: then they are meant to."""
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    real, foreign = (
        fit("aac-abn", digits, pixels, "W4A32", statistics="stored") for pixels in (images, noise)
    )
    assert torch.equal(logits(real, images), logits(foreign, images))


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        (("fould",), "unknown pass 'fould'; expected one of fold, relu6-to-relu"),
        (("fold", "fold"), "named twice"),
        (("equalize",), "pass equalize without pass fold before it; expected fold,equalize"),
        (("fold", "adapt-bn"), "pass adapt-bn after pass fold"),
        (("correct-bias", "fold"), "on the float network, after pass correct-bias, on the student"),
    ],
)
def test_passes_that_cannot_be_are_refused_before_anything_is_fitted(passes, message):
    with pytest.raises(OptionError, match=message):
        check_passes(passes)


def test_students_refuse_what_they_cannot_take(digits, tiny_teacher):
    for name in ("ptq", "adaround", "brecq", "qdrop"):
        with pytest.raises(OptionError, match=f"student {name} takes no pass adapt-bn: it folds"):
            create(name, digits.spec, {}, Runtime(), passes=["adapt-bn"])
    with pytest.raises(OptionError, match="student aac-abn takes no pass fold: its batch norms are adapted"):
        create("aac-abn", digits.spec, {}, Runtime(), passes=["fold", "equalize"])


def test_passes_with_nothing_to_do_say_so(images):
    teacher = make_teacher(without_bn)
    pixels = torch.zeros(4, *image_spec().shape, dtype=torch.uint8)
    for passes, message in (
        (("fold", "absorb-bias"), "without batch norm"),
        (("correct-bias-analytic",), "follows a batch norm"),
    ):
        with pytest.raises(MismatchError, match=message):
            fit("ptq", teacher, pixels, "W8A8", passes)
    with pytest.raises(MismatchError, match="no batch norm to adapt"):
        fit("lsq-kd", teacher, pixels, "W8A8", ("adapt-bn",), iterations=0)
    with pytest.raises(NoBatchNormError, match="has no batch norm to adapt"):
        fit("aac-abn", teacher, pixels, "W8A8")
    with pytest.raises(MismatchError, match="no two layers"):
        prepare(("fold", "equalize"), torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1)), torch.zeros(2, 3, 8, 8))


def test_every_pass_says_what_it_does():
    assert [entry["name"] for entry in catalogue.catalogue("passes")] == list(PASSES)
    for one in PASSES.values():
        assert one.summary and (one.before is None) != (one.after is None)


def gap(digits, images, specs, done=(), fits=None):
    shown = ImageSet(images[:32], torch.zeros(32, dtype=torch.int64), "digits")
    students = resolve_students(specs, digits.spec, Runtime())
    protocol = Protocol(digits, shown, [shown], students, 1, Runtime())
    reference = score_teacher(digits, shown, Runtime())
    fits = [] if fits is None else fits
    return fit_and_score(
        protocol,
        {"real": [images[:32]]},
        reference,
        done=done,
        on_run=lambda record, fitted: fits.append(record),
    )


def test_tables_never_mix_passes(digits, images):
    teacher = replace(digits, expected_accuracy=None)
    plain = StudentSpec("ptq", Bits(4, 4))
    passed = StudentSpec("ptq", Bits(4, 4), passes=("fold", "equalize"))
    fits = []
    records = gap(teacher, images, [plain, passed], fits=fits)
    assert [record["student"] for record in records] == ["ptq", "ptq+fold+equalize"]
    assert "passes" not in records[0] and records[1]["passes"] == ["fold", "equalize"]
    assert len(rows_from_runs(records)) == 2 * 4 and len(fits) == 2
    again = []
    assert gap(teacher, images, [passed, plain], done=records, fits=again) == records[::-1] and not again
    # A record from before there were passes, and before an option of the student, counts as what it was.
    old = {**records[0], "options": {k: v for k, v in records[0]["options"].items() if k != "granularity"}}
    gap(teacher, images, [plain, passed], done=[old], fits=again)
    assert [record["student"] for record in again] == ["ptq+fold+equalize"]


def test_fewer_bits_err_more(digits, images):
    exact = logits(digits, images)
    errors = [
        (logits(fit("aac-abn", digits, images, bits), images) - exact).square().mean().item()
        for bits in ("W8A8", "W6A6", "W4A4", "W2A2")
    ]
    assert errors == sorted(errors) and np.isfinite(errors).all()
