import math

import numpy as np
import pytest
from scipy import stats

from zsq.measure.confidence import (
    Run,
    bootstrap_interval,
    mean_interval,
    recovery,
    set_means,
    welch_interval,
)
from zsq.measure.gap import gaps_from_rows, rows_from_runs

REAL_SETS, OWN_SETS = np.array([87.1, 87.6, 86.9]), np.array([86.2, 86.9, 86.0, 86.4])


def runs(table):
    """(sets, seeds) values -> Runs."""
    return [Run(k, s, float(v)) for k, row in enumerate(table) for s, v in enumerate(row)]


def test_mean_interval_is_the_closed_form():
    half = stats.t.ppf(0.975, 2) * REAL_SETS.std(ddof=1) / math.sqrt(3)
    np.testing.assert_allclose(mean_interval(REAL_SETS), (REAL_SETS.mean() - half, REAL_SETS.mean() + half))


def test_welch_interval_is_the_closed_form():
    a, b = REAL_SETS.var(ddof=1) / 3, OWN_SETS.var(ddof=1) / 4
    degrees = (a + b) ** 2 / (a**2 / 2 + b**2 / 3)
    half = stats.t.ppf(0.975, degrees) * math.sqrt(a + b)
    gap = REAL_SETS.mean() - OWN_SETS.mean()
    np.testing.assert_allclose(welch_interval(REAL_SETS, OWN_SETS), (gap - half, gap + half))


def test_one_set_has_no_interval():
    one = np.array([80.0])
    assert mean_interval(one) is None
    assert welch_interval(REAL_SETS, one) is None and welch_interval(one, REAL_SETS) is None
    assert bootstrap_interval(runs([[1.0]]), runs([[2.0], [3.0]])) is None
    assert recovery(one, REAL_SETS, REAL_SETS - 50) is None


@pytest.mark.filterwarnings("error")
def test_without_spread_an_interval_is_a_point():
    same, other = np.array([84.4] * 3), np.array([84.1] * 3)
    gap = 84.4 - 84.1
    assert mean_interval(same) == (84.4, 84.4)
    assert welch_interval(same, other) == (gap, gap)
    assert welch_interval(same, same) == (0.0, 0.0)
    low, high = bootstrap_interval(runs([[84.4, 84.3]] * 3), runs([[84.4, 84.3]] * 3))
    assert (low, high) == (0.0, 0.0) and math.copysign(1, low) == 1


@pytest.mark.filterwarnings("error")
def test_one_constant_arm_leaves_the_other_arms_spread():
    half = stats.t.ppf(0.975, 2) * REAL_SETS.std(ddof=1) / math.sqrt(3)
    gap = REAL_SETS.mean() - 80
    np.testing.assert_allclose(welch_interval(REAL_SETS, np.array([80.0] * 3)), (gap - half, gap + half))


def test_bootstrap_is_the_two_level_resampling_written_out():
    random = np.random.default_rng(5)
    real, own = random.normal(80, 1, (5, 3)), random.normal(77, 2, (4, 3))
    gaps = []
    for _ in range(10_000):
        seeds = random.integers(3, size=3)
        a = real[random.integers(5, size=5)][:, seeds]
        b = own[random.integers(4, size=4)][:, seeds]
        gaps.append(a.mean() - b.mean())
    expected = np.percentile(gaps, [2.5, 97.5])
    np.testing.assert_allclose(bootstrap_interval(runs(real), runs(own)), expected, atol=0.08)


def test_bootstrap_of_one_seed_is_scipys():
    random = np.random.default_rng(6)
    real, own = random.normal(80, 1, 6), random.normal(77, 2, 5)
    expected = stats.bootstrap(
        (real, own),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        method="percentile",
        vectorized=True,
        n_resamples=10_000,
        random_state=random,
    ).confidence_interval
    measured = bootstrap_interval(runs(real[:, None]), runs(own[:, None]))
    np.testing.assert_allclose(measured, (expected.low, expected.high), atol=0.1)


def test_bootstrap_resamples_seeds_jointly():
    seed_effect = np.array([-3.0, 0.0, 4.0])
    interval = bootstrap_interval(runs([80 + seed_effect] * 3), runs([79 + seed_effect] * 3))
    np.testing.assert_allclose(interval, (1.0, 1.0), atol=1e-9)


def test_bootstrap_refuses_a_table_with_holes_and_repeats_itself():
    whole = runs(np.arange(6.0).reshape(3, 2))
    assert bootstrap_interval(whole, whole[:-1]) is None
    assert bootstrap_interval(whole, [run for run in whole if run.seed == 0]) is None
    assert bootstrap_interval(whole, whole) == bootstrap_interval(whole, whole)


def test_recovery_needs_three_standard_errors():
    noise = np.array([9.0, 11.0])
    error = math.sqrt(1.0 / 2 + 2.0 / 2)

    def real_at(distance):
        middle = 10.0 + distance * error
        return np.array([middle - math.sqrt(0.5), middle + math.sqrt(0.5)])

    own = np.array([11.0, 13.0])
    assert recovery(real_at(2.99), own, noise) is None
    assert recovery(real_at(3.01), own, noise) == pytest.approx(2.0 / (3.01 * error))
    assert recovery(real_at(-9.0), own, noise) is None


def record(source, shard_set, seed, accuracy, **changes):
    base = {
        "source": source,
        "shard_set": shard_set,
        "seed": seed,
        "student": "ptq",
        "bits": "W4A4",
        "first_last": 8,
        "options": {},
        "num_images": 256,
        "metrics": {"accuracy": accuracy, "agreement": accuracy + 5},
        "seconds": 2.0 + seed,
    }
    return base | changes


def test_rows_average_seeds_within_a_set_first():
    rows = rows_from_runs([record("dsg", 0, 0, 80.0), record("dsg", 0, 1, 90.0), record("dsg", 1, 0, 70.0)])
    accuracy, agreement = rows
    assert (accuracy.metric, agreement.metric) == ("accuracy", "agreement")
    np.testing.assert_array_equal(set_means(accuracy.runs), [85.0, 70.0])
    assert accuracy.mean == 77.5 and agreement.mean == 82.5
    assert accuracy.seconds == pytest.approx(7 / 3)
    assert accuracy.runs[1] == Run(0, 1, 90.0)


def test_gaps_are_real_minus_source_of_the_same_student():
    records = [record("real", k, 0, 88.0 + k) for k in range(3)]
    records += [record("noise", k, 0, 10.0 + k) for k in range(3)]
    records += [record("dsg", k, 0, 80.0 + k) for k in range(3)]
    records += [record("dsg", k, 0, 70.0, bits="W2A4") for k in range(3)]
    gaps = gaps_from_rows(rows_from_runs(records))
    assert [(g.source, g.bits, g.metric) for g in gaps] == [
        ("noise", "W4A4", "accuracy"),
        ("noise", "W4A4", "agreement"),
        ("dsg", "W4A4", "accuracy"),
        ("dsg", "W4A4", "agreement"),
    ]
    noise, dsg = gaps[0], gaps[2]
    assert noise.gap == 78.0 and noise.recovery == 0.0
    assert dsg.gap == 8.0 and dsg.recovery == pytest.approx(70 / 78)
    assert dsg.ci95[0] < 8.0 < dsg.ci95[1] and dsg.bootstrap95[0] < 8.0 < dsg.bootstrap95[1]


def test_intervals_end_where_the_metric_ends():
    values = {"real": (98.0, 100.0), "dsg": (0.0, 9.0), "noise": (0.0, 0.5)}
    metrics = ("accuracy", "cosine")
    records = [
        record(source, k, 0, 0.0, metrics=dict.fromkeys(metrics, value))
        for source, of_sets in values.items()
        for k, value in enumerate(of_sets)
    ]
    rows = rows_from_runs(records)
    found = {(row.source, row.metric): row.ci95 for row in rows}
    low, high = mean_interval(np.array([0.0, 9.0]))
    assert low < 0 and found["dsg", "accuracy"] == (0.0, pytest.approx(high))
    assert found["dsg", "cosine"] == pytest.approx((low, high))
    assert found["real", "accuracy"][1] == found["real", "cosine"][1] == 100.0
    gaps = {(gap.source, gap.metric): gap.ci95 for gap in gaps_from_rows(rows)}
    wanted = welch_interval(np.array([98.0, 100.0]), np.array([0.0, 9.0]))
    assert wanted[1] > 100 and gaps["dsg", "accuracy"] == (pytest.approx(wanted[0]), 100.0)
    assert gaps["dsg", "cosine"] == pytest.approx(wanted)


def test_intervals_of_one_set_are_over_seeds():
    values = {"real": (88.0, 89.0, 87.5), "dsg": (86.0, 86.5, 88.0)}
    records = [
        record(source, 0, seed, value)
        for source, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]
    rows = rows_from_runs(records)
    found = {(row.source, row.metric): row.ci95 for row in rows}
    assert found["dsg", "accuracy"] == pytest.approx(mean_interval(np.array(values["dsg"])))
    gap = gaps_from_rows(rows)[0]
    assert gap.ci95 == pytest.approx(welch_interval(*map(np.array, values.values())))
    assert gap.bootstrap95 is None
    more = [*records, record("real", 1, 0, 88.0)]
    assert gaps_from_rows(rows_from_runs(more))[0].ci95 is None  # dsg has no second set yet


def test_without_noise_there_is_no_recovery():
    records = [record(source, k, 0, 50.0 + k) for source in ("real", "dsg") for k in range(2)]
    assert [gap.recovery for gap in gaps_from_rows(rows_from_runs(records))] == [None, None]
