"""The acceptance matrix: every student has the promises of its kind, and what it does not promise has a
reason.

Promises of all students stand in test_every_student.py and test_student_promises.py: the seed decides, W8A8
is within a point of float, weights are whole numbers, a saved student is the same.
"""

import functools
from pathlib import Path

import pytest
import torch
from tiny_students import fit, outputs, small_options
from toys import plain, shared_teacher, structured_images

from zsq.core.runtime import Runtime
from zsq.fitting.losses import distillation
from zsq.fitting.trained import TrainedStudent
from zsq.fitting.unitwise import UnitwiseStudent
from zsq.students import STUDENTS, create
from zsq.widths import Bits

RECONSTRUCT = tuple(name for name, cls in STUDENTS.items() if issubclass(cls, UnitwiseStudent))
TRAIN = tuple(name for name, cls in STUDENTS.items() if issubclass(cls, TrainedStudent))
# Students that learn nothing step by step, and what is promised instead.
OTHERS = {
    "ptq": "ranges alone; W32A32 is the teacher: test_ptq.py",
    "aac-abn": "ranges, and statistics that stay where nothing is quantized: test_correction.py",
    "cfws": "error at most half a step, ten times below min-max: test_cfws.py",
    "repq": "ranges alone: test_repq_erq.py",
    "erq": "no output is worse than rounded to nearest: test_repq_erq.py",
    "mixed": "the budget is met, and its student is the one inside: test_mixed.py, test_haq.py",
}
# Where it is tested that the error of no unit grows, and that training helps; of the others, here.
UNITS = dict.fromkeys(("adaround", "brecq", "qdrop", "genie-m"), "fitting/test_unitwise.py")
HELPS = {
    **dict.fromkeys(("kd", "gdfq-ft", "qfd"), "students/test_kd_gdfq_qfd.py"),
    **{name: f"students/test_{name.replace('-', '_')}.py" for name in ("lsq-kd", "binary", "dir-net")},
    **{name: f"students/test_{name}.py" for name in ("vertical", "quantface", "daq")},
}
# Of trained students, why statistics of batch norm are not the teacher's even with batch_norm=frozen.
MOVED_STATISTICS = {
    "binary": "they go through the shift of the signs before the first step: without that it is at chance",
    "dir-net": "as binary",
}
# Refuses a classifier.
EMBEDS = ("quantface",)
UNIT = Path(__file__).parent.parent


def test_every_student_has_its_rows_of_the_matrix():
    assert sorted([*RECONSTRUCT, *TRAIN, *OTHERS]) == sorted(STUDENTS)
    assert UNITS.keys() <= set(RECONSTRUCT) and HELPS.keys() | MOVED_STATISTICS.keys() <= set(TRAIN)
    for name, file in (UNITS | HELPS).items():
        assert f'"{name}"' in (UNIT / file).read_text(), f"{file} says nothing of {name}"


@functools.cache
def images():
    teacher = shared_teacher(plain)
    return teacher.spec.standard_to_pixels(structured_images((12, *teacher.spec.shape)))


class Units:
    """Errors of the units of a phase that learns weights, before and after."""

    def __init__(self):
        self.errors = []

    def advance(self, amount, **values):
        if "before" in values:
            self.errors.append((values["before"], values["after"]))


@pytest.mark.parametrize("name", [name for name in RECONSTRUCT if name not in UNITS])
def test_the_error_of_no_unit_grows(name):
    teacher, log = shared_teacher(plain), Units()
    options = {**small_options(name), "iterations": 30, "batch": 12, "rounding_weight": 0.1}
    student = create(name, teacher.spec, options | {"learning_rate": 3e-4}, Runtime())
    student.fit(teacher, images(), Bits(2, 4), first_last=8, log=log)
    assert log.errors and all(after <= before for before, after in log.errors)


@pytest.mark.parametrize("name", [name for name in TRAIN if name not in HELPS])
def test_training_brings_the_student_nearer(name):
    teacher = shared_teacher(plain)
    options = {"shift": 0, "flip": False, "batch": 12, "learning_rate": 2e-3}
    wanted = outputs(teacher, images())
    far, near = (
        distillation(
            outputs(fit(name, teacher, images(), "W3A3", **options, iterations=n), images()), wanted, 1.0
        )
        for n in (0, 10)
    )
    assert near < far


@pytest.mark.parametrize("name", TRAIN)
def test_frozen_statistics_stay(name):
    teacher = shared_teacher(plain, task="embed" if name in EMBEDS else "classify")
    own = fit(name, teacher, images(), "W3A3", batch_norm="frozen").network.state_dict()
    statistics = {key: value for key, value in teacher.network.state_dict().items() if "running_" in key}
    assert statistics and statistics.keys() <= own.keys()
    same = all(torch.equal(value, own[key]) for key, value in statistics.items())
    assert same == (name not in MOVED_STATISTICS)
