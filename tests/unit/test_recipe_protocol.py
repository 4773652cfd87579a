"""What a recipe asks for, before it runs."""

import json

import pytest
from commands import Spoken
from small_recipe import NUM_FITS, RECIPE, load

from zsq.core.errors import OptionError, TeacherAccuracyError, UsageError
from zsq.core.runtime import Runtime
from zsq.engine.estimate import STEP_COST, score_passes
from zsq.generators import METHODS
from zsq.measure.protocol import StudentSpec, resolve_students
from zsq.recipefile import load_recipe, recipe_paths, source_config
from zsq.students import create
from zsq.teacher import load_teacher
from zsq.teacher.cifar_resnet import CIFAR_SPEC
from zsq.widths import Bits
from zsq.workflow import (
    own_defaults_of,
    recipe_protocol,
    run_recipe,
    say_estimate,
)


@pytest.fixture
def recipe(tmp_path):
    return load(tmp_path)


def test_real_sets_are_disjoint_and_of_the_train_split(recipe):
    protocol = recipe_protocol(recipe)
    images = [image.numpy().tobytes() for real in protocol.real_sets for image in real.pixels]
    assert len(set(images)) == 16
    assert {real.source for real in protocol.real_sets} == {"embedded:digits:train"}
    assert (len(protocol.eval), protocol.seeds) == (238, 1)


def test_source_config_prefers_the_source_s_own_length(tmp_path):
    recipe = load(tmp_path, RECIPE.replace('"noise"', '"noise"\niterations = 9'))
    assert [source_config(recipe, source, 2).iterations for source in recipe.sources] == [2, 9]
    assert source_config(recipe, recipe.sources[0], 2).seed == 9


def test_images_of_a_fit():
    recipe = load_recipe("digits")
    protocol = recipe_protocol(recipe)
    ptq, lsq = protocol.students
    steps = lsq.spec.options["iterations"]
    bits = Bits(4, 4)
    costs = [each.student.images_trained(protocol.teacher, 256, bits) for each in (ptq, lsq)]
    assert costs == [0, steps * 128]


def test_defaults_of_our_own_are_stored_with_the_settings():
    images = load_teacher("embedded:digits").spec
    specs = [
        StudentSpec(name, Bits(4, 4), options)
        for name, options in (
            ("genie-m", {}),
            ("brecq", {"iterations": 20_000}),
            ("ptq", {}),
        )
    ]
    stored = {"genie-m": {"iterations": {"ours": 2000, "published": 20_000}}}
    students = resolve_students(specs, images, Runtime())
    assert own_defaults_of(students, images) == {"own_defaults": stored}
    assert own_defaults_of(students[1:], images) == {}


@pytest.mark.parametrize(
    ("student", "bits", "trained"),
    [
        ("lsq-kd", ["W8A8", "W4A4"], 2.0),
        ("lsq-kd", ["W32A32"], 0.0),
        ("kd", ["W32A32"], 0.7),
        ("vertical", ["W8A8", "W4A4", "W2A2"], 1.4),
    ],
)
def test_estimate_counts_each_training_once(tmp_path, monkeypatch, student, bits, trained):
    """On both sets of all three sources; every fit is scored on 238 images."""
    asked = f'name = "{student}"\nbits = {json.dumps(bits)}\nset = {{ iterations = 100, batch = 10 }}'
    head, tail = RECIPE.split("[[students]]\n")
    recipe = load(tmp_path, f"{head}[[students]]\n{asked}\n[runtime]{tail.partition('[runtime]')[2]}")
    seen = []
    monkeypatch.setattr(
        "zsq.workflow.estimated_seconds", lambda teacher, batch, total, runtime: seen.append(total) or 1
    )
    say_estimate(recipe, recipe_protocol(recipe), [], tmp_path, Spoken())
    training = STEP_COST * 1000 * trained * NUM_FITS
    looks = 10 * 8 / 3 * NUM_FITS * len(bits)
    scores = score_passes(238) * NUM_FITS * len(bits)
    assert training + scores <= seen[0] <= training + scores + looks + 2 * 8 * 3


def test_threads_leave_the_recipes_precision_and_compilation():
    runtime = load_recipe("mcunet-250").with_runtime(threads=1).runtime
    assert (runtime.threads, runtime.compile) == (1, "on")


def test_estimate_counts_only_what_is_left(tmp_path, monkeypatch):
    """A made set takes no passes, and a finished fit neither."""
    recipe = load(tmp_path, RECIPE)
    seen, spoken, protocol = [], Spoken(), recipe_protocol(recipe)
    monkeypatch.setattr(
        "zsq.workflow.estimated_seconds", lambda teacher, batch, total, runtime: seen.append(total) or 1
    )
    fits = protocol.fits(dict.fromkeys(("real", "zeroq", "noise"), protocol.real_sets))
    say_estimate(recipe, protocol, [], tmp_path, spoken)
    say_estimate(recipe, protocol, [fit.record() for fit in fits], tmp_path, spoken)
    (tmp_path / "zeroq-0").mkdir()
    (tmp_path / "zeroq-0" / "manifest.json").touch()
    say_estimate(recipe, protocol, [fit.record() for fit in fits], tmp_path, spoken)
    assert seen[0] > seen[1] == 2 * 2 * 8 and seen[2] == 2 * 8
    assert spoken.lines[1].endswith(f"{len(fits)} fits, {len(fits)} of them done; about 1 s left")


@pytest.mark.parametrize("change", [('"zeroq"', '"zerooq"'), ('"ptq"', '"pqt"'), ("0.25", '"fast"')])
def test_mistakes_are_found_before_anything_is_written(change, tmp_path):
    with pytest.raises(UsageError):
        run_recipe(load(tmp_path, RECIPE.replace(*change)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("row", ["conv1.weight", "layer1.nothing.weight"])
def test_widths_of_rows_are_checked_before_images_are_made(row, tmp_path):
    student = f'name = "ptq"\nbits = ["W4A4"]\nwidths = {{ "{row}" = 8 }}\n'
    head, tail = RECIPE.split("[[students]]\n")
    recipe = load(tmp_path, f"{head}[[students]]\n{student}\n[runtime]{tail.partition('[runtime]')[2]}")
    if row == "conv1.weight":
        assert recipe_protocol(recipe).students[0].spec.bits.rows == {row: 8}
    else:
        with pytest.raises(OptionError, match=f"bits for '{row}', which is no row of this network"):
            recipe_protocol(recipe)


def test_teacher_that_measures_something_else_stops_the_run(tmp_path):
    text = RECIPE.replace('name = "embedded:digits"', 'name = "embedded:digits"\nexpected_accuracy = 90')
    with pytest.raises(TeacherAccuracyError):
        run_recipe(load(tmp_path, text), tmp_path / "run")


@pytest.mark.parametrize("name", sorted(recipe_paths()))
def test_every_recipe_names_methods_and_students_that_exist(name):
    recipe = load_recipe(name)
    for source in recipe.sources:
        assert source.method in METHODS
        assert source_config(recipe, source, 0).count == recipe.count_of(source)
    for student in recipe.students:
        assert create(student.name, CIFAR_SPEC, student.set, Runtime()).name == student.name
    assert all("/" not in text or "${ZSQ_DATA" in text for text in (recipe.real, recipe.eval))
