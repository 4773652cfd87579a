"""What a request will take, from short fits and short runs of the method."""

import pytest
from toys import make_teacher

from zsq.config import GenerateConfig, QuantizeConfig, RuntimeConfig
from zsq.core.runtime import Runtime
from zsq.engine.estimate import FORWARDS_PER_FIT, STEP_COST
from zsq.measure.quantize import Places, Preparation
from zsq.request import forecast
from zsq.request.forecast import Forecast, forecast_of, student_seconds, students_seconds
from zsq.synthesis.resolved import ResolvedRun, resolve


def prepared(student="genie-m", runtime=None, bits=("W4A4",), **options):
    first, *more = bits
    config = QuantizeConfig(teacher="toy", student=student, bits=first, more_bits=tuple(more), set=options)
    return Preparation.of(config, make_teacher(), runtime or Runtime(threads=1), Places())


@pytest.fixture
def trials(monkeypatch):
    """A fit that takes 2 s, and 0.1 s for an image and 0.5 s for an iteration; the trials asked for."""
    asked = []

    def seconds(prepared, images, lengths):
        asked.append((images, *lengths.values()))
        return 2 + 0.1 * images + 0.5 * sum(lengths.values())

    monkeypatch.setattr(forecast, "_trial", seconds)
    return asked


def test_short_fits_say_what_images_and_iterations_cost(trials):
    assert student_seconds(prepared(iterations=300), 500, 1.0) == pytest.approx(2 + 50 + 150)
    assert len(set(trials)) == 3


def test_every_student_of_a_chain_is_tried(trials):
    chain = prepared("genie-m,lsq-kd", **{"genie-m.iterations": 300, "lsq-kd.iterations": 100})
    assert student_seconds(chain, 500, 1.0) == pytest.approx(2 + 50 + 150 + 50)


def test_a_student_that_trains_nothing_has_images_alone(trials):
    assert student_seconds(prepared("ptq"), 500, 1.0) == pytest.approx(2 + 50)
    assert {len(each) for each in trials} == {1}


@pytest.mark.parametrize(("per_pass", "compiled"), [(1e-5, False), (1.0, True)])
def test_a_fit_that_is_short_or_compiled_has_no_trial(trials, per_pass, compiled):
    one = prepared(iterations=10, runtime=Runtime(compile=compiled, threads=1))
    seconds = student_seconds(one, 30, per_pass)
    passes = round(STEP_COST * 10 * 32 + FORWARDS_PER_FIT * 30 / forecast.FORWARDS_PER_ITERATION)
    assert seconds == pytest.approx(60 + passes / 1.4 if compiled else passes * per_pass)
    assert trials == []


@pytest.mark.parametrize(
    ("student", "bits", "fits"),
    [
        ("lsq-kd", ("W4A4", "W3A3", "W2A2"), 3),
        ("lsq-kd", ("W4A4", "W32A32"), 1),
        ("kd", ("W32A32",), 0.7),
        ("vertical", ("W8A8", "W4A4", "W2A2"), 1.4),
        ("vertical", ("W8A8", "W4A8", "W2A8"), 2.8),
    ],
)
def test_each_training_of_several_bits_counts_once(trials, student, bits, fits):
    asked = prepared(student, bits=bits, iterations=10)
    trained = 10 * 128 * fits
    looks = 3 * (FORWARDS_PER_FIT * 2 / forecast.FORWARDS_PER_ITERATION + 1)
    assert students_seconds(asked, 2, 1e-6) == pytest.approx(1e-6 * STEP_COST * trained, abs=1e-6 * looks)


def test_a_trial_is_a_fit_that_leaves_the_student_as_it_was():
    one = prepared(iterations=1000)
    assert forecast._trial(one, 2, {"iterations": 1}) > 0
    assert one.student.options.iterations == 1000


def test_images_that_are_there_take_no_time(monkeypatch, tmp_path):
    monkeypatch.setattr(forecast, "seconds_per_image_iteration", lambda teacher, batch: 3.0)
    monkeypatch.setattr(ResolvedRun, "seconds_per_pass", 2.0)
    monkeypatch.setattr(forecast, "student_seconds", lambda prepared, count, per_pass: 7.0)
    config = GenerateConfig(
        teacher="toy", method="zeroq", count=10, iterations=5, set={}, runtime=RuntimeConfig(threads=1)
    )
    job = resolve(config, tmp_path, make_teacher())
    made, found = (forecast_of(prepared("ptq"), 10, each) for each in (job, None))
    # Ten images of five passes, looked at once more; both networks on the ten images of the fit.
    assert (made.images, found.images) == (10 * 5 * 2 + 10, 0)
    assert made.student == found.student == 7 and made.scores == found.scores == pytest.approx(10 + 17)


def test_the_line_leaves_out_what_takes_no_time():
    assert Forecast(100, 50, 10, 5).line() == (
        "about 2 min 45 s in all: images 1 min 40 s, student 50 s, scores 10 s, this forecast 5 s"
    )
    assert Forecast(0, 50, 0.2, 0.1).line() == "about 50 s in all: student 50 s"
