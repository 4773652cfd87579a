"""Which defaults a teacher gets, by what it is and by the bits."""

import dataclasses

import pytest
from toys import image_spec, make_teacher, without_bn

from zsq.config import GenerateConfig
from zsq.core.runtime import Runtime
from zsq.generators import method_class
from zsq.request import defaults
from zsq.request.defaults import TABLE, Defaults, choice_line, choose
from zsq.students import create
from zsq.tasks import TASKS
from zsq.teacher import load_teacher
from zsq.widths import Bits

LARGE = image_spec(size=(64, 48))


@pytest.fixture
def operations(monkeypatch):
    """Sets how many 10^9 operations a forward pass has."""
    return lambda number: monkeypatch.setattr(defaults, "forward_gflops", lambda teacher: number)


def asked(**changes):
    return GenerateConfig(**({"teacher": "toy", "method": "dgh", "set": {}} | changes))


def test_every_row_can_be_carried_out(tiny_teacher):
    for row in TABLE:
        method_class(row.method)
        create(row.student, tiny_teacher.spec, row.options, Runtime())
        for name in row.students[1:]:
            create(name, tiny_teacher.spec, {}, Runtime())


@pytest.mark.parametrize(
    ("bits", "student"), [("W8A8", "ptq"), ("W6A8", "ptq"), ("W4A8", "genie-m"), ("W2A4", "genie-m")]
)
@pytest.mark.parametrize("spec", [image_spec(), LARGE])
def test_the_narrower_width_decides(bits, student, spec):
    chosen = choose(make_teacher(spec=spec), Bits.parse(bits))
    below_6 = "pyramid" if spec is LARGE else "varied"
    method = below_6 if student == "genie-m" else "dgh"
    assert (chosen.student, chosen.method, chosen.notes) == (student, method, ())


def test_every_teacher_and_width_has_a_row(operations):
    operations(1e6)
    for spec in (image_spec(size=(1, 1)), image_spec(size=(80, 64))):
        teacher = make_teacher(spec=spec)
        assert any(row.fits(teacher, Bits(1, 1)) for row in TABLE)


def test_networks_of_more_operations_get_fewer_images(operations):
    teacher, counts = make_teacher(spec=LARGE), []
    for number in (0.1, 5, 5.1, 100):
        operations(number)
        counts.append(choose(teacher).count)
    assert counts[0] == counts[1] > counts[2] == counts[3]


def test_the_side_that_the_network_takes_counts(operations):
    small, large = Defaults(64, 1, "dgh", 8, 1, ("ptq",)), make_teacher(spec=LARGE)
    assert small.fits(large, Bits(4, 4)) and not small.fits(make_teacher(), Bits(4, 4))


def test_a_teacher_without_batch_norm_gets_leaves_and_hears_why():
    teacher = make_teacher(without_bn)
    chosen = choose(teacher)
    assert (chosen.method, chosen.student) == ("leaves", "ptq")
    (note,) = chosen.notes
    assert note.startswith("leaves instead of varied: ") and "no BatchNorm layer" in note
    assert note.endswith("see docs/choosing.md")


@pytest.mark.parametrize(
    ("bits", "student"), [("W4A4", "repq"), ("W8A5", "repq"), ("W4A8", "ptq"), ("W6A6", "ptq")]
)
def test_a_transformer_without_batch_norm_gets_repq_at_few_bits_of_activations(bits, student):
    chosen = choose(load_teacher("embedded:digits-vit"), Bits.parse(bits))
    assert (chosen.method, chosen.student) == ("leaves", student)


def test_another_task_is_said():
    teacher = dataclasses.replace(make_teacher(), task=TASKS["embed"]())
    assert choose(teacher).notes == ("the defaults were measured on classifiers, not for the task embed",)


def test_a_student_that_cannot_learn_from_the_teacher_is_passed_over(monkeypatch):
    teacher = dataclasses.replace(make_teacher(), task=TASKS["embed"]())
    row = Defaults(0, 1, "dgh", 8, 1, ("gdfq-ft", "ptq"), {"iterations": 3})
    monkeypatch.setattr(defaults, "TABLE", (row,))
    chosen = choose(teacher)
    assert (chosen.student, chosen.options) == ("ptq", {})
    monkeypatch.setattr(defaults, "TABLE", (dataclasses.replace(row, students=("gdfq-ft",)),))
    assert choose(teacher).student == "gdfq-ft"


def test_what_is_given_wins():
    row = Defaults(0, 1, "dgh", 50, 7, ("ptq",))
    changed = row.completed(asked())
    assert (changed.count, changed.iterations) == (50, 7)
    assert row.completed(asked(count=3)).count == 3
    assert row.completed(asked(), with_count=False).count is None
    for given in ({"effort": "quick"}, {"method": "zeroq"}):
        assert row.completed(asked(**given)).iterations is None
    assert row.completed(asked(iterations=2)).iterations == 2


def test_the_line_says_what_was_asked_for():
    parts = [(None, "method dgh"), (64, "64 images"), (None, ""), (None, "student ptq")]
    assert choice_line("W8A8 of net", parts) == (
        "W8A8 of net, by default: method dgh, student ptq; as asked: 64 images"
    )
    assert choice_line("net", [(1, "one")]) == "net, as asked: one"
