"""Options, schedules and losses of AdaRound, BRECQ, QDrop and GENIE-M: as published, or our own and said."""

import numpy as np
import pytest
import torch
from commands import Spoken
from toys import image_spec

import zsq
from zsq.core.runtime import Runtime
from zsq.fitting.reconstruction import Annealing, ParameterGroup
from zsq.fitting.unit_losses import UnitBatch, rounding_loss, unit_error
from zsq.students import create, own_defaults_line
from zsq.widths import Bits

STUDENTS = ["adaround", "brecq", "qdrop", "genie-m"]


def test_small_images_have_a_declared_default_of_our_own():
    small, large = image_spec(size=(32, 32)), image_spec(size=(224, 224))
    resized = image_spec(size=(64, 64), input_size=(224, 224))
    for name, published in (("adaround", 10_000), ("brecq", 20_000), ("qdrop", 20_000), ("genie-m", 20_000)):
        iterations = [
            create(name, spec, {}, Runtime()).options.iterations for spec in (small, large, resized)
        ]
        assert iterations == [2000, published, published]
        line = own_defaults_line(name, create(name, small, {}, Runtime()), small)
        assert line == f"{name}: iterations=2000 is our default here, published is {published}"
        chosen = create(name, small, {"iterations": published}, Runtime())
        assert chosen.options.iterations == published and own_defaults_line(name, chosen, small) is None
        assert own_defaults_line(name, create(name, large, {}, Runtime()), large) is None
    assert own_defaults_line("lsq-kd", create("lsq-kd", small, {}, Runtime()), small) is None


def test_quantize_says_what_is_our_own_and_reports_all_progress(digits):
    spoken, options = Spoken(), {"iterations": 2, "batch": 4}
    source = {"images": "embedded:digits:train", "count": 8, "reporter": spoken}
    fitted = zsq.quantize("embedded:digits", student="qdrop", bits="W4A4", set=options, **source).fitted
    assert fitted.student == "qdrop" and fitted.first_last == 8 and spoken.lines == []
    with pytest.raises(KeyboardInterrupt):
        spoken.job = interrupt
        zsq.quantize("embedded:digits", student="qdrop", bits="W4A4", **source)
    assert spoken.lines == ["qdrop: iterations=2000 is our default here, published is 20000"]


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_published_constants():
    options = {name: create(name, image_spec(size=(224, 224)), {}, Runtime()).options for name in STUDENTS}
    assert all(
        (o.batch, o.learning_rate, o.beta_start, o.beta_end, o.warm_up) == (32, 1e-3, 20, 2, 0.2)
        for o in options.values()
    )
    assert [options[name].rounding_weight for name in STUDENTS] == [0.01, 0.01, 0.01, 1.0]
    assert (options["brecq"].activation_learning_rate, options["brecq"].activation_share) == (4e-4, 0.25)
    assert options["qdrop"].activation_learning_rate == options["genie-m"].activation_learning_rate == 4e-5
    assert (options["genie-m"].step_learning_rate, options["qdrop"].keep, options["genie-m"].keep) == (
        1e-4,
        0.5,
        0.5,
    )


def test_rounding_learns_faster_in_fewer_iterations():
    spec = image_spec(size=(32, 32))
    for name, published in zip(STUDENTS, (10_000, 20_000, 20_000, 20_000), strict=True):
        for iterations, factor in ((published, 1), (2 * published, 1), (published // 10, 10)):
            student = create(name, spec, {"iterations": iterations}, Runtime())
            group = next(group for group in student.phases(Bits(4, 4))[0].groups if group.role == "rounding")
            assert (group.learning_rate, group.cosine) == (pytest.approx(1e-3 * factor), False)


def test_steps_of_finer_grids_learn_more_slowly():
    def rates(bits, **options):
        student = create("genie-m", image_spec(size=(32, 32)), options, Runtime())
        (phase,) = student.phases(bits)
        return {group.role: group.learning_rate for group in phase.groups}

    low, *rest = [rates(Bits(bits, 8)) for bits in (4, 2, 3)]
    assert low["weight step"] == 1e-4 and rest == [low, low]
    high = rates(Bits(8, 4))
    assert high["weight step"] * 255 == pytest.approx(1e-4 * 15)
    assert {**high, "weight step": 1e-4} == low
    assert rates(Bits(8, 8), rate_bits=8) == low
    asked = rates(Bits(6, 6), rate_bits=2, step_learning_rate=1e-3)
    assert asked["weight step"] * 63 == pytest.approx(1e-3 * 3)


def test_schedules():
    annealing = Annealing(20.0, 2.0, 0.2)
    assert annealing.at(0.0) == annealing.at(0.199) == (20.0, 0.0)
    assert annealing.at(0.2) == (20.0, 1.0) and annealing.at(0.6) == pytest.approx((11.0, 1.0))
    assert annealing.at(1.0) == pytest.approx((2.0, 1.0))
    assert ParameterGroup("rounding", 0.1).rate(0.7) == 0.1
    assert [ParameterGroup("rounding", 0.1, cosine=True).rate(p) for p in (0, 0.5, 1)] == pytest.approx(
        [0.1, 0.05, 0]
    )


@pytest.mark.parametrize("exponent", [2.0, 2.4])
def test_terms_equal_float64(exponent):
    generator = torch.Generator().manual_seed(0)
    output, target, importance = (torch.randn(6, 5, 4, 3, generator=generator) for _ in range(3))
    variables = (torch.randn(7, generator=generator), torch.randn(2, 2, generator=generator))
    beta, one = torch.tensor(5.0), torch.tensor(1.0)
    forward = UnitBatch(output, target, None, variables, beta, one, channels=5)
    difference = np.abs(output.double().numpy() - target.double().numpy()) ** exponent
    term = unit_error(exponent)
    assert term.value(forward).item() == pytest.approx(difference.sum(1).mean(), rel=1e-5)
    weighted = UnitBatch(output, target, importance, variables, beta, one, channels=5)
    expected = (difference * importance.double().numpy()).sum(1).mean()
    assert term.value(weighted).item() == pytest.approx(expected, rel=1e-5)
    h = [np.clip(1.2 / (1 + np.exp(-v.double().numpy())) - 0.1, 0, 1) for v in variables]
    penalty = sum((1 - np.abs(2 * x - 1) ** 5.0).sum() for x in h)
    assert rounding_loss(1.0).value(forward).item() == pytest.approx(penalty, rel=1e-5)
    off = UnitBatch(output, target, None, variables, beta, torch.tensor(0.0), channels=5)
    assert rounding_loss(1.0).value(off).item() == 0
