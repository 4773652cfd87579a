"""One training, and the widths that are read off it."""

import pytest
import torch
from tiny_students import outputs
from toys import plain, shared_teacher, structured_images

import zsq
from zsq.core.errors import OptionError
from zsq.core.runtime import Runtime
from zsq.quantizers.nested import Ladder
from zsq.saved.cost import student_cost
from zsq.students import create
from zsq.students.vertical import Vertical, VerticalOptions, _marked
from zsq.widths import Bits

NAME = "1.0.weight"


@pytest.fixture(scope="module")
def teacher():
    return shared_teacher(plain)


@pytest.fixture(scope="module")
def pixels(teacher):
    return teacher.spec.standard_to_pixels(structured_images((12, *teacher.spec.shape)))


class Counting(Vertical):
    trainings = 0

    def put_quantizers(self, placement, fit):
        self.trainings += 1
        super().put_quantizers(placement, fit)


def made(**options):
    return Counting(VerticalOptions(**{"iterations": 12, "batch": 6} | options), Runtime())


def fit(student, teacher, pixels, bits, **arguments):
    return student.fit(teacher, pixels, Bits.parse(bits), **arguments)


def integers(fitted):
    layer = fitted.network.get_submodule(NAME.removesuffix(".weight"))
    return layer.weight_quantizer.integers(layer.weight).to(torch.int8)


def test_widths_are_trained_once_and_are_prefixes_also_in_files(teacher, pixels, tmp_path):
    student = made()
    fitted = {bits: fit(student, teacher, pixels, bits) for bits in ("W8A8", "W5A5", "W2A2")}
    assert student.trainings == 1
    for bits, each in fitted.items():
        zsq.save_student(each, teacher, tmp_path / bits)
        loaded = zsq.load_student(tmp_path / bits)
        assert torch.equal(outputs(loaded, pixels), outputs(each, pixels))
        width = each.bits.weights
        assert torch.equal(integers(loaded), integers(fitted["W8A8"]) >> (8 - width))
        layer = {layer.name: layer for layer in student_cost(loaded).layers}["1.0"]
        assert (layer.weight_bits, layer.activation_bits) == (width, width)
    eight, two = (
        dict(fitted[bits].network.named_parameters()) | dict(fitted[bits].network.named_buffers())
        for bits in ("W8A8", "W2A2")
    )
    differ = {name for name in eight if not torch.equal(eight[name], two[name])}
    assert differ == {NAME, "1.0.weight_quantizer.scale", "1.0.input_quantizer.step"}


def test_the_order_of_widths_does_not_matter(teacher, pixels):
    student = made()
    fit(student, teacher, pixels, "W8A8")
    later, alone = fit(student, teacher, pixels, "W3A3"), fit(made(), teacher, pixels, "W3A3")
    assert torch.equal(outputs(later, pixels), outputs(alone, pixels))


def test_other_images_seeds_and_inputs_train_again(teacher, pixels):
    student = made(iterations=1)
    for bits, seed, given, trainings in (
        ("W4A4", 0, pixels, 1),
        ("W4A8", 0, pixels, 2),
        ("W2A8", 0, pixels, 2),
        ("W2A8", 1, pixels, 3),
        ("W2A8", 1, pixels[1:], 4),
        ("W2A32", 1, pixels[1:], 5),
        ("W3A32", 1, pixels[1:], 5),
    ):
        table = {row.name: row.bits for row in fit(student, teacher, given, bits, seed=seed).tensors}
        asked = Bits.parse(bits)
        assert student.trainings == trainings
        assert table[NAME] == asked.weights and table.get("1.0.input", 32) == asked.activations
        assert table["0.0.weight"] == 8


def test_rows_of_their_own_keep_their_width(teacher, pixels):
    bits = Bits(3, 3).with_rows({NAME: 6})
    fitted = made(iterations=2).fit(teacher, pixels, bits, first_last=3)
    table = {row.name: row.bits for row in fitted.tensors}
    assert table[NAME] == 6 and set(table.values()) == {3, 6}


@pytest.mark.parametrize("first_last", [None, 8, 7])
@pytest.mark.parametrize("bits", ["W4A4", "W8A8", "W7A8", "W2A7", "W4A32"])
def test_nested_rows_are_told_from_all_others(bits, first_last):
    marked = _marked(Bits.parse(bits), first_last)
    assert marked.weights != first_last
    alike = marked.weights == marked.activations
    assert alike == (bits in ("W4A4", "W8A8"))


def test_training_helps_two_bits(digits, images, accuracy):
    options = {"batch": 32, "shift": 0, "flip": False}
    before, after = (
        accuracy(
            create("vertical", digits.spec, options | {"iterations": n}, Runtime()).fit(
                digits, images, Bits(2, 2)
            )
        )
        for n in (0, 16)
    )
    assert after > before + 10


@pytest.mark.parametrize("least", [2, 8])
def test_every_second_step_is_of_the_widest(teacher, pixels, monkeypatch, least):
    seen = []
    monkeypatch.setattr(Ladder, "choose", lambda ladder, index: seen.append(ladder.widths[index]))
    fit(made(iterations=40, batch=1, least=least), teacher, pixels, "W8A8")
    steps = seen[:: len(seen) // 40]
    assert len(steps) == 40 and set(steps[1::2]) == {8}
    drawn = set(steps[::2])
    assert drawn == {8} if least == 8 else 8 not in drawn and {2, 3, 4} <= drawn


def test_prefixes_that_were_not_trained_are_refused(teacher, pixels):
    with pytest.raises(OptionError, match="least=3, or W4 and more"):
        fit(made(least=4), teacher, pixels, "W3A3")
    with pytest.raises(OptionError, match="never zero"):
        create("vertical", teacher.spec, {"sparsity": 0.5}, Runtime())


def test_fits_of_equal_training_keys_train_once(teacher, pixels):
    student = made()
    asked = [("W8A8", None), ("W3A3", 8), ("W4A4", 7), ("W2A2", 7), ("W4A8", None), ("W2A8", None)]
    keys = {student.training_key(Bits.parse(bits), first_last) for bits, first_last in asked}
    for bits, first_last in asked:
        fit(student, teacher, pixels, bits, first_last=first_last)
    assert student.trainings == len(keys) == 3


@pytest.mark.parametrize(("passes", "trainings"), [(["fold"], 1), (["fold", "smooth"], 2)])
def test_passes_share_a_training_where_they_see_no_image(teacher, passes, trainings):
    student = create("vertical", teacher.spec, {}, Runtime(), passes=passes)
    keys = {student.training_key(Bits(width, width), None) for width in (8, 2)}
    assert len(keys) == trainings
