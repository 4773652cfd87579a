"""How fast a method runs is measured on two short runs of its own."""

import pytest
from toys import make_teacher

from zsq.core.runtime import Runtime
from zsq.generators import METHODS, create
from zsq.synthesis import trial
from zsq.synthesis.trial import WORTH_A_TRIAL_SECONDS, seconds_per_pass

LONG = 10**6


@pytest.fixture
def runs(monkeypatch):
    """A run takes 4 s and 0.25 s for each pass, where a forward pass promises 1 s; the runs asked for."""
    monkeypatch.setattr(trial, "seconds_per_image_iteration", lambda teacher, batch: 1.0)
    asked = []

    def seconds(method, images):
        asked.append((method.options.iterations, images))
        return 4 + 0.25 * images * method.options.iterations

    monkeypatch.setattr(trial, "_seconds", seconds)
    return asked


def per_pass(method="zeroq", passes=LONG, batch=64, runtime=None, **overrides):
    return seconds_per_pass(
        make_teacher(), METHODS[method], overrides, passes, batch, runtime or Runtime(threads=1)
    )


def test_what_both_runs_share_is_not_counted(runs):
    assert per_pass() == pytest.approx(0.25)
    assert {images for _, images in runs} == {trial.TRIAL_IMAGES}


def test_small_images_are_tried_in_whole_batches(runs, monkeypatch):
    monkeypatch.setattr(trial, "seconds_per_image_iteration", lambda teacher, batch: 0.01)
    assert per_pass(batch=1000) == pytest.approx(0.25)
    assert {images for _, images in runs} == {100}


def test_a_small_batch_is_tried_as_it_is(runs):
    assert per_pass(batch=3) == pytest.approx(0.25)
    assert {images for _, images in runs} == {3}


@pytest.mark.parametrize("method", ["gdfq", "fdda"])
def test_methods_without_a_short_form_are_estimated(runs, method):
    assert per_pass(method) == 1.0
    assert runs == []


def test_a_trial_is_shorter_than_the_job(runs):
    longest = trial.TRIAL_IMAGES * sum(trial.TRIAL_ITERATIONS)
    assert per_pass(passes=longest) == 1.0 and runs == []
    assert per_pass(passes=longest + 1) == pytest.approx(0.25)


def test_so_are_short_jobs_and_jobs_of_iterations_that_are_set(runs):
    assert per_pass(passes=round(WORTH_A_TRIAL_SECONDS) - 1) == 1.0
    assert per_pass(iterations=9) == 1.0
    assert runs == []


@pytest.mark.parametrize("method", ["dgh", "intraq", "gzsq"])
def test_the_short_run_is_the_methods_own(method):
    """`intraq` has to be prepared, `dgh` makes the whole set together."""
    assert trial._seconds(create(method, make_teacher(), {}, 1, Runtime(threads=1), 2), 2) > 0
