"""Three efforts give every method its iterations where nobody says them."""

import pytest
from commands import Spoken, call
from toys import image_spec, make_teacher

from zsq.catalogue import catalogue
from zsq.config import GenerateConfig, RuntimeConfig
from zsq.core.runtime import Runtime
from zsq.engine.estimate import Work, forecast
from zsq.generators import (
    QUICK_ITERATIONS,
    available_methods,
    default_effort,
    effort_iterations,
    method_class,
)
from zsq.recipefile import Recipe, load_recipe, source_config
from zsq.synthesis import synthesize
from zsq.synthesis.resolved import ResolvedRun, resolve

METHODS = available_methods()
LARGE = image_spec(size=(224, 224))
NO_CURVE = "no curve of its own, so its standard is that of dgh"
LENGTHY = [name for name, cls in METHODS.items() if "iterations" in cls.options_class.model_fields]


def numbers(name, spec=LARGE):
    return [effort_iterations(METHODS[name], spec, effort) for effort in ("quick", "standard", "published")]


@pytest.mark.parametrize("name", LENGTHY)
@pytest.mark.parametrize("spec", [LARGE, image_spec()], ids=["224px", "16px"])
def test_efforts_ascend_to_the_published_length(name, spec):
    quick, standard, published = numbers(name, spec)
    assert 1 <= quick < standard <= published
    assert published == METHODS[name].options_class.resolve(name, spec, {}).iterations


@pytest.mark.parametrize("name", LENGTHY)
def test_without_a_curve_the_number_is_dghs(name):
    cls = METHODS[name]
    quick, standard, published = numbers(name)
    if cls.facts.trains_network:  # the share of its length, since it trains for any number of images
        assert [quick / published, standard / published] == pytest.approx(
            [number / numbers("dgh")[2] for number in numbers("dgh")[:2]], rel=1e-3
        )
    elif cls.curve is None:
        assert (quick, standard) == (QUICK_ITERATIONS, min(published, numbers("dgh")[1]))
    else:
        assert (quick, standard) == (QUICK_ITERATIONS, cls.curve.standard)


def test_a_method_without_iterations_has_no_effort():
    assert numbers("noise") == [None] * 3


@pytest.mark.parametrize(
    ("spec", "effort"),
    [
        (image_spec(size=(63, 63)), "published"),
        (image_spec(size=(64, 64)), "standard"),
        (image_spec(size=(8, 64)), "standard"),
        (image_spec(size=(32, 32), input_size=(224, 224)), "standard"),
        (LARGE, "standard"),
    ],
)
def test_the_default_is_what_the_network_takes(spec, effort):
    assert default_effort(spec) == effort


def config(**changes):
    values = {"teacher": "toy", "method": "dgh", "count": 4, "runtime": RuntimeConfig(threads=1)}
    return GenerateConfig(**(values | changes))


@pytest.mark.parametrize(
    ("size", "changes", "iterations"),
    [
        (64, {}, METHODS["dgh"].curve.standard),
        (16, {}, 1000),
        (16, {"effort": "quick"}, QUICK_ITERATIONS),
        (64, {"effort": "published"}, 1000),
        (64, {"effort": "quick", "iterations": 7}, 7),
        (64, {"set": {"iterations": 9}}, 9),
    ],
)
def test_iterations_win_over_the_effort(tmp_path, size, changes, iterations):
    teacher = make_teacher(spec=image_spec(size=(size, size)))
    options = resolve(config(**changes), tmp_path, teacher).method.options
    assert options.iterations == iterations
    if "set" not in changes:
        assert options.patience == max(1, round(20 * iterations / 1000))


def test_recipes_keep_their_lengths():
    for name in ("methods-large", "face", "methods-224px", "digits"):
        recipe = load_recipe(name)
        for source in recipe.sources:
            made = source_config(recipe, source, 0)
            assert (made.effort, made.iterations) == (
                "published",
                source.iterations or recipe.generate.iterations,
            )
    assert isinstance(recipe, Recipe)


def test_the_list_says_the_numbers_and_what_was_measured():
    entries = {entry["name"]: entry for entry in catalogue("methods")}
    standard = METHODS["dgh"].curve.standard
    assert entries["dgh"]["iterations"] == f"quick 30, standard {standard}, published 1000"
    assert entries["dgh"]["measured"] == METHODS["dgh"].curve.measured
    assert entries["dsg"]["measured"] == METHODS["dsg"].curve.measured
    assert entries["zeroq"]["measured"] == NO_CURVE
    assert "iterations" not in entries["noise"] and "measured" not in entries["noise"]
    for name in LENGTHY:
        assert (entries[name]["measured"] == NO_CURVE) == (method_class(name).curve is None)


def said(tmp_path, monkeypatch, seconds, **changes):
    monkeypatch.setattr(ResolvedRun, "seconds_per_pass", seconds)
    reporter = Spoken()
    synthesize.generate(config(**changes), tmp_path / "run", teacher=make_teacher(), reporter=reporter)
    return reporter.lines


def test_a_long_run_says_what_others_cost_and_what_is_known(tmp_path, monkeypatch):
    # 4 images x 2 passes x 10 s; quick 30 and published 1000 passes of 4 images. At 1000 it would compile at
    # no length, so small is the network.
    lines = said(tmp_path, monkeypatch, 10.0, iterations=2)
    standard = METHODS["dgh"].curve.standard
    assert lines[0].startswith(
        "dgh: 4 images x 2 teacher passes, about 1 min 20 s uncompiled in one process (--effort quick, 30 "
        f"passes: 20 min 0 s; standard, {standard} passes: "
    )
    assert "; published, 1000 passes: 11 h 6 min), 0." in lines[0] and lines[0].endswith("GB memory")
    assert lines[1] == f"dgh, measured: {METHODS['dgh'].curve.measured}"


def test_a_method_without_a_curve_says_so(tmp_path, monkeypatch):
    lines = said(tmp_path, monkeypatch, 10.0, method="zeroq", iterations=2)
    assert lines[1] == f"zeroq, measured: {NO_CURVE}"


def test_a_short_run_and_a_continued_one_say_no_more_than_their_time(tmp_path, monkeypatch):
    lines = said(tmp_path, monkeypatch, 1.0, iterations=2)
    monkeypatch.setattr(ResolvedRun, "seconds_per_pass", 100.0)
    reporter = Spoken()
    more = config(iterations=2, count=8)
    synthesize.generate(more, tmp_path / "run", teacher=make_teacher(), reporter=reporter, resume=True)
    assert "about 13 min 20 s" in reporter.lines[1]
    assert not any("effort" in line or "measured" in line for line in lines + reporter.lines)


def test_compiling_is_counted_for_each_effort():
    bf16 = Runtime(precision="bf16", compile=True)
    line = forecast(Work(3000, bf16), [Work(300, Runtime(), "quick")], 10, 1.0)
    assert line == (
        "10 images x 300 teacher passes, about 26 min 0 s compiled in one process "
        "(--effort quick, 30 passes: 5 min 0 s)"
    )


def test_no_time_is_said_for_what_asks_no_network():
    assert forecast(Work(0, Runtime()), [], 10, 1.0) == "10 images, no teacher passes"


def test_from_the_command_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = ("generate", "--teacher", "embedded:digits", "--method", "zeroq", "--count", 1, "--threads", 1)
    outcome = call(capsys, *run, "--effort", "quick")
    assert outcome.status == 0 and "1 image x 30 teacher passes" in outcome.err
    wrong = call(capsys, *run, "--effort", "little")
    assert wrong.status == 2 and "effort" in wrong.complaint() and "'standard'" in wrong.complaint()
